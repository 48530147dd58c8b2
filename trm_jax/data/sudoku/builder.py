"""Sudoku datasets: the hub's, csv files and our own generator."""

import numpy as np
from absl import logging

from trm_jax.data import prepared
from trm_jax.data import task as task_lib
from trm_jax.data.csv_rows import Rows
from trm_jax.data.sudoku import rows as sudoku_rows
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.settings import SudokuData


def prepare(
  settings: SudokuData, say: prepared.Say = logging.info
) -> list[str]:
  """Makes the dataset, if it is not there yet: `prepared.prepare`."""
  return prepared.prepare(_FAMILY, settings, say)


def num_groups(settings: SudokuData, split: str) -> int:
  """Counts the puzzles of a split: `prepared.num_groups`."""
  return prepared.num_groups(_FAMILY, settings, split)


def load(
  settings: SudokuData, split: str, groups: np.ndarray | None = None
) -> task_lib.Split:
  """Stages a split in host memory: `prepared.load`."""
  return prepared.load(_FAMILY, settings, split, groups)


def identifiers(settings: SudokuData) -> list[str]:
  """The name of each puzzle id: no puzzle is known by name."""
  del settings
  return ["<blank>"]


def _read(settings, path):
  return sudoku_rows.read_csv(path, settings.size, settings.skip_bad_rows)


def _confirm(settings, rows):
  """Looks for second solutions, where reading the whole file did not."""
  if rows.unique:
    return rows, []
  if len(rows) <= sudoku_rows.UNIQUE_ROWS:
    size, skip_bad_rows = settings.size, settings.skip_bad_rows
    return sudoku_rows.drop_ambiguous(rows, size, skip_bad_rows), []
  return rows, [
    f"{rows.path}: {len(rows):,} rows are too many to look for second "
    f"solutions; their answers are legal and keep the givens."
  ]


def _generate(settings: SudokuData, split: str, train: Rows | None, say):
  """Generates a split. Test puzzles avoid the solution grids of training."""
  del say  # was told that this may take a minute
  is_test = split == "test"
  return generate(
    settings.size,
    settings.num_test if is_test else settings.num_train,
    settings.seed,
    settings.givens,
    settings.rating,
    held_out=is_test,
    avoid={label.tobytes() for label in train.labels} if train else set(),
  )


_FAMILY = prepared.Family(
  name="sudoku",
  version=1,
  repository="sapientinc/sudoku-extreme",
  read=_read,
  generate=_generate,
  generator_fields=("num_train", "num_test", "givens", "rating"),
  wait="to check that each has one solution can take a minute",
  confirm=_confirm,
)
