"""Symmetries of ARC grids and their augmentation, in pure JAX.

A symmetry is uint8 [11], as in the reference: the number of a symmetry of the
square (see `dihedral`), then the image of each colour. The two parts commute.
Grids are decoded at the canvas's origin (`grids.decode`); other tokens are
dropped.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data.arc import grids
from trm_jax.data.dihedral import DIHEDRAL_INVERSE, DIHEDRAL_NAMES
from trm_jax.data.task import Symmetry

# How each symmetry of the square maps (row, column) of its image to the
# original: some swap the two, then some count rows or columns from the far end.
_SWAPS = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
_FLIPS_ROWS = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
_FLIPS_COLUMNS = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
_INVERSE = np.array(DIHEDRAL_INVERSE, np.uint8)


def _sample_copy(key, inputs, labels):
  """A random symmetry: of the square, and of colours 1 to 9."""
  del inputs, labels
  square, colours = jax.random.split(key)
  order = jnp.argsort(
    jax.random.bits(colours, (grids.NUM_COLOURS - 1,), jnp.uint32)
  )
  number = jax.random.randint(square, (1,), 0, 8, jnp.int32)
  copy = jnp.concatenate([number, jnp.zeros(1, order.dtype), order + 1])
  return copy.astype(jnp.uint8)


def transform(symmetry: jax.Array, tokens: jax.Array) -> jax.Array:
  """The image of the grid of tokens [S] under a symmetry, uint8 [11]."""
  size = math.isqrt(len(tokens))
  height, width = grids.extent(tokens, jnp)
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
    colour = jnp.clip(cells.astype(jnp.int32) - grids.FIRST_COLOUR, 0, 9)
    return colours[colour] + grids.FIRST_COLOUR

  return _place(read, (image_height, image_width), (0, 0), size, tokens.dtype)


def undo(symmetry: jax.Array, tokens: jax.Array) -> jax.Array:
  """The inverse of `transform`: maps an answer to a copy to the original."""
  return transform(inverse(symmetry), tokens)


def inverse(symmetry):
  """The inverses of symmetries, uint8 [..., 11], of numpy or JAX."""
  xp = symmetry.__array_namespace__()
  square = xp.asarray(_INVERSE)[symmetry[..., :1]]
  colours = xp.argsort(symmetry[..., 1:], axis=-1).astype(xp.uint8)
  return xp.concatenate([square, colours], axis=-1)


def _describe(symmetry: np.ndarray) -> str:
  square, *colours = symmetry.tolist()
  return f"{DIHEDRAL_NAMES[square]}\ncolours {''.join(map(str, colours))}"


def _sample_offset(key, inputs, labels):
  """A random (row, column) that keeps both grids on the canvas."""
  size = math.isqrt(len(inputs))
  largest = jnp.maximum(
    jnp.stack(_box(inputs, size)[2:]), jnp.stack(_box(labels, size)[2:])
  )
  return jax.random.randint(key, (2,), 0, size - largest + 1, jnp.int32)


def _translate(offset, tokens):
  """Moves the grid on a canvas [S] to an offset; all 0 stays all 0."""
  size = math.isqrt(len(tokens))
  top, left, *extent = _box(tokens, size)

  def read(rows, columns):
    return tokens[_cell(rows + top, columns + left, size)]

  return _place(read, extent, offset, size, tokens.dtype)


def _box(tokens, size):
  """Top, left, height and width of the only grid on a canvas [S]."""
  is_colour = grids.is_colour(tokens).reshape(size, size)
  rows, columns = is_colour.any(axis=1), is_colour.any(axis=0)
  return jnp.argmax(rows), jnp.argmax(columns), rows.sum(), columns.sum()


def _cell(rows, columns, size):
  """Indices of cells; those off the canvas are clipped onto it."""
  return jnp.clip(rows, 0, size - 1) * size + jnp.clip(columns, 0, size - 1)


def _place(read, extent, offset, size, dtype):
  """Puts a grid and its EOS on an empty canvas, tokens [S].

  `read(rows [S], columns [S])` returns the tokens of the grid's cells, with any
  values outside of it; `extent` is its height and width, and `offset` the row
  and column of its first cell.
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
    jnp.where(is_end, grids.EOS, grids.PAD).astype(dtype),
  )


COPIES = Symmetry(_sample_copy, transform, undo, describe=_describe)
TRANSLATION = Symmetry(_sample_offset, _translate)
