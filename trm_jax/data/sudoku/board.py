"""The Sudoku board: tokens, rules and drawing.

Tokens are those of the reference: 0 pads, 1 is a blank cell, digit d is
d + 1. Cells are numbered along the rows, from the top left.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data import task as task_lib
from trm_jax.data.sudoku import geometry, symmetry
from trm_jax.errors import UserError

PAD = 0
BLANK = 1
TOKENS = {".": BLANK} | {str(digit): digit + 1 for digit in range(10)}


def parse(text: str, *, size: int) -> np.ndarray:
  """Reads a grid from text, row by row; white space is skipped.

  Args:
    text: one character a cell: a digit, or `.` or `0` for a blank.
    size: cells along one side of the board.

  Returns:
    uint8 [L] tokens.

  Raises:
    UserError: the text has another length, or a character that is neither a
      digit of this size nor a blank.
  """
  cells = "".join(text.split())
  if len(cells) != size * size:
    raise UserError(
      f"a {size}x{size} Sudoku has {size * size} cells, but the grid has "
      f"{len(cells)} characters: {cells!r}."
    )
  tokens = [TOKENS.get(character, PAD) for character in cells]
  for cell, token in enumerate(tokens):
    if not BLANK <= token <= size + 1:
      raise UserError(
        f"row {cell // size + 1}, column {cell % size + 1} of the grid holds "
        f"{cells[cell]!r}; expected a digit from 1 to {size}, or '.' or '0' "
        f"for a blank."
      )
  return np.array(tokens, np.uint8)


def render(tokens: np.ndarray) -> str:
  """Writes a grid on one line, the inverse of `parse`.

  Args:
    tokens: integers [L].

  Returns:
    One character a cell: `.` for a blank, `?` for a token that is no cell's.
  """
  return "".join(_CHARACTERS.get(int(token), "?") for token in tokens)


_CHARACTERS = {BLANK: "."} | {digit + 1: str(digit) for digit in range(1, 10)}


def is_solution(
  inputs: jax.Array, answers: jax.Array, *, size: int
) -> jax.Array:
  """Tells whether answers are legal completed grids that keep the givens.

  The rules alone decide: no label is consulted.

  Args:
    inputs: integers [..., L], the puzzles' tokens.
    answers: integers [..., L], the answers' tokens.
    size: cells along one side of the board.

  Returns:
    bool [...].
  """
  inputs, answers = jnp.asarray(inputs), jnp.asarray(answers)
  return _is_complete(answers, size, jnp) & _keeps_givens(inputs, answers)


def solves(inputs: np.ndarray, answers: np.ndarray, *, size: int) -> np.ndarray:
  """Is `is_solution` for host arrays, without a device or a compilation."""
  return _is_complete(answers, size, np) & _keeps_givens(inputs, answers)


def _is_complete(answers, size, xp):
  # A digit is one bit, so a unit that holds every digit has every bit set.
  is_digit = (answers > BLANK) & (answers <= size + 1)
  shift = xp.where(is_digit, answers, 2).astype(xp.uint16) - xp.uint16(2)
  bits = xp.where(is_digit, xp.uint16(1) << shift, xp.uint16(0))
  seen = xp.bitwise_or.reduce(bits[..., geometry.units(size)], axis=-1)
  return (seen == (1 << size) - 1).all(-1)


def _keeps_givens(inputs, answers):
  return ((inputs <= BLANK) | (inputs == answers)).all(-1)


@functools.cache
def task(size: int) -> task_lib.Task:
  """Describes Sudoku of one size; the same size gives the same object.

  Args:
    size: cells along one side of the board: 4, 6 or 9.

  Returns:
    The task.

  Raises:
    UserError: there is no board of this size.
  """
  geometry.check_size(size)
  return task_lib.Task(
    name="sudoku",
    seq_len=size * size,
    vocab_size=size + 2,
    augment=functools.partial(symmetry.augment, size=size),
    parse=functools.partial(parse, size=size),
    render=render,
    draw=draw,
    is_solution=functools.partial(is_solution, size=size),
    symmetries=task_lib.Symmetries(
      sample=functools.partial(symmetry.sample, size=size),
      show=symmetry.apply,
      undo=symmetry.undo,
    ),
  )


def draw(axes, puzzle, answer=None, label=None) -> None:
  """Draws a puzzle, and the answer given to it, onto matplotlib axes.

  Givens are black, filled cells blue; where a label is known, cells that
  differ from it are red on grey.

  Args:
    axes: the matplotlib `Axes` to draw on.
    puzzle: integers [L], the puzzle's tokens.
    answer: integers [L], the answer's tokens, or None to leave blanks blank.
    label: integers [L], the right answer, or None if it is not known.
  """
  size = round(len(puzzle) ** 0.5)
  height, width = geometry.BOXES[size]
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
        column + 0.5,
        row + 0.5,
        render(np.array([token])),
        color=color,
        fontsize=cell_points / 2,
        ha="center",
        va="center",
      )
  axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
  axes.axis("off")
