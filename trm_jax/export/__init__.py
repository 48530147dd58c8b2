"""Export formats, and the arrays of the reference implementation."""
