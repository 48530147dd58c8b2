"""The pure training step, and the loop around it."""
