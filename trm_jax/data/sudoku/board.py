"""The Sudoku board: tokens, rules and drawing.

Tokens are those of the reference: 0 pads, 1 is a blank cell, digit d is
d + 1. Cells are numbered in row-major order.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data import checks
from trm_jax.data.sudoku.text import BLANKS
from trm_jax.errors import UserError

# size -> rows and columns of a box.
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}

PAD = 0
BLANK = 1
TOKENS = dict.fromkeys(BLANKS, BLANK) | {
  str(digit): digit + 1 for digit in range(1, 10)
}
CELL = f"one of {' '.join(BLANKS)} for a blank"

_CHARACTERS = {BLANK: "."} | {digit + 1: str(digit) for digit in range(1, 10)}


def check_size(size: int) -> None:
  """Raises a `UserError` unless boards of this size exist."""
  if size not in BOXES:
    raise UserError(
      f"size={size!r}: not the size of a Sudoku; choose one of {sorted(BOXES)}"
    )


@functools.cache
def units(size: int) -> np.ndarray:
  """The cells of the rows, columns and boxes, int32 [3 * size, size]."""
  height, width = BOXES[size]
  rows = np.arange(size * size, dtype=np.int32).reshape(size, size)
  boxes = rows.reshape(size // height, height, size // width, width)
  boxes = boxes.swapaxes(1, 2).reshape(size, size)
  table = np.concatenate([rows, rows.T, boxes])
  table.setflags(write=False)  # cached, so shared by all callers
  return table


def parse(text: str, *, size: int) -> np.ndarray:
  """Reads a grid from text, row by row: digits, and `BLANKS`.

  White space is ignored.
  """
  cells = "".join(text.split())
  if len(cells) != size * size:
    raise UserError(
      f"a {size}x{size} Sudoku has {size * size} cells, but the grid has "
      f"{len(cells)} characters: {checks.shorten(cells)}."
    )
  tokens = [TOKENS.get(character, PAD) for character in cells]
  for cell, token in enumerate(tokens):
    if not BLANK <= token <= size + 1:
      raise UserError(
        f"row {cell // size + 1}, column {cell % size + 1} of the grid holds "
        f"{cells[cell]!r}; expected a digit from 1 to {size}, or {CELL}."
      )
  return np.array(tokens, np.uint8)


def render(tokens: np.ndarray) -> str:
  """Writes a grid [L] on one line: `.` is a blank, `?` an invalid token."""
  return "".join(_CHARACTERS.get(int(token), "?") for token in tokens)


def from_numbers(grid: np.ndarray, *, size: int) -> str:
  """The text of a board of digits, with 0 for a blank."""
  if grid.shape not in ((size, size), (size * size,)):
    raise UserError(
      f"its shape is {grid.shape}; expected {(size, size)} or {(size * size,)}"
    )
  if grid.min() < 0 or grid.max() > 9:
    raise UserError(
      f"numbers from {grid.min()} to {grid.max()}; expected digits, and 0 for "
      "a blank"
    )
  return "".join(map(str, grid.reshape(-1).tolist()))


def check_givens(tokens: np.ndarray) -> None:
  """Raises a `UserError` if a row, column or box has a digit twice."""
  size = math.isqrt(len(tokens))
  cells = np.sort(tokens[units(size)], axis=-1)
  twice = (cells[:, 1:] == cells[:, :-1]) & (cells[:, 1:] > BLANK)
  if twice.any():
    unit, place = np.argwhere(twice)[0].tolist()
    kind = ("row", "column", "box")[unit // size]
    digit = render(cells[unit, [place]])
    raise UserError(
      f"{kind} {unit % size + 1} has two {digit}s, so there is no solution."
    )


def is_solution(
  inputs: jax.Array, answers: jax.Array, *, size: int
) -> jax.Array:
  """Whether answers [..., L] are legal full boards that keep the givens."""
  inputs, answers = jnp.asarray(inputs), jnp.asarray(answers)
  return _is_complete(answers, size, jnp) & _keeps_givens(inputs, answers)


def solves(inputs: np.ndarray, answers: np.ndarray, *, size: int) -> np.ndarray:
  """`is_solution` for host arrays, without a device or a compilation."""
  return _is_complete(answers, size, np) & _keeps_givens(inputs, answers)


def _is_complete(answers, size, xp):
  # One bit per digit: a unit with every digit has all bits set.
  is_digit = (answers > BLANK) & (answers <= size + 1)
  shift = xp.where(is_digit, answers, 2).astype(xp.uint16) - xp.uint16(2)
  bits = xp.where(is_digit, xp.uint16(1) << shift, xp.uint16(0))
  seen = xp.bitwise_or.reduce(bits[..., units(size)], axis=-1)
  return (seen == (1 << size) - 1).all(-1)


def _keeps_givens(inputs, answers):
  return ((inputs <= BLANK) | (inputs == answers)).all(-1)


def style(character: str, given: str) -> str:
  """Givens are bold in the terminal, filled cells blue."""
  return "bold" if character == given != "." else "#2e9bd6"


def draw(axes, puzzle, answer=None, label=None) -> None:
  """Draws a puzzle or an answer onto matplotlib axes; see `Task.draw`.

  Givens are black, filled cells blue, and wrong cells red on grey.
  """
  size = math.isqrt(len(puzzle))
  height, width = BOXES[size]
  for line in range(size + 1):
    axes.axhline(line, color="black", linewidth=0.5 + 1.5 * (line % height < 1))
    axes.axvline(line, color="black", linewidth=0.5 + 1.5 * (line % width < 1))
  cell_points = 72 * axes.bbox.width / axes.figure.dpi / size
  shown = puzzle if answer is None else answer
  for cell, token in enumerate(shown):
    row, column = divmod(cell, size)
    color = "black" if puzzle[cell] > BLANK else "tab:blue"
    if label is not None and token != label[cell]:
      color = "tab:red"
      axes.fill_between([column, column + 1], row, row + 1, color="#DDDDDD")
    if token != BLANK:
      axes.text(
        column + 0.5, row + 0.5, render(np.array([token])), color=color,
        fontsize=cell_points / 2, ha="center", va="center",
      )  # fmt: skip
  axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
  axes.axis("off")
