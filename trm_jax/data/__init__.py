"""Puzzles: datasets, tokens, verifiers, augmentation and batch order."""
