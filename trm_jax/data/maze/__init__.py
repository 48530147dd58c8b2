"""Mazes of any size: tokens, verifier, generator and datasets."""
