"""Draws the copies of an ARC task: colour permutations and square symmetries.

Copies that show the same pairs count once. To find them without transforming
any grid, each candidate gets a 64-bit hash of all pairs it would show. The
hash of a grid is a sum over its cells, so the cells of each colour are summed
once per symmetry of the square; a permutation of the colours only changes the
factor of each sum. Black counts too, so the shape of a grid matters.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from trm_jax.data import dihedral
from trm_jax.data.arc.files import ArcTask, Pair
from trm_jax.data.arc.grids import IDENTITY, MAX_SIZE, NUM_COLOURS
from trm_jax.data.hashes import mix

# Candidates drawn per requested copy, as in the reference.
_TRIALS = 5

# Candidates drawn together. It is fixed, so that fewer copies are a prefix of
# more; another value gives other copies.
_CHUNK = 512

# Random factors of the hash: one per cell of an input and of an output, and one
# per colour. Any seed gives the same copies, unless different grids collide.
_RANDOM = np.random.default_rng(0)
_CELLS = _RANDOM.integers(0, 2**64, (2, MAX_SIZE, MAX_SIZE), np.uint64)
_COLOURS = _RANDOM.integers(0, 2**64, NUM_COLOURS, np.uint64)


def symmetries(task: ArcTask, num_aug: int, seed: int) -> np.ndarray:
  """Draws the copies of a task, uint8 [1 + copies, 11], the identity first.

  As in the reference, the symmetry of the square is uniform over all eight,
  colours 1 to 9 are permuted, and colour 0 stays. A candidate is dropped if it
  shows the same pairs, in any order, as the original or an earlier copy.
  The draws depend on the seed and the task's name only. At most `5 * num_aug`
  candidates are tried, so there may be fewer than `num_aug` copies.
  """
  digest = hashlib.sha256(task.name.encode()).digest()
  rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
  sums = _colour_sums(task.train + task.test)
  rows = IDENTITY[None]
  hashes = _hashes(sums, rows)
  for begin in range(0, _TRIALS * num_aug, _CHUNK):
    drawn = np.tile(IDENTITY, (_CHUNK, 1))
    drawn[:, 0] = rng.integers(0, 8, _CHUNK)
    drawn[:, 2:] = rng.permuted(drawn[:, 2:], axis=1)
    drawn = drawn[: _TRIALS * num_aug - begin]
    rows = np.concatenate([rows, drawn])
    hashes = np.concatenate([hashes, _hashes(sums, drawn)])
    _, first = np.unique(hashes, return_index=True)
    first.sort()
    rows, hashes = rows[first], hashes[first]
    if len(rows) > num_aug:
      break
  return rows[: num_aug + 1]


def _hashes(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Hashes the pairs that copies, uint8 [N, 11], show: uint64 [N]."""
  square, colours = rows[:, 0], rows[:, 1:]
  pairs = np.einsum("npc,nc->np", sums[square], _COLOURS[colours])
  # Mixed before the sum, or swapping the outputs of two pairs would not change
  # the hash; summed rather than xor-ed, which would cancel equal pairs.
  return mix(pairs).sum(1, dtype=np.uint64)


def _colour_sums(pairs: Sequence[Pair]) -> np.ndarray:
  """Sums the factors of the cells of each colour: uint64 [8, pairs, 10]."""
  sums = np.zeros((8, len(pairs), NUM_COLOURS), np.uint64)
  for number, pair in enumerate(pairs):
    for role, grid in enumerate(pair):
      if grid is not None:
        is_colour = grid.reshape(-1, 1) == np.arange(NUM_COLOURS)
        cells = _factors_in_images(role, *grid.shape)
        sums[:, number] += cells @ is_colour.astype(np.uint64)
  return sums


@functools.lru_cache(maxsize=256)
def _factors_in_images(role: int, height: int, width: int) -> np.ndarray:
  """The factors of a grid's cells in each of its images, uint64 [8, cells].

  The grid is an input (role 0) or an output (role 1).
  """
  grid = np.arange(height * width).reshape(height, width)
  cells = np.empty((8, height * width), np.uint64)
  for square, image in enumerate(dihedral.images(grid)):
    rows, columns = image.shape
    cells[square, image] = _CELLS[role, :rows, :columns]
  return cells
