"""A model as a checkpoint folder that plain Orbax loads.

    from orbax.checkpoint import v1 as ocp
    params = ocp.load(folder)                    # nested dicts of numpy arrays
    card = ocp.metadata(folder).custom_metadata  # config, task, scores ...

The tree is that of `Params`: `weights`, `puzzle_table` and `initial`. Arrays
without elements (the puzzle table of a model without puzzle embeddings) and
latents that a family does not have are left out: Orbax refuses to write them.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.core.network import Params
from trm_jax.errors import UserError
from trm_jax.run import files
from trm_jax.run.checkpoint import (
  abstract_state,
  described,
  fingerprint,
  first_line,
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
    _read_card(path)  # any other folder is too dear to be replaced
  tree = _nested(jax.device_get(pretrained.params))
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
  config = card.pop("config", None)
  if not isinstance(config, dict):
    raise UserError(f"{path} is damaged: its card has no config")
  expected = _expected(path, config, len(there))
  wanted = _nested(expected)
  kinds = described(wanted)
  for name in sorted(kinds.keys() | there.keys()):
    if there.get(name) != kinds.get(name):
      raise UserError(
        f"{path}: array {name!r} is {there.get(name, 'missing')}, but its "
        f"config makes it {kinds.get(name, 'absent')}"
      )
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  placed = jax.tree.map(lambda leaf: here, wanted)
  try:
    tree = ocp.load(str(path.absolute()), abstract_state(wanted, placed))
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  if int(fingerprint(tree)) != card.pop("fingerprint", None):
    raise UserError(f"{path} is damaged: its bits are not those written")
  arrays = {
    _name(where): array
    for where, array in jax.tree_util.tree_leaves_with_path(tree)
  }
  params = jax.tree_util.tree_map_with_path(
    lambda where, leaf: (
      arrays[_name(where)] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
    ),
    expected,
  )
  return params, config, card


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
  """The card of an exported folder, and its arrays: path -> kind."""
  if not path.is_dir():
    raise UserError(f"{path}: there is no such folder")
  try:
    metadata = ocp.metadata(str(path.absolute()))
    card = cast(Mapping, metadata.custom_metadata or {}).get("card", {})
    there = described(metadata.metadata)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _damaged(path, error) from error
  if not isinstance(card, dict) or card.get("format") != FORMAT:
    raise UserError(f"{path} is no model that was exported to Orbax ({FORMAT})")
  return dict(card), there


def _expected(
  path: pathlib.Path, config: Mapping[str, Any], arrays: int
) -> Params:
  """Shapes of the parameters that a config describes."""
  try:
    model = config_lib.read(config).model
    # Each block has arrays of its own: a config that claims more blocks than
    # there are arrays would take long to work out, for nothing.
    if model.layers > arrays:
      raise ValueError(f"{model.layers} layers, and {arrays} arrays")
    return network.shapes(model)
  except (ValueError, TypeError, ArithmeticError) as error:
    raise UserError(f"{path}: its config cannot be read: {error}") from error


def _nested(params: Params) -> dict[str, Any]:
  """Parameters as nested dicts, without what Orbax cannot write."""
  tree: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if leaf.size:
      *rooms, name = _name(path).split("/")
      node = tree
      for room in rooms:
        node = node.setdefault(room, {})
      node[name] = leaf
  return tree


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _damaged(path: pathlib.Path, error: BaseException) -> UserError:
  return UserError(
    f"{path} cannot be read as an exported model: {first_line(error)}"
  )
