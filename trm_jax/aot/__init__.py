"""Compiling ahead of time, for slices of TPUs that are only described."""
