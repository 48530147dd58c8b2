"""Mazes of any size: tokens, verifier, generator and data sets."""
