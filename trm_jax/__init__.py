"""Recursive reasoning models in JAX: see README.md for a map of the rooms."""
