"""Writes the data of a config as a folder in the reference's layout.

    python -m experiments.write_folder --config=FILE.py[:variant] --out=DIR
        [--dihedral] [--config.data.train=SOURCE ...]

The folder (dataset.json, all__inputs.npy, ...) is what the reference trains
on, and what --config.data.path takes here. ARC copies are written out one by
one, each where it stands: thousands of copies take gigabytes. --dihedral adds
the eight images of each training grid, as the reference does for mazes.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import flags

from trm_jax import config as config_lib
from trm_jax.cli import app
from trm_jax.data import datasets, folder_writer
from trm_jax.data.task import Split, Symmetry, Task
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
  symmetry = task.augmentation
  count = symmetry.count if symmetry else None
  if _DIHEDRAL.value and not count:
    raise UserError(
      f"--dihedral: not for {task.name}, whose symmetries are too many to "
      "store; only those of mazes are few"
    )
  for note in datasets.prepare(data, app.say):
    app.say(f"note: {note}")
  splits = {"train": datasets.load(data, "train")}
  if datasets.has_split(data, "test"):
    splits["test"] = datasets.load(data, "test")
  if _DIHEDRAL.value and symmetry and count:
    splits["train"] = _with_images(splits["train"], symmetry, count)
  folder_writer.write(_OUT.value, splits, datasets.identifiers(data), task)
  if task.copies:
    path = pathlib.Path(_OUT.value) / "test_puzzles.json"
    write_json(path, _test_puzzles(splits, task))
  for name, split in splits.items():
    print(f"{name}: {len(split):,} groups, {len(split.rows[0]):,} examples")
  print(f"wrote {_OUT.value}")
  return 0


def _with_images(split: Split, symmetry: Symmetry, count: int) -> Split:
  """Groups of a puzzle and its images, which are stored."""
  images = jax.jit(
    jax.vmap(jax.vmap(symmetry.apply, in_axes=(0, None)), in_axes=(None, 0))
  )
  shown = [
    np.asarray(images(np.arange(count), tokens))
    for tokens in (split.inputs, split.labels)
  ]
  shape = (-1, split.inputs.shape[1])
  first = np.arange(len(split) + 1, dtype=np.int32) * count
  return dataclasses.replace(
    Split.of_rows(*(tokens.reshape(shape) for tokens in shown)),
    first_puzzle=first,
  )


def _test_puzzles(splits: dict[str, Split], task: Task) -> dict:
  """The tasks that are tested, as the reference's evaluator reads them."""
  tested = splits.get("test")
  if tested is None:
    return {}
  trained = splits["train"]
  return {
    name: {
      "train": _pairs(trained, trained.names.index(name), task),
      "test": _pairs(tested, group, task),
    }
    for group, name in enumerate(tested.names)
  }


def _pairs(split: Split, group: int, task: Task) -> list[dict]:
  """The pairs of a group's first puzzle, which is the original."""
  puzzle = split.first_puzzle[group]
  first = split.first_example[puzzle]
  return [
    {
      "input": task.decode(split.inputs[row]),
      "output": task.decode(split.labels[row]),
    }
    for row in range(first, first + split.num_examples[puzzle])
  ]


if __name__ == "__main__":
  app.run(main)
