"""Puzzles: data sets, tokens, verifiers, augmentation and batch order."""
