"""Inference at any depth and breadth, with halting."""
