"""The eight symmetries of a square grid, numbered as in the reference.

0 is the identity, 1 to 3 are anticlockwise rotations by 90, 180 and 270
degrees, 4 mirrors left to right, 5 top to bottom, 6 transposes, and 7 mirrors
in the other diagonal.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data.hashes import hash_rows
from trm_jax.data.task import Symmetry

# The number of each inverse.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)

DIHEDRAL_NAMES = (
  "as it is", "turned 90° left", "turned 180°", "turned 90° right",
  "mirrored left-right", "mirrored top-bottom", "transposed", "anti-transposed",
)  # fmt: skip


def images(grid: np.ndarray) -> list[np.ndarray]:
  """A grid of any shape under each of the symmetries."""
  turned = [np.rot90(grid, turns) for turns in range(4)]
  mirrored = [np.fliplr(grid), np.flipud(grid), grid.T]
  return [*turned, *mirrored, np.fliplr(turned[1])]


@functools.cache
def dihedral_cells(size: int) -> np.ndarray:
  """The source cells of images, int32 [8, size * size].

  Cell i of image k shows cell `[k, i]` of the original, in row-major order.
  """
  grid = np.arange(size * size, dtype=np.int32).reshape(size, size)
  table = np.stack(images(grid)).reshape(8, -1)
  table.setflags(write=False)  # cached, so shared by all callers
  return table


def symmetry(size: int) -> Symmetry:
  """The record of these symmetries; a sample is a number from 0 to 7."""

  def apply(number, tokens):
    return tokens[jnp.asarray(dihedral_cells(size))[number]]

  return Symmetry(
    sample=lambda key, inputs, labels: jax.random.randint(
      key, (), 0, 8, np.int32
    ),
    apply=apply,
    undo=lambda number, tokens: apply(
      jnp.asarray(DIHEDRAL_INVERSE)[number], tokens
    ),
    count=8,
    keys=keys,
  )


def keys(grids: np.ndarray) -> np.ndarray:
  """Hashes, uint64 [N], of square grids [N, S], equal for all images of one."""
  cells = dihedral_cells(math.isqrt(grids.shape[1]))
  return np.min([hash_rows(grids[:, image]) for image in cells], axis=0)


def canonical(grid: np.ndarray, size: int) -> bytes:
  """Bytes that are equal for all images of a grid, uint8 [size * size]."""
  return min(image.tobytes() for image in grid[dihedral_cells(size)])
