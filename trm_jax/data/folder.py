"""Reads datasets in the folder layout of the reference's builders.

    PATH/identifiers.json                the name of each puzzle id
    PATH/train/dataset.json              sizes, and the name of the set: "all"
    PATH/train/all__inputs.npy           [N, S], questions
    PATH/train/all__labels.npy           [N, S], answers
    PATH/train/all__puzzle_indices.npy   [Q + 1], examples of each puzzle
    PATH/train/all__group_indices.npy    [G + 1], puzzles of each group
    PATH/train/all__puzzle_identifiers.npy   [Q], the id of each puzzle

and the same below PATH/test. Indices are bounds: puzzle q has the examples
from `puzzle_indices[q]` to `puzzle_indices[q + 1] - 1`.
"""

import dataclasses
import math
import os
import pathlib
import re

import numpy as np

from trm_jax.data import folder_arrays
from trm_jax.data.checks import read_json, shorten
from trm_jax.data.folder_arrays import Header
from trm_jax.data.task import BLANK, Split, Task
from trm_jax.errors import UserError

SPLITS = ("train", "test")

# The range of whole numbers in a dataset.json: tokens are uint8, ids int32.
_BOUNDS = {
  "pad_id": (0, 0),
  "blank_identifier_id": (0, 0),
  "vocab_size": (2, 256),
  "seq_len": (1, 2**31 - 1),
  "num_puzzle_identifiers": (1, 2**31 - 1),
  "total_groups": (1, 2**31 - 1),
  "total_puzzles": (1, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The sizes of a dataset folder.

  Attributes:
    seq_len: tokens per puzzle.
    vocab_size: number of token values, including the padding token 0.
    num_puzzle_ids: rows of the puzzle-embedding table.
    splits: those of "train" and "test" that exist.
  """

  seq_len: int
  vocab_size: int
  num_puzzle_ids: int
  splits: tuple[str, ...]


def is_dataset(path: str | os.PathLike) -> bool:
  """Whether a folder is in this layout, perhaps incomplete."""
  root = pathlib.Path(path).expanduser()
  names = ["identifiers.json", *(f"{split}/dataset.json" for split in SPLITS)]
  return any(os.path.exists(root / name) for name in names)


def metadata(path: str | os.PathLike, task: Task | None = None) -> Metadata:
  """Reads a folder's sizes; if a task is given, its sizes must be equal."""
  root = _root(path)
  splits = _splits(root)
  headers = [_header(root, split) for split in splits]
  first, last = headers[0], headers[-1]
  for name in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
    values = getattr(first, name), getattr(last, name)
    if values[0] != values[1]:
      raise UserError(
        f"{last.path}: {name} is {values[1]}, but {values[0]} in "
        f"{first.path}; build the splits together"
      )
  found = first.seq_len, first.vocab_size
  if task and found != (task.seq_len, task.vocab_size):
    raise UserError(
      f"{path}: seq_len is {first.seq_len} and vocab_size {first.vocab_size}, "
      f"but {task.name} has {task.seq_len} and {task.vocab_size}; choose "
      f"another folder, or the task that it was made for"
    )
  return Metadata(*found, first.num_puzzle_identifiers, splits)


def identifiers(path: str | os.PathLike) -> list[str]:
  """Reads the name of each puzzle id; `["<blank>"]` if there are no names."""
  return _identifiers(_root(path), metadata(path).num_puzzle_ids)


def read(path: str | os.PathLike, split: str, task: Task) -> Split:
  """Opens and checks a split, "train" or "test".

  Tokens stored as uint8 are memory-mapped; others are converted. The split has
  `is_viewed`. If its puzzles have names that the task can parse, groups have
  names and puzzles symmetries.
  """
  root = _root(path)
  if split not in _splits(root):
    raise UserError(
      f"{root}: no split {split!r}, only {list(_splits(root))}; to have it, "
      f"put dataset.json, {folder_arrays.file_names('all')} in {root / split}"
    )
  header = _header(root, split)
  whole = folder_arrays.read(header)
  names = _identifiers(root, header.num_puzzle_identifiers)
  if not task.parse_names or names == [BLANK]:
    return whole
  symmetries, groups = _symmetries(root, whole, names, task)
  return dataclasses.replace(whole, symmetries=symmetries, names=groups)


def _root(path) -> pathlib.Path:
  root = pathlib.Path(path).expanduser()
  if not os.path.isdir(root):
    raise UserError(
      f"{root}: not a folder; expected one with train/ or test/ and "
      f"identifiers.json in it, as the reference's builders write them"
    )
  return root


def _splits(root: pathlib.Path) -> tuple[str, ...]:
  splits = tuple(
    split for split in SPLITS if os.path.exists(root / split / "dataset.json")
  )
  if not splits:
    raise UserError(
      f"{root}: no dataset in it; expected train/dataset.json or "
      f"test/dataset.json, as the reference's builders write them"
    )
  return splits


def _header(root: pathlib.Path, split: str) -> Header:
  path = root / split / "dataset.json"
  fields = read_json(path, "the sizes of a split")
  if not isinstance(fields, dict):
    raise UserError(
      f"{path}: holds {shorten(fields)}; expected an object of fields"
    )
  fields.setdefault("total_puzzles", 1)  # older builders do not write it
  for name in (*_BOUNDS, "ignore_label_id", "mean_puzzle_examples", "sets"):
    if name not in fields:
      raise UserError(f"{path}: {name} is missing; build the folder again")

  def require(name, is_valid, expected):
    if not is_valid:
      value = shorten(fields[name])
      raise UserError(f"{path}: {name} is {value}; expected {expected}")

  for name, (least, most) in _BOUNDS.items():
    value = fields[name]
    expected = f"a whole number from {least} to {most}"
    if least == most:
      expected = f"{least}: other layouts cannot be read"
    require(name, type(value) is int and least <= value <= most, expected)
  mean = fields["mean_puzzle_examples"]
  is_mean = type(mean) in (int, float) and 0 <= mean < math.inf
  require("mean_puzzle_examples", is_mean, "a number, 0 or more")
  ignored, sets = fields["ignore_label_id"], fields["sets"]
  is_zero = ignored is None or (type(ignored) is int and ignored == 0)
  require("ignore_label_id", is_zero, "0: other layouts cannot be read")
  # A part of file names, so it must not contain a path.
  is_name = (
    isinstance(sets, list)
    and len(sets) == 1
    and isinstance(sets[0], str)
    and re.fullmatch(r"\w[\w.-]*", sets[0])
  )
  require("sets", is_name, 'a list of one name, such as ["all"]')
  return Header(
    path=path,
    seq_len=fields["seq_len"],
    vocab_size=fields["vocab_size"],
    num_puzzle_identifiers=fields["num_puzzle_identifiers"],
    least_label=int(ignored is None),
    set=sets[0],
  )


def read_names(path: pathlib.Path) -> list[str]:
  """Reads an identifiers.json, a list of names."""
  names = read_json(path, "the names of puzzle ids")
  if not isinstance(names, list) or not all(
    isinstance(name, str) for name in names
  ):
    raise UserError(
      f"{path}: {shorten(names)}; expected a list of names, that of each "
      f"puzzle id"
    )
  return names


def _identifiers(root: pathlib.Path, num_ids: int) -> list[str]:
  """Reads the names of puzzle ids; `["<blank>"]` if there are none."""
  path = root / "identifiers.json"
  if num_ids == 1 and not os.path.exists(path):
    return [BLANK]
  names = read_names(path)
  if all(name == BLANK for name in names):
    return [BLANK]
  if len(names) != num_ids:
    raise UserError(
      f"{path}: {len(names)} names; expected {num_ids}, which is "
      f"num_puzzle_identifiers in dataset.json"
    )
  return names


def _symmetries(
  root: pathlib.Path, split: Split, names: list[str], task: Task
) -> tuple[np.ndarray, tuple[str, ...]]:
  """The symmetry of each puzzle, uint8 [Q, K], and the name of each group."""
  path = root / "identifiers.json"
  names = [names[puzzle_id] for puzzle_id in split.puzzle_ids.tolist()]
  if BLANK in names:
    raise UserError(
      f"{path}: puzzle {names.index(BLANK)} has id "
      f"{split.puzzle_ids[names.index(BLANK)]}, whose name is {BLANK!r}; "
      f"expected the name of a task or of a copy"
    )
  assert task.parse_names
  try:
    originals, symmetries = task.parse_names(names)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  groups = tuple(originals[puzzle] for puzzle in split.first_puzzle[:-1])
  of_group = np.repeat(np.arange(len(groups)), np.diff(split.first_puzzle))
  for puzzle, group in enumerate(of_group.tolist()):
    if originals[puzzle] != groups[group]:
      raise UserError(
        f"{path}: a group of puzzles holds {names[puzzle]!r}, but begins with "
        f"task {groups[group]!r}; expected one task and its copies"
      )
  return symmetries, groups
