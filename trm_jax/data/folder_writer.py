"""Writes datasets in the layout of the reference's builders, see `folder`."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from trm_jax.data import folder
from trm_jax.data.task import Split, Task, show
from trm_jax.errors import UserError


def write(
  path: str | os.PathLike,
  splits: Mapping[str, Split],
  identifiers: Sequence[str],
  task: Task,
) -> None:
  """Writes a folder that `folder.read` and the reference can read.

  The folder appears when it is complete and has passed the checks of
  `folder.read`; until then, and if anything fails, it is not there.

  Args:
    path: the folder to make. It may exist if it is empty.
    splits: by name, "train" or "test".
    identifiers: the name of each puzzle id, id 0 being "<blank>".
    task: their task. The layout stores every copy as it shows its puzzle. The
      reference's builder also moves training grids of ARC about; this does
      not.

  Raises:
    UserError: the folder holds something or cannot be written, or a split is
      empty or does not pass the checks.
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
      _write_json(root / "identifiers.json", list(identifiers))
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
  with contextlib.ExitStack() as stack:
    # Streams, not maps: when the disk is full they say so.
    files = [
      stack.enter_context(open(path / f"all__{name}.npy", "wb"))
      for name in ("inputs", "labels")
    ]
    for file in files:
      np.lib.format.write_array_header_1_0(file, header)
    for rows in folder.chunks(*shape):
      shown = show(split, examples[rows], puzzles[rows], task)
      for file, chunk in zip(files, shown, strict=True):
        file.write(np.asarray(chunk, np.uint8).tobytes())
  bounds = np.concatenate([[0], np.cumsum(split.num_examples)])
  indices = {
    "puzzle_indices": bounds,
    "group_indices": split.first_puzzle,
    "puzzle_identifiers": split.puzzle_ids,
  }
  for name, values in indices.items():
    np.save(path / f"all__{name}.npy", values.astype(np.int32))
  _write_json(
    path / "dataset.json",
    {
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
    },
  )


def _write_json(path: pathlib.Path, value):
  path.write_text(json.dumps(value), "utf-8")
