"""A model as a checkpoint folder that plain Orbax loads.

    from orbax.checkpoint import v1 as ocp
    params = ocp.load(folder)                    # nested dicts of numpy arrays
    card = ocp.metadata(folder).custom_metadata  # config, task, scores ...

The tree is that of `Params`: `weights`, `puzzle_table` and `initial`. Empty
arrays (the puzzle table of a model without puzzle embeddings) are left out:
Orbax refuses to write them.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, cast

import jax
from orbax.checkpoint import v1 as ocp

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.core.network import Params
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
  """Writes a model as a folder, whole or not at all.

  Args:
    pretrained: the model.
    path: the folder to make.
    overwrite: whether an exported model that is there is replaced.

  Raises:
    UserError: if it cannot be written, or something is in the way; then
      nothing is changed.
  """
  path = pathlib.Path(path)
  files.refuse_existing(overwrite, path)
  if os.path.lexists(path):
    _read_card(path)  # no other folder is replaced
  tree = without_empty(jax.device_get(pretrained.params))
  card = pretrained.card() | {
    "format": FORMAT,
    "fingerprint": int(fingerprint(tree)),
  }
  scratch = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(
      tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    )
    complete = scratch / "new"
    ocp.save(str(complete.absolute()), tree, custom_metadata={"card": card})
    _put(complete, path, aside=scratch / "old")
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise UserError(f"cannot write {path}: {first_line(error)}") from error
  finally:
    if scratch:
      shutil.rmtree(scratch, ignore_errors=True)


def load(
  path: str | os.PathLike,
) -> tuple[Params, dict[str, Any], dict[str, Any]]:
  """Reads what `export` wrote.

  Returns:
    The parameters on the default device; the config, and the other facts of
    the card, as plain values.

  Raises:
    UserError: if the folder is missing, damaged, of another format, or does
      not hold exactly the arrays that its config describes.
  """
  path = pathlib.Path(path)
  card, there = _read_card(path)
  config = card.pop("config", {})
  expected = _expected(path, config, len(there))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = abstract_state(expected, jax.tree.map(lambda _: here, expected))
  cards.check_arrays(path, there, described(without_empty(abstract)))
  try:
    tree = ocp.load(str(path.absolute()), without_empty(abstract))
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  found = int(fingerprint(tree))
  cards.check_fingerprint(path, found, card.pop("fingerprint", None))
  return with_empty(tree, abstract), config, card


def _put(folder: pathlib.Path, path: pathlib.Path, aside: pathlib.Path):
  """Moves a folder to its place; what was there goes aside, or stays."""
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
  """The card of an exported folder, and its arrays: path -> dtype, shape."""
  if not path.is_dir():
    raise UserError(f"{path}: there is no such folder")
  try:
    metadata = ocp.metadata(str(path.absolute()))
    card = cast(Mapping, metadata.custom_metadata or {}).get("card")
    there = described(metadata.metadata)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  card = dict(card) if isinstance(card, dict) else {}
  cards.check_format(path, card.get("format"), FORMAT)
  return card, there


def _expected(
  path: pathlib.Path, config: Mapping[str, Any], arrays: int
) -> Params:
  """Shapes of the parameters that a config describes."""
  try:
    model = config_lib.read(config).model
    # Each block has arrays of its own; describing one takes time.
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
