"""Code of the programs: flags, errors, progress, tables."""
