"""Sudoku of 4x4, 6x6 and 9x9: tokens, verifier, generator and datasets."""
