"""Recursive reasoning models in JAX. README.md has an overview."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from trm_jax.solve.processor import TRMProcessor

  __version__: str

__all__ = ["TRMProcessor", "__version__"]


def __getattr__(name: str) -> Any:
  # On first use, so that `import trm_jax` does not load jax.
  if name == "TRMProcessor":
    return importlib.import_module("trm_jax.solve.processor").TRMProcessor
  if name == "__version__":
    try:
      return importlib.metadata.version("trm_jax")
    except importlib.metadata.PackageNotFoundError:
      return "unknown"  # a checkout that was not installed
  raise AttributeError(f"module 'trm_jax' has no attribute {name!r}")
