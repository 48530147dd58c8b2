"""Writes datasets in the folder layout of the reference; see `folder`."""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from trm_jax.data import folder, folder_arrays
from trm_jax.data.task import Split, Task, show
from trm_jax.errors import UserError


def write(
  path: str | os.PathLike,
  splits: Mapping[str, Split],
  identifiers: Sequence[str],
  task: Task,
) -> None:
  """Writes a folder for `folder.read` and for the reference.

  The folder appears only when it is complete and has passed the checks of
  `folder.read`. Copies are stored as they are shown. Unlike the reference's
  builder, this does not translate the training grids of ARC.

  Args:
    path: the folder to make. It may exist if it is empty.
    splits: by name, "train" or "test".
    identifiers: the name of each puzzle id; id 0 is "<blank>".
    task: their task.
  """
  target = pathlib.Path(path).expanduser().resolve()
  for name, split in splits.items():
    if not len(split):
      raise UserError(f"{name}: a split without puzzles; leave it out")
  try:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
      raise UserError(
        f"{target}: something is there already; choose a folder that is new "
        f"or empty"
      )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix=".unfinished-", dir=target.parent
    ) as unfinished:
      root = pathlib.Path(unfinished) / target.name
      root.mkdir()
      for name, split in splits.items():
        (root / name).mkdir()
        _write_split(root / name, split, len(identifiers), task)
      names = json.dumps(list(identifiers))
      (root / "identifiers.json").write_text(names, "utf-8")
      for name in splits:
        folder.read(root, name, task)
      folder.metadata(root, task)
      root.rename(target)
  except OSError as error:
    raise UserError(
      f"{target}: cannot be written ({error.strerror}); choose a folder with "
      f"free space that you may write to"
    ) from error


def _write_split(path, split: Split, num_ids: int, task: Task):
  examples, puzzles = split.rows
  shape = (len(examples), split.inputs.shape[1])
  header = {"descr": "|u1", "fortran_order": False, "shape": shape}
  # Streams rather than memory maps, to get an error when the disk is full.
  with (
    open(path / "all__inputs.npy", "wb") as inputs,
    open(path / "all__labels.npy", "wb") as labels,
  ):
    for file in (inputs, labels):
      np.lib.format.write_array_header_1_0(file, header)
    for rows in folder_arrays.chunks(*shape):
      shown = show(split, examples[rows], puzzles[rows], task)
      for file, chunk in zip((inputs, labels), shown, strict=True):
        file.write(np.asarray(chunk, np.uint8).tobytes())
  bounds = np.concatenate([[0], np.cumsum(split.num_examples)])
  for name, values in (
    ("puzzle_indices", bounds),
    ("group_indices", split.first_puzzle),
    ("puzzle_identifiers", split.puzzle_ids),
  ):
    np.save(path / f"all__{name}.npy", values.astype(np.int32))
  sizes = {
    "pad_id": 0,
    "ignore_label_id": 0,
    "blank_identifier_id": 0,
    "vocab_size": task.vocab_size,
    "seq_len": split.inputs.shape[1],
    "num_puzzle_identifiers": num_ids,
    "total_groups": len(split),
    "mean_puzzle_examples": len(examples) / len(split.puzzle_ids),
    "total_puzzles": len(split.puzzle_ids),
    "sets": ["all"],
  }
  (path / "dataset.json").write_text(json.dumps(sizes), "utf-8")


def check_images(task: Task) -> None:
  """Raises a `UserError` if `with_images` does not suit the task."""
  if not (task.augmentation and task.augmentation.count):
    raise UserError(
      f"--dihedral: not for {task.name}, whose symmetries are too many to "
      "store; only those of mazes are few"
    )


def with_images(split: Split, task: Task) -> Split:
  """A split whose groups are puzzles with all their images, stored."""
  symmetry = task.augmentation
  assert symmetry and symmetry.count
  numbers = np.arange(symmetry.count)
  images = jax.vmap(symmetry.apply, in_axes=(0, None))

  @jax.jit
  def all_images(tokens):
    return jax.lax.map(lambda each: images(numbers, each), tokens)

  shown = [
    np.asarray(all_images(tokens)).reshape(-1, task.seq_len)
    for tokens in (split.inputs, split.labels)
  ]
  first = np.arange(len(split) + 1, dtype=np.int32) * symmetry.count
  return dataclasses.replace(Split.of_rows(*shown), first_puzzle=first)


def test_puzzles(splits: Mapping[str, Split], task: Task) -> dict:
  """The tested puzzles, in the format of the reference's evaluator."""
  tested, trained = splits.get("test"), splits["train"]

  def pairs(split, group):
    puzzle = split.first_puzzle[group]  # the original
    first = split.first_example[puzzle]
    found = []
    for row in range(first, first + split.num_examples[puzzle]):
      found.append({"input": task.decode(split.inputs[row])})
      if split.labels[row].any():  # otherwise it is unknown
        found[-1]["output"] = task.decode(split.labels[row])
    return found

  return {
    name: {
      "train": pairs(trained, trained.names.index(name)),
      "test": pairs(tested, group),
    }
    for group, name in enumerate(tested.names if tested else ())
  }
