"""Depth against compute: grids of models, what they gave, and the report."""
