"""Recursive reasoning models in JAX: see README.md for a map of the rooms."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from trm_jax.solve.processor import TRMProcessor

  __version__: str

__all__ = ["TRMProcessor", "__version__"]


def __getattr__(name: str) -> Any:
  # On first use: whoever wants the core alone does not import the rest.
  if name == "TRMProcessor":
    return importlib.import_module("trm_jax.solve.processor").TRMProcessor
  if name == "__version__":
    try:
      return importlib.metadata.version("trm_jax")
    except importlib.metadata.PackageNotFoundError:
      return "unknown"  # a checkout that was not installed
  raise AttributeError(f"module 'trm_jax' has no attribute {name!r}")
