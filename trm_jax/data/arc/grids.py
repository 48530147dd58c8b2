"""ARC grids: tokens, text and drawing.

A grid of up to `size` x `size` cells is placed on a square canvas of tokens:

    0  padding      1  end of a row or column      c + 2  colour c

Questions and answers start at the canvas's origin, its top left; only the
translation in `symmetry` moves them. A model's output need not be a grid, so it
is *decoded* to the largest rectangle at the origin that holds only colours; of
equally large ones, to the one with the fewest rows.
"""

import json
import math
import re
import reprlib

import numpy as np

from trm_jax.errors import UserError

# The largest side of a grid and of its canvas.
MAX_SIZE = 30

PAD = 0
EOS = 1
FIRST_COLOUR = 2
NUM_COLOURS = 10

# The colours of the official testing interface.
COLOURS = (
  "#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
  "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip

# The identity, see `symmetry`.
IDENTITY = np.arange(-1, NUM_COLOURS).clip(0).astype(np.uint8)


def encode(
  grid: np.ndarray, size: int = 30, row: int = 0, column: int = 0
) -> np.ndarray:
  """Places a grid [h, w] of colours on a canvas: uint8 [size * size] tokens.

  The cells below its last row and right of its last column become EOS where
  they are on the canvas; the corner between them stays padding. Raises a
  `UserError` if the grid does not fit.
  """
  height, width = grid.shape
  below, right = row + height, column + width
  if below > size or right > size:
    raise UserError(
      f"a grid of {height} rows and {width} columns does not fit on a canvas "
      f"of {size}x{size} at row {row}, column {column}."
    )
  canvas = np.full((size, size), PAD, np.uint8)
  canvas[row:below, column:right] = grid + FIRST_COLOUR
  if below < size:
    canvas[below, column:right] = EOS
  if right < size:
    canvas[row:below, right] = EOS
  return canvas.reshape(-1)


def decode(tokens: np.ndarray) -> np.ndarray:
  """Reads the grid, uint8 [h, w], at the origin of a canvas, tokens [S].

  It is 0 x 0 if the first token is not a colour.
  """
  tokens = np.asarray(tokens)
  height, width = extent(tokens, np)
  size = math.isqrt(len(tokens))
  grid = tokens.reshape(size, size)[:height, :width] - FIRST_COLOUR
  return grid.astype(np.uint8)


def extent(tokens, xp):
  """Height and width of the grid at the origin of a canvas [S].

  `xp` is numpy or jax.numpy.
  """
  size = math.isqrt(len(tokens))
  is_other = ~is_colour(tokens).reshape(size, size)
  # How many tokens in the rectangle from the origin to each cell are not
  # colours. In row-major order the first maximum has the fewest rows.
  others = xp.cumsum(xp.cumsum(is_other, axis=0), axis=1)
  sides = np.arange(1, size + 1)
  areas = xp.where(others == 0, sides[:, None] * sides[None, :], 0)
  last = xp.argmax(areas)
  is_empty = is_other[0, 0]
  return (
    xp.where(is_empty, 0, last // size + 1),
    xp.where(is_empty, 0, last % size + 1),
  )


def is_colour(tokens):
  """Which tokens are colours."""
  return (tokens >= FIRST_COLOUR) & (tokens < FIRST_COLOUR + NUM_COLOURS)


def parse(text: str, *, size: int) -> np.ndarray:
  """Reads a grid from JSON, or from rows of digits on lines or between `/`."""
  if text.lstrip().startswith("["):
    try:
      return encode(as_grid(json.loads(text)), size)
    except (ValueError, RecursionError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(f"the grid is not JSON: {error}.") from error
  lines = text.strip().replace("/", "\n").splitlines()
  rows = ["".join(line.split()) for line in lines]
  for number, row in enumerate(rows, 1):
    if not re.fullmatch("[0-9]*", row):
      raise UserError(
        f"row {number} of the grid is {row!r}; expected digits from 0 to 9, "
        "one a cell."
      )
  return encode(as_grid([[int(cell) for cell in row] for row in rows]), size)


def as_grid(rows) -> np.ndarray:
  """Checks JSON that should be a grid, and returns it as uint8 [h, w]."""
  if not isinstance(rows, list) or not all(isinstance(r, list) for r in rows):
    raise UserError(
      "expected a grid, a list of rows of colours, but got "
      f"{reprlib.repr(rows)}."
    )
  widths = {len(row) for row in rows}
  if len(widths) != 1 or 0 in widths:
    raise UserError(
      "a grid has rows of one length, 1 or more, but these have "
      f"{sorted(widths) or 'no rows'}."
    )
  for number, row in enumerate(rows, 1):
    for cell in row:
      if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
        raise UserError(
          f"row {number} of the grid holds {reprlib.repr(cell)}; expected "
          f"colours, whole numbers from 0 to {NUM_COLOURS - 1}."
        )
  return np.array(rows, np.uint8)


def render(tokens: np.ndarray) -> str:
  """Writes the decoded grid as rows of digits with `/` between them."""
  return "/".join("".join(map(str, row)) for row in decode(tokens).tolist())


def from_numbers(grid: np.ndarray) -> str:
  """The JSON of a task with one question, a grid [h, w] of colours."""
  return json.dumps({"test": [{"input": grid.tolist()}]})


def style(character: str, given: str) -> str:
  """The rich style of a cell; digits are black on light colours."""
  del given
  if not character.isdigit():
    return "#000000 on #8080c0"
  colour = COLOURS[int(character)]
  light = np.dot(list(bytes.fromhex(colour[1:])), [0.299, 0.587, 0.114])
  return f"{'#000000' if light > 128 else '#ffffff'} on {colour}"


def draw(axes, puzzle, answer=None, label=None) -> None:
  """Draws a puzzle or an answer; see `Task.draw`.

  A dashed outline shows the label's extent if the answer's differs; wrong
  cells are crossed out.
  """
  from matplotlib import colors, patheffects  # slow to import

  grid = decode(puzzle if answer is None else answer)
  height, width = grid.shape
  axes.pcolormesh(
    grid, cmap=colors.ListedColormap(COLOURS), vmin=0, vmax=NUM_COLOURS - 1,
    edgecolors="#555555", linewidth=0.3,
  )  # fmt: skip
  # White on black is visible on every colour and outside the grid.
  outlined = [patheffects.withStroke(linewidth=3, foreground="black")]
  if answer is not None and label is not None and np.any(label):
    right = decode(label)
    is_wrong = np.ones(grid.shape, bool)
    both = tuple(map(slice, np.minimum(grid.shape, right.shape)))
    is_wrong[both] = grid[both] != right[both]
    rows, columns = np.nonzero(is_wrong)
    height, width = np.maximum(grid.shape, right.shape)
    cell_points = 72 * axes.bbox.width / axes.figure.dpi / max(height, width)
    axes.plot(
      columns + 0.5, rows + 0.5, "x", color="white",
      ms=min(cell_points / 2, 16), path_effects=outlined,
    )  # fmt: skip
    if grid.shape != right.shape:
      bottom, end = right.shape
      axes.plot(
        [0, end, end, 0, 0], [0, 0, bottom, bottom, 0], "--", color="white",
        path_effects=outlined, clip_on=False,
      )  # fmt: skip
  axes.set(xlim=(0, max(width, 1)), ylim=(max(height, 1), 0), aspect="equal")
  axes.axis("off")
