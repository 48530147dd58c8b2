"""A model as a checkpoint folder that plain Orbax loads.

    from orbax.checkpoint import v1 as ocp
    params = ocp.load(folder)                    # nested dicts of numpy arrays
    card = ocp.metadata(folder).custom_metadata  # config, task, scores ...

The tree is that of `Params`, without empty arrays (the puzzle table of a model
without puzzle embeddings), which Orbax cannot write.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, cast

import jax
from orbax.checkpoint import v1 as ocp

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.core.model import Params
from trm_jax.errors import UserError
from trm_jax.run import card as cards
from trm_jax.run import files
from trm_jax.run.checkpoint import (
  abstract_state,
  described,
  fingerprint,
  first_line,
  with_empty,
  without_empty,
)
from trm_jax.run.pretrained import Pretrained

FORMAT = "trm_jax.orbax/1"


def export(
  pretrained: Pretrained, path: str | os.PathLike, overwrite: bool = False
):
  """Writes a model as a folder, atomically.

  Args:
    pretrained: the model.
    path: the folder.
    overwrite: whether an existing exported model is replaced.

  Raises:
    UserError: if it cannot be written or the path exists; then nothing is
      changed.
  """
  path = pathlib.Path(path)
  files.refuse_patterns(path)
  files.refuse_existing(overwrite, path)
  if os.path.lexists(path):
    _read_card(path)  # replaces only an exported model
  tree = without_empty(jax.device_get(pretrained.params))
  card = pretrained.card() | {
    "format": FORMAT,
    "fingerprint": int(fingerprint(tree)),
  }
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True
    ) as scratch:
      complete = pathlib.Path(scratch, "new")
      ocp.save(str(complete.absolute()), tree, custom_metadata={"card": card})
      _put(complete, path, aside=pathlib.Path(scratch, "old"))
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise UserError(f"cannot write {path}: {first_line(error)}") from error


def load(
  path: str | os.PathLike,
) -> tuple[Params, dict[str, Any], dict[str, Any]]:
  """Reads a folder of `export`.

  Returns:
    The parameters on the default device; the config and the other facts of the
    card as plain values.

  Raises:
    UserError: if the folder is missing, damaged, of another format, or its
      arrays are not those of its config.
  """
  path = pathlib.Path(path)
  card, arrays = _read_card(path)
  config = card.pop("config", {})
  expected = _expected(path, config, len(arrays))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = abstract_state(expected, jax.tree.map(lambda _: device, expected))
  cards.check_arrays(path, arrays, described(without_empty(abstract)))
  try:
    tree = ocp.load(str(path.absolute()), without_empty(abstract))
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  found = int(fingerprint(tree))
  cards.check_fingerprint(path, found, card.pop("fingerprint", None))
  return with_empty(tree, abstract), config, card


def _put(folder: pathlib.Path, path: pathlib.Path, aside: pathlib.Path):
  """Moves a folder to `path` and an existing one to `aside`, or neither."""
  replaced = path.exists()
  if replaced:
    path.replace(aside)
  try:
    folder.replace(path)
  except BaseException:
    if replaced:
      aside.replace(path)
    raise


def _read_card(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
  """The card of an exported folder, and its arrays: path -> dtype and shape."""
  if not path.is_dir():
    raise UserError(f"{path}: there is no such folder")
  files.refuse_irregular(path)
  try:
    metadata = ocp.metadata(str(path.absolute()))
    card = cast(Mapping, metadata.custom_metadata or {}).get("card")
    arrays = described(metadata.metadata)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  card = dict(card) if isinstance(card, dict) else {}
  cards.check_format(path, card.get("format"), FORMAT)
  return card, arrays


def _expected(
  path: pathlib.Path, config: Mapping[str, Any], arrays: int
) -> Params:
  """Shapes of the parameters that a config describes."""
  try:
    model = config_lib.read(config).model
    # Every block has arrays; a huge number of layers would take long below.
    layers = sum(model.kind.stacks(model).values())
    if layers > arrays:
      raise ValueError(f"{layers} layers, and {arrays} arrays")
    return network.shapes(model)
  except (ValueError, TypeError, ArithmeticError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error


def _damaged(path: pathlib.Path, error: BaseException) -> UserError:
  return UserError(
    f"{path} cannot be read as an exported model: {first_line(error)}"
  )
