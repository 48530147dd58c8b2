"""Reads Sudoku csv files: `source,question,answer,rating`, plain or .gz."""

import dataclasses
import os

from trm_jax.data import csv_rows
from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.uniqueness import has_second_solution

# Above so many rows, `read_csv` does not look for second solutions unless
# asked: the hardest 9x9 puzzles cost some 2.5 ms each.
UNIQUE_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class SudokuRows(csv_rows.Rows):
  """Rows whose answers are legal completed grids that keep the givens.

  Attributes:
    unique: whether every row is known to have one solution only.
  """

  unique: bool = False


def read_csv(
  path: str | os.PathLike,
  size: int,
  skip_bad_rows: bool = False,
  check_unique: bool | None = None,
) -> SudokuRows:
  """Reads and checks a csv file.

  Every row must have four columns, grids of the right length and characters,
  a whole number as rating, and an answer that is a legal completed grid and
  keeps the givens.

  Args:
    path: the file; `.gz` at the end of its name means that it is compressed.
    size: cells along one side of the board.
    skip_bad_rows: whether to leave bad rows out instead of refusing the file.
    check_unique: whether to refuse puzzles with a second solution, too. None
      checks files of up to `UNIQUE_ROWS` rows, which takes seconds for a
      thousand hard puzzles and close to a minute for the most; larger files
      are then taken at their word.

  Returns:
    The rows, and the reasons for those that were skipped.

  Raises:
    UserError: the file cannot be read, is empty or has a bad row.
  """
  rows = csv_rows.read(path, _format(size), skip_bad_rows)
  rows = SudokuRows(**vars(rows))
  if check_unique or (check_unique is None and len(rows) <= UNIQUE_ROWS):
    rows = drop_ambiguous(rows, size, skip_bad_rows)
  return rows


def drop_ambiguous(
  rows: SudokuRows, size: int, skip_bad_rows: bool
) -> SudokuRows:
  """Searches every puzzle for a second solution.

  Args:
    rows: the rows.
    size: cells along one side of the board.
    skip_bad_rows: whether to leave such rows out instead of refusing them.

  Returns:
    The rows with one solution; what was left out is added to `skipped`.

  Raises:
    UserError: a puzzle has a second solution and rows may not be skipped, or
      all have one.
  """
  kept = csv_rows.drop(
    rows,
    has_second_solution(rows.inputs, rows.labels, size=size),
    "question: the puzzle has more than one solution; expected exactly one",
    skip_bad_rows,
  )
  return dataclasses.replace(kept, unique=True)


def _format(size: int) -> csv_rows.Format:
  def faults(inputs, labels):
    given = inputs > board.BLANK
    yield (
      (given & (inputs != labels)).any(-1),
      lambda row: (
        f"answer: {board.render(labels[row])} contradicts a given of the "
        f"question; expected the givens to be kept"
      ),
    )
    yield (
      ~board.solves(inputs, labels, size=size),
      lambda row: (
        f"answer: {board.render(labels[row])} is not a legal completed grid; "
        f"expected every digit once in each row, column and box"
      ),
    )

  return csv_rows.Format(
    length=size * size,
    board=f"a {size}x{size} board",
    alphabet={c: t for c, t in board.TOKENS.items() if t <= size + 1},
    cell=f"a digit from 1 to {size}, or '.' or '0' for a blank",
    faults=faults,
  )
