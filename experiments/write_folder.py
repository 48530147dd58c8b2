"""Writes the data of a config as a folder in the reference's layout.

    python -m experiments.write_folder --config=FILE.py[:variant] --out=DIR
        [--dihedral] [--config.data.train=SOURCE ...]

The folder (dataset.json, all__inputs.npy, ...) is what the reference trains
on, and what --config.data.path takes here. ARC copies are written out one by
one, each where it stands: thousands of copies take gigabytes. --dihedral adds
the eight images of each training grid, as the reference does for mazes.
"""

import dataclasses
import math
import pathlib

import jax
import numpy as np
from absl import flags

from trm_jax import config as config_lib
from trm_jax.cli import app
from trm_jax.data import datasets, dihedral, folder_writer
from trm_jax.data.arc import grids
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run.folder import write_json

_CONFIG = app.define_config()
_OUT = flags.DEFINE_string("out", "", "The folder to make.")
_DIHEDRAL = flags.DEFINE_bool(
  "dihedral", False, "Add the images of training grids, for mazes."
)


def main(argv: list[str]) -> int:
  """Writes what `--config` describes."""
  app.no_arguments(argv)
  if not _OUT.value:
    raise UserError("--out is missing: name the folder to make")
  experiment = config_lib.read(app.config_values(_CONFIG))
  data, task = experiment.data, experiment.task
  if _DIHEDRAL.value and task.name != "maze":
    raise UserError(
      f"--dihedral: not for {task.name}, only mazes stay mazes under it and "
      "have no copies of their own"
    )
  for note in datasets.prepare(data, app.say):
    app.say(f"note: {note}")
  splits = {"train": datasets.load(data, "train")}
  if datasets.has_test(data):
    splits["test"] = datasets.load(data, "test")
  if _DIHEDRAL.value:
    splits["train"] = _with_images(splits["train"])
  view = jax.jit(jax.vmap(task.view)) if task.view else None
  folder_writer.write(
    _OUT.value, splits, datasets.identifiers(data), task.vocab_size, view
  )
  if task.view:
    path = pathlib.Path(_OUT.value) / "test_puzzles.json"
    write_json(path, _test_puzzles(splits))
  for name, split in splits.items():
    print(f"{name}: {len(split):,} groups, {len(split.rows[0]):,} examples")
  print(f"wrote {_OUT.value}")
  return 0


def _with_images(split: Split) -> Split:
  """Groups of a grid and its seven images, which are stored."""
  size = math.isqrt(split.inputs.shape[1])
  images = Split.of_rows(
    dihedral.copies(split.inputs, size), dihedral.copies(split.labels, size)
  )
  first = np.arange(len(split) + 1, dtype=np.int32) * 8
  return dataclasses.replace(images, first_puzzle=first)


def _test_puzzles(splits: dict[str, Split]) -> dict:
  """The tasks that are tested, as the reference's evaluator reads them."""
  tested = splits.get("test")
  if tested is None:
    return {}
  trained = splits["train"]
  return {
    name: {
      "train": _pairs(trained, trained.names.index(name)),
      "test": _pairs(tested, group),
    }
    for group, name in enumerate(tested.names)
  }


def _pairs(split: Split, group: int) -> list[dict]:
  """The pairs of a group's first puzzle, which is the original."""
  puzzle = split.first_puzzle[group]
  first = split.first_example[puzzle]
  return [
    {
      "input": grids.decode(split.inputs[row]).tolist(),
      "output": grids.decode(split.labels[row]).tolist(),
    }
    for row in range(first, first + split.num_examples[puzzle])
  ]


if __name__ == "__main__":
  app.run(main)
