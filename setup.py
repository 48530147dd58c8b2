"""Installs experiments/ and configs/ as parts of trm_jax; see pyproject.toml.

They lie at the top of the repository, where a reader looks for them, and no
other package may find them under those names.
"""

from setuptools import find_packages, setup

INSIDE = {"trm_jax.experiments": "experiments", "trm_jax.configs": "configs"}

setup(
  packages=[*find_packages(include=["trm_jax", "trm_jax.*"]), *INSIDE],
  package_dir=INSIDE,
)
