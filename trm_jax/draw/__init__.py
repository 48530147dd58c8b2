"""Puzzles and curves, in the terminal and as pictures."""
