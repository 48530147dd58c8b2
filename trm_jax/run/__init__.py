"""A run's folder, checkpoints, mesh and processes."""
