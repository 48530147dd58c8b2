"""What the programs share: flags, errors, progress, tables."""
