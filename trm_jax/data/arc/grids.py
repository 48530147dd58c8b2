"""ARC grids: tokens, symmetries, and drawing.

A grid of up to `size` x `size` cells stands on a square canvas of tokens:

    0  padding      1  the end of a row or a column      c + 2  colour c

Questions and answers stand at the canvas's origin, its top left; only
`translate` moves them. What a model puts on the canvas may be no grid at all,
so it is *decoded*: to the largest rectangle at the origin that holds only
colours, and of equally large ones to that with fewer rows.

Symmetries are those of the reference, as numbers: first one of the eight
symmetries of the square, then the image of each colour. The two commute.
"""

import functools
import json
import math
import re
import reprlib

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data import dihedral
from trm_jax.data import task as task_lib
from trm_jax.errors import UserError

PAD = 0
EOS = 1
FIRST_COLOUR = 2
NUM_COLOURS = 10

# The colours of the official testing interface.
COLOURS = (
  "#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
  "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip

IDENTITY = np.arange(-1, NUM_COLOURS).clip(0).astype(np.uint8)

# How the symmetries of the square, numbered as in `dihedral`, find the cell to
# show at (row, column) of a grid of any shape: some swap the two numbers, and
# then some count rows, or columns, from the far end.
_SWAPS = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
_FLIPS_ROWS = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
_FLIPS_COLUMNS = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
_INVERSE = np.array(dihedral.DIHEDRAL_INVERSE, np.uint8)


def encode(
  grid: np.ndarray, size: int = 30, row: int = 0, column: int = 0
) -> np.ndarray:
  """Puts a grid on a canvas.

  The cells below its last row and right of its last column become EOS where
  they are on the canvas; the corner between them stays padding.

  Args:
    grid: uint8 [h, w], colours from 0 to 9.
    size: cells along one side of the canvas.
    row: the canvas's row for the grid's first one.
    column: the canvas's column for the grid's first one.

  Returns:
    uint8 [size * size] tokens.

  Raises:
    UserError: the grid does not fit.
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
  """Reads the grid at the canvas's origin, the inverse of `encode`.

  Args:
    tokens: integers [S], S a square number; any values.

  Returns:
    uint8 [h, w]: of the rectangles at the origin that hold only colours the
    largest, of equally large ones that with fewer rows. It is empty, 0 x 0,
    where the first token is no colour.
  """
  tokens = np.asarray(tokens)
  height, width = _extent(tokens, np)
  size = math.isqrt(len(tokens))
  grid = tokens.reshape(size, size)[:height, :width] - FIRST_COLOUR
  return grid.astype(np.uint8)


def _extent(tokens, xp):
  """Height and width of the grid at the origin of a canvas [S]."""
  size = math.isqrt(len(tokens))
  is_other = ~_is_colour(tokens).reshape(size, size)
  # Others in the rectangle from the origin to each cell. In row-major order
  # the first of the largest rectangles has the fewest rows.
  others = xp.cumsum(xp.cumsum(is_other, axis=0), axis=1)
  sides = np.arange(1, size + 1)
  areas = xp.where(others == 0, sides[:, None] * sides[None, :], 0)
  last = xp.argmax(areas)
  is_empty = is_other[0, 0]
  return (
    xp.where(is_empty, 0, last // size + 1),
    xp.where(is_empty, 0, last % size + 1),
  )


def _is_colour(tokens):
  return (tokens >= FIRST_COLOUR) & (tokens < FIRST_COLOUR + NUM_COLOURS)


def transform(
  tokens: jax.Array, symmetry: jax.Array, *, size: int
) -> jax.Array:
  """Shows a grid under a symmetry, in pure JAX.

  Args:
    tokens: integers [S]. The grid is read from the origin as `decode` does,
      and what else is on the canvas is dropped.
    symmetry: uint8 [11]: a symmetry of the square, then the image of each
      colour.
    size: cells along one side of the canvas.

  Returns:
    The image at the origin, of the dtype of `tokens` [S].
  """
  height, width = _extent(tokens, jnp)
  square, colours = symmetry[0], symmetry[1:]
  swaps = jnp.asarray(_SWAPS)[square]
  image_height = jnp.where(swaps, width, height)
  image_width = jnp.where(swaps, height, width)

  def read(rows, columns):
    rows, columns = (
      jnp.where(swaps, columns, rows),
      jnp.where(swaps, rows, columns),
    )
    rows = jnp.where(jnp.asarray(_FLIPS_ROWS)[square], height - 1 - rows, rows)
    columns = jnp.where(
      jnp.asarray(_FLIPS_COLUMNS)[square], width - 1 - columns, columns
    )
    cells = tokens[_cell(rows, columns, size)]
    colour = jnp.clip(cells.astype(jnp.int32) - FIRST_COLOUR, 0, 9)
    return colours[colour] + FIRST_COLOUR

  return _place(read, (image_height, image_width), (0, 0), size, tokens.dtype)


def unview(tokens: jax.Array, symmetry: jax.Array, *, size: int) -> jax.Array:
  """Undoes `transform`: any answer to a copy, as an answer to the original.

  Args:
    tokens: integers [S].
    symmetry: uint8 [11], the copy's.
    size: cells along one side of the canvas.

  Returns:
    The decoded grid under the inverse symmetry, of the dtype of `tokens` [S].
  """
  return transform(tokens, inverse(symmetry), size=size)


def inverse(symmetry):
  """Returns the symmetries that undo these.

  Args:
    symmetry: uint8 [..., 11], of numpy or of JAX.

  Returns:
    uint8 [..., 11], of the same library.
  """
  xp = symmetry.__array_namespace__()
  square = xp.asarray(_INVERSE)[symmetry[..., :1]]
  colours = xp.argsort(symmetry[..., 1:], axis=-1).astype(xp.uint8)
  return xp.concatenate([square, colours], axis=-1)


def translate(
  key: jax.Array, inputs: jax.Array, labels: jax.Array, *, size: int
) -> tuple[jax.Array, jax.Array]:
  """Moves a question and its answer by the same random offset, in pure JAX.

  The offset is uniform over those that keep both grids on the canvas.

  Args:
    key: a typed PRNG key.
    inputs: integers [S], a grid with its EOS, anywhere on the canvas.
    labels: integers [S], a grid with its EOS at the same offset, or all 0
      where no solution is known.
    size: cells along one side of the canvas.

  Returns:
    `inputs` and `labels` moved. A label that is all 0 stays so.
  """
  top, left, *extent = _box(inputs, size)
  _, _, *label_extent = _box(labels, size)
  largest = jnp.maximum(jnp.stack(extent), jnp.stack(label_extent))
  row, column = jax.random.randint(key, (2,), 0, size - largest + 1)

  def move(tokens, extent):
    def read(rows, columns):
      return tokens[_cell(rows + top, columns + left, size)]

    return _place(read, extent, (row, column), size, tokens.dtype)

  return move(inputs, extent), move(labels, label_extent)


def _box(tokens, size):
  """Top, left, height and width of the one grid on a canvas [S]."""
  is_colour = _is_colour(tokens).reshape(size, size)
  rows, columns = is_colour.any(axis=1), is_colour.any(axis=0)
  return jnp.argmax(rows), jnp.argmax(columns), rows.sum(), columns.sum()


def _cell(rows, columns, size):
  """Numbers of cells; those off the canvas are moved onto it."""
  return jnp.clip(rows, 0, size - 1) * size + jnp.clip(columns, 0, size - 1)


def _place(read, extent, offset, size, dtype):
  """Puts a grid and its EOS on an empty canvas.

  Args:
    read: `(rows [S], columns [S]) -> tokens [S]` of the grid's cells; what it
      tells of cells outside of the grid is not used.
    extent: its height and width.
    offset: the row and column of its first cell.
    size: cells along one side of the canvas.
    dtype: of the tokens.

  Returns:
    Tokens [S].
  """
  cells = np.arange(size * size)
  rows, columns = cells // size - offset[0], cells % size - offset[1]
  height, width = extent
  in_rows = (rows >= 0) & (rows < height)
  in_columns = (columns >= 0) & (columns < width)
  is_end = (in_rows & (columns == width)) | (in_columns & (rows == height))
  return jnp.where(
    in_rows & in_columns,
    read(rows, columns).astype(dtype),
    jnp.where(is_end, EOS, PAD).astype(dtype),
  )


@functools.cache
def task(size: int = 30) -> task_lib.Task:
  """Describes ARC on one canvas; the same size gives the same object.

  Args:
    size: cells along one side of the canvas; 30 holds every official grid.

  Returns:
    The task.
  """
  return task_lib.Task(
    name="arc",
    seq_len=size * size,
    vocab_size=FIRST_COLOUR + NUM_COLOURS,
    augment=functools.partial(translate, size=size),
    parse=functools.partial(parse, size=size),
    render=render,
    draw=draw,
    view=functools.partial(transform, size=size),
    unview=functools.partial(unview, size=size),
    best_metric="pass@2",
  )


def parse(text: str, *, size: int) -> np.ndarray:
  """Reads a grid from text.

  Args:
    text: rows of digits, ended by line ends or by `/`; white space in a row
      is skipped. Or a list of lists of numbers in JSON.
    size: cells along one side of the canvas.

  Returns:
    uint8 [size * size] tokens.

  Raises:
    UserError: the text is no grid, or one too large for the canvas.
  """
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
  """Checks a grid of a JSON file.

  Args:
    rows: what should be a list of equally long lists of colours.

  Returns:
    uint8 [h, w].

  Raises:
    UserError: it is something else.
  """
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
  """Writes the grid that tokens decode to on one line.

  Args:
    tokens: integers [S].

  Returns:
    Its rows, digits, with `/` between; nothing for an empty grid. `parse`
    reads it back.
  """
  return "/".join("".join(map(str, row)) for row in decode(tokens).tolist())


def draw(axes, puzzle, answer=None, label=None) -> None:
  """Draws a puzzle, or the answer given to it, onto matplotlib axes.

  Where a label is known, its extent is outlined with dashes if the answer has
  another, and cells of the answer that are not as there are crossed out.

  Args:
    axes: the matplotlib `Axes` to draw on.
    puzzle: integers [S], the puzzle's tokens; drawn if there is no answer.
    answer: integers [S], the answer's tokens, or None.
    label: integers [S], the right answer; None or all 0 if it is not known.
  """
  from matplotlib import colors, patheffects  # slow; only pictures need them

  grid = decode(puzzle if answer is None else answer)
  height, width = grid.shape
  axes.pcolormesh(
    np.arange(width + 1),
    np.arange(height + 1),
    grid,
    cmap=colors.ListedColormap(COLOURS),
    vmin=0,
    vmax=NUM_COLOURS - 1,
    edgecolors="#555555",
    linewidth=0.3,
  )
  # White on black is seen on every colour, and where there is none.
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
      columns + 0.5,
      rows + 0.5,
      "x",
      color="white",
      markersize=min(cell_points / 2, 16),
      path_effects=outlined,
    )
    if grid.shape != right.shape:
      bottom, end = right.shape
      axes.plot(
        [0, end, end, 0, 0],
        [0, 0, bottom, bottom, 0],
        "--",
        color="white",
        path_effects=outlined,
        clip_on=False,
      )
  axes.set(xlim=(0, max(width, 1)), ylim=(max(height, 1), 0), aspect="equal")
  axes.axis("off")
