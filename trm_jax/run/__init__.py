"""A run on disk and on devices: folder, checkpoints, mesh, processes."""
