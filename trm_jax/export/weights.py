"""Weights as safetensors: a flat set of arrays, with the config inside."""

import contextlib
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
    with contextlib.suppress(OSError):
      unfinished.unlink()
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
    raise UserError(f"{path} cannot be read as safetensors: {error}") from error
  if metadata.get("format") != FORMAT:
    raise UserError(
      f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}"
    )
  try:
    config = json.loads(metadata["config"])
    model = config_lib.read(config).model
  except (KeyError, ValueError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error
  return _assemble(path, arrays, model), config


def _assemble(
  path: pathlib.Path, arrays: dict[str, np.ndarray], model: ModelConfig
) -> Params:
  expected = network.shapes(model)
  wanted = {name: _kind(leaf) for name, leaf in _named(expected)}
  there = {name: _kind(array) for name, array in arrays.items()}
  for name in sorted(wanted.keys() | there.keys()):
    if there.get(name) != wanted.get(name):
      raise UserError(
        f"{path}: array {name!r} is {there.get(name, 'missing')}, but its "
        f"config makes it {wanted.get(name, 'absent')}"
      )
  leaves = [jnp.asarray(arrays[name]) for name, _ in _named(expected)]
  return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _kind(array: Any) -> str:
  return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _named(params: Params) -> list[tuple[str, Any]]:
  """Every array with its path, as in "weights/embed/tokens"."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
