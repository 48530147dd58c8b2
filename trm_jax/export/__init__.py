"""Trained models as files, and the layout of the reference implementation."""
