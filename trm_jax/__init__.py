"""Recursive reasoning models in JAX: see README.md for a map of the rooms."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from trm_jax.solve.processor import TRMProcessor

__all__ = ["TRMProcessor"]


def __getattr__(name: str) -> Any:
  # On first use: whoever wants the core alone does not import the rest.
  if name == "TRMProcessor":
    return importlib.import_module("trm_jax.solve.processor").TRMProcessor
  raise AttributeError(f"module 'trm_jax' has no attribute {name!r}")
