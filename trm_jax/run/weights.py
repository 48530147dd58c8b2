"""Weights as safetensors: a flat set of arrays, with the config inside."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
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
from trm_jax.run import card, files

FORMAT = "trm_jax/1"

# What safetensors calls a dtype -> what numpy does.
_DTYPES = {
  "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip


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
    facts: step, scores and the like, as plain values.

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
    "sha256": card.fingerprint(arrays),
  }
  try:
    content = save(arrays, metadata)
  except safetensors.SafetensorError as error:
    # Names of a million puzzles come near the longest header there may be.
    raise UserError(f"cannot write {path}: {error}") from error
  files.write({path: content})


def load_weights(
  path: pathlib.Path,
) -> tuple[Params, dict[str, Any], dict[str, Any]]:
  """Reads what `save_weights` wrote.

  Nothing is believed: what the config describes is compared with what the
  file declares, and that with its size, before memory is taken for any of it.

  Returns:
    The parameters, and config and facts as plain values.

  Raises:
    UserError: if the file is missing, damaged, of another format or version,
      does not hold exactly the arrays that its config describes, or holds
      numbers that are not finite: such a model has no answers.
  """
  with opened(path) as file:
    metadata = file.metadata() or {}
    _check_format(path, metadata)
    config, model = _read_config(path, metadata)
    facts = _parse(path, metadata, "facts")
    names = list(file.keys())
    _check_size(path, model, len(names))
    expected = _described(model)
    _compare(path, _declared(file, names), expected)
    arrays = {name: file.get_tensor(name) for name in names}
  for name, array in arrays.items():
    check_finite(path, name, array)
  if "sha256" in metadata:  # the first files of this format had none
    found = card.fingerprint(arrays)
    card.check_fingerprint(path, found, metadata["sha256"])
  leaves = [jnp.asarray(arrays[name]) for name, _ in _named(expected)]
  params = jax.tree.unflatten(jax.tree.structure(expected), leaves)
  return params, config, facts


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
  """A safetensors file, opened for reading; errors of it are the user's.

  Raises:
    UserError: if there is no such file, or it is damaged. safetensors itself
      sees to it that the header fits in the file, and that the arrays fill
      exactly what is left.
  """
  if not path.is_file():  # a pipe would be waited for
    kind = "a folder" if path.is_dir() else "not a file"
    raise UserError(
      f"{path} cannot be read: it is {kind}; name a .safetensors file"
    )
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      yield file
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def check_finite(path: pathlib.Path, name: str, array: np.ndarray):
  """Refuses an array with an infinity or a NaN in it.

  Raises:
    UserError: naming it.
  """
  if not np.isfinite(array).all():
    raise UserError(
      f"{path}: array {name!r} holds values that are not finite: the file is "
      "damaged, or its training had diverged"
    )


def _check_format(path: pathlib.Path, metadata: Mapping[str, str]):
  found = metadata.get("format")
  if found == FORMAT:
    return
  if found is not None and found.startswith("trm_jax/"):
    raise UserError(
      f"{path}: written in version {found[:40]!r} of the format, and only "
      f"{FORMAT!r} is known here; update trm_jax"
    )
  advice = "to import a PyTorch checkpoint, see experiments.import_torch"
  raise UserError(
    f"{path}: format is {found!r:.60}, expected {FORMAT!r}; {advice}"
  )


def _read_config(
  path: pathlib.Path, metadata: Mapping[str, str]
) -> tuple[dict[str, Any], ModelConfig]:
  config = _parse(path, metadata, "config")
  try:
    return config, config_lib.read(config).model
  except (ValueError, TypeError, ArithmeticError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error


def _parse(
  path: pathlib.Path, metadata: Mapping[str, str], name: str
) -> dict[str, Any]:
  """An object of JSON in the metadata."""
  try:
    value = json.loads(metadata[name])
    if not isinstance(value, dict):
      raise ValueError("not an object")
  except KeyError:
    raise UserError(f"{path}: its {name} cannot be read: missing") from None
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: its {name} cannot be read: {error}") from error
  return value


def _check_size(path: pathlib.Path, model: ModelConfig, arrays: int):
  """Refuses a model that no file of this size can hold.

  Its arrays could not even be listed before memory or time run out.
  """
  size = path.stat().st_size
  try:
    counts = {
      "layers": (max(model.layers, model.answer_layers), arrays),
      "width": (model.width, size),
      "num_puzzle_ids": (model.num_puzzle_ids, size),
      "puzzle_emb_ndim": (model.puzzle_emb_ndim, size),
      "puzzle_emb_len": (model.length, size),
      "expansion (or inner_multiple)": (model.mlp_inner, size),
    }
    if "latent_steps" in model.kind.tied:
      counts["latent_steps"] = (model.latent_steps, size)
  except ArithmeticError as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error
  for name, (count, limit) in counts.items():
    if count > limit:
      raise UserError(
        f"{path}: {arrays} arrays in {size:,} bytes cannot be the model that "
        f"its config describes: config.model.{name} makes it larger"
      )


def _described(model: ModelConfig) -> Params:
  """`network.shapes`, in no more time for many layers than for one."""
  short = dataclasses.replace(model, layers=1, answer_layers=0)
  one = network.shapes(short)
  stacks = {
    name: {f"block_{i}": one.weights[name]["block_0"] for i in range(count)}
    for name, count in model.kind.stacks(model).items()
  }
  return one.replace(weights=one.weights | stacks)


def _declared(file: Any, names: list[str]) -> dict[str, str]:
  """What a file says of its arrays, without reading any of them."""
  declared = {}
  for name in names:
    array = file.get_slice(name)
    dtype = array.get_dtype()
    shape = list(array.get_shape())
    declared[name] = f"{_DTYPES.get(dtype, dtype)}{shape}"
  return declared


def _compare(path: pathlib.Path, there: dict[str, str], expected: Params):
  """Refuses a file by the first array that its config does not describe."""
  wanted = {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in _named(expected)
  }
  for name in sorted(wanted.keys() | there.keys()):
    if there.get(name) != wanted.get(name):
      raise UserError(
        f"{path}: array {name!r} is {there.get(name, 'missing')}, but its "
        f"config makes it {wanted.get(name, 'absent')}"
      )


def _named(params: Params) -> list[tuple[str, Any]]:
  """Every array with its path, as in "weights/embed/tokens"."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
