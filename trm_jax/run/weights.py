"""Saves and loads models as safetensors files, which include the config."""

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
from trm_jax.core.model import ModelConfig, Params
from trm_jax.data import checks
from trm_jax.errors import UserError
from trm_jax.run import card, files
from trm_jax.run.checkpoint import described, named_leaves

FORMAT = "trm_jax/2"
# Its fingerprint, if any, covers only the arrays.
_EARLIER_FORMAT = "trm_jax/1"

# Names of dtypes in safetensors -> in numpy.
_DTYPES = {
  "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def save_weights(
  path: pathlib.Path,
  params: Params,
  config: Mapping[str, Any],
  facts: Mapping[str, Any],
):
  """Writes a model's weights, config and facts, atomically.

  Args:
    path: the `.safetensors` file.
    params: the model.
    config: the experiment's config as plain values.
    facts: see `Pretrained.facts`.

  Raises:
    UserError: if it cannot be written.
  """
  arrays = {
    name: np.ascontiguousarray(jax.device_get(leaf))
    for name, leaf in named_leaves(params).items()
  }
  metadata = {"config": json.dumps(config), "facts": json.dumps(facts)}
  metadata |= {"format": FORMAT, "sha256": _fingerprint(arrays, metadata)}
  try:
    content = save(arrays, metadata)
  except safetensors.SafetensorError as error:
    # The names of a million puzzles may exceed the longest header allowed.
    raise UserError(f"cannot write {path}: {error}") from error
  files.write({path: content})


def load_weights(
  path: pathlib.Path,
) -> tuple[Params, dict[str, Any], dict[str, Any]]:
  """Reads a file that `save_weights` wrote.

  The config is compared with the arrays that the file declares before memory
  is allocated for them.

  Returns:
    The parameters, and config and facts as plain values.

  Raises:
    UserError: if the file is missing, damaged or of another format, does not
      match its config, or contains values that are not finite.
  """
  with opened(path) as file:
    metadata, names = file.metadata() or {}, list(file.keys())
    _check_format(path, metadata)
    config = _parse(path, metadata, "config")
    facts = _parse(path, metadata, "facts")
    expected = _expected(path, config, len(names))
    declared = {name: _declared(file.get_slice(name)) for name in names}
    card.check_arrays(path, declared, described(expected))
    arrays = {name: file.get_tensor(name) for name in names}
  for name, array in arrays.items():
    check_finite(path, name, array)
  written = metadata.get("sha256")
  if metadata["format"] == FORMAT:
    found = _fingerprint(arrays, metadata)
    card.check_fingerprint(path, found, written)
  elif written:
    card.check_fingerprint(path, card.fingerprint(arrays), written)
  leaves = [jnp.asarray(arrays[name]) for name in named_leaves(expected)]
  params = jax.tree.unflatten(jax.tree.structure(expected), leaves)
  return params, config, facts


def _fingerprint(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> str:
  texts = {
    name: np.frombuffer(metadata[name].encode(), np.uint8)
    for name in ("config", "facts")
  }
  return card.fingerprint({**arrays, **texts})


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
  """Opens a safetensors file for reading.

  Raises:
    UserError: if there is no such file, or it is damaged. safetensors checks
      that the header and the arrays together fill the file exactly.
  """
  if not path.is_file():  # reading a pipe would block
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
  """Raises a `UserError` if an array contains an infinity or a NaN."""
  if not np.isfinite(array).all():
    raise UserError(
      f"{path}: array {name!r} holds values that are not finite: the file is "
      "damaged, or its training had diverged"
    )


def _check_format(path: pathlib.Path, metadata: Mapping[str, str]):
  found = metadata.get("format")
  if found in (FORMAT, _EARLIER_FORMAT):
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


def _parse(
  path: pathlib.Path, metadata: Mapping[str, str], name: str
) -> dict[str, Any]:
  """A JSON object in the metadata."""
  try:
    value = checks.parse_json(metadata.get(name, "null"))
    if not isinstance(value, dict):
      raise ValueError("not an object")
    return value
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: its {name} cannot be read: {error}") from error


def _expected(
  path: pathlib.Path, config: Mapping[str, Any], arrays: int
) -> Params:
  """Shapes of the config's model.

  A config too large for the file is refused first, because even listing the
  arrays of such a model could take too much memory or time.
  """
  size = path.stat().st_size
  try:
    model = config_lib.read(config).model
    sizes = {
      field.name: getattr(model, field.name)
      for field in dataclasses.fields(model)
      if isinstance(getattr(model, field.name), int)
    }
    sizes |= {"expansion": model.mlp_inner, "puzzle_emb_len": model.length}
  except (ValueError, TypeError, ArithmeticError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error
  for name, value in sizes.items():
    if value > (arrays if name.endswith("layers") else size):
      raise UserError(
        f"{path}: {arrays} arrays in {size:,} bytes cannot be the model that "
        f"its config describes: config.model.{name} makes it larger"
      )
  return _described(model)


def _described(model: ModelConfig) -> Params:
  """`network.shapes`, in constant time for any number of layers."""
  one = network.shapes(dataclasses.replace(model, layers=1, answer_layers=0))
  stacks = {
    name: {f"block_{i}": one.weights[name]["block_0"] for i in range(count)}
    for name, count in model.kind.stacks(model).items()
  }
  return one.replace(weights=one.weights | stacks)


def _declared(array: Any) -> str:
  """An array's dtype and shape by the file's header, see `described`."""
  dtype = array.get_dtype()
  return f"{_DTYPES.get(dtype, dtype)}{list(array.get_shape())}"
