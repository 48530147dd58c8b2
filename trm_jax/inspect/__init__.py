"""What a compiled, traced or trained model does."""
