"""Weights as safetensors: a flat set of arrays, with the config inside."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.core.network import ModelConfig, Params
from trm_jax.errors import UserError

FORMAT = "trm_jax/1"


def save_weights(
  path: pathlib.Path,
  params: Params,
  config: Mapping[str, Any],
  facts: Mapping[str, Any],
):
  """Writes a model with all that is needed to use it.

  The file appears whole or not at all.

  Args:
    path: the `.safetensors` file.
    params: the model.
    config: the experiment's config as plain values.
    facts: step, scores and the like, for people to read.

  Raises:
    UserError: if it cannot be written.
  """
  arrays = {
    name: np.ascontiguousarray(jax.device_get(leaf))
    for name, leaf in _named(params)
  }
  metadata = {
    "format": FORMAT,
    "config": json.dumps(config),
    "facts": json.dumps(facts),
  }
  unfinished = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(save(arrays, metadata))
    unfinished.replace(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error


def load_weights(path: pathlib.Path) -> tuple[Params, dict[str, Any]]:
  """Reads what `save_weights` wrote.

  Returns:
    The parameters, and the config as plain values.

  Raises:
    UserError: if the file is missing, damaged, of another format, or does not
      hold exactly the arrays that its config describes.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  if metadata.get("format") != FORMAT:
    raise UserError(
      f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}"
    )
  try:
    config = json.loads(metadata["config"])
  except (KeyError, ValueError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error
  model = config_lib.read(config).model
  return _assemble(path, arrays, model), config


def _assemble(
  path: pathlib.Path, arrays: dict[str, np.ndarray], model: ModelConfig
) -> Params:
  expected = network.shapes(model)
  shapes = {name: leaf.shape for name, leaf in _named(expected)}
  for name in sorted(shapes.keys() | arrays.keys()):
    there = arrays[name].shape if name in arrays else "missing"
    wanted = shapes.get(name, "absent")
    if there != wanted:
      raise UserError(
        f"{path}: array {name!r} is {there}, but its config makes it {wanted}"
      )
  leaves = [jnp.asarray(arrays[name]) for name, _ in _named(expected)]
  return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _named(params: Params) -> list[tuple[str, Any]]:
  """Every array with its path, as in "weights/embed/tokens"."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
