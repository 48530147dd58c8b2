"""Sudoku in files: which puzzles are bad, and answers by search."""

import numpy as np

from trm_jax.data.csv_rows import CsvFormat, Rows
from trm_jax.data.sudoku import board, text
from trm_jax.data.sudoku.solver import solve
from trm_jax.errors import UserError


def csv_format(size: int) -> CsvFormat:
  """The format of puzzles with a full board that keeps the givens."""

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

  return CsvFormat(
    length=size * size,
    board=f"a {size}x{size} board",
    alphabet={c: t for c, t in board.TOKENS.items() if t <= size + 1},
    cell=f"a digit from 1 to {size}, or {board.CELL}",
    faults=faults,
    answer=_answer,
    layout=text.layout(size),
  )


def _answer(question: np.ndarray) -> np.ndarray:
  found = solve(question, limit=2)
  if found.answer is None or found.solutions > 1:
    number = "no" if found.answer is None else "more than one"
    raise UserError(f"the puzzle has {number} solution; expected exactly one")
  return found.answer


def is_ambiguous(rows: Rows) -> np.ndarray:
  """Which puzzles have several solutions; the hardest take 10 ms each."""
  found = [solve(puzzle, limit=2).solutions > 1 for puzzle in rows.inputs]
  return np.array(found, bool)
