"""ARC: grids of colours, their symmetries, files and datasets."""
