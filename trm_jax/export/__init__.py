"""Weights that travel: to files, and to and from the reference's layout."""
