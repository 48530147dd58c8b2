"""The copies of an ARC task: which colour permutations, which symmetries.

A copy is a few bytes that say how the original is to be shown, and the device
shows it so when it is needed; a dataset of a million copies stays small.

Two copies that look alike are one. To tell, each candidate gets a 64-bit hash
of all the pairs that it would show, without showing any: the hash of a grid is
a sum over its cells, so the cells of each colour can be summed beforehand,
once for each symmetry of the square, and a permutation of the colours only
puts these sums together in another way. All colours count, black too, so grids
of different shapes have sums over different cells.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from trm_jax.data import dihedral
from trm_jax.data.arc.files import ArcTask, Pair
from trm_jax.data.arc.grids import IDENTITY, MAX_SIZE, NUM_COLOURS

# As in the reference: candidates drawn for each copy that is wanted.
_TRIALS = 5

# Candidates drawn together. Always so many, so that fewer copies are the first
# of more; another number gives other copies.
_CHUNK = 512

# What the hash is made of; its values have no effect on the copies, as long as
# grids that differ have hashes that differ. Any seed does.
_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
  return _RANDOM.integers(0, 2**64, shape, np.uint64)


# A number for each cell of an input and of an output, and for each colour.
_CELLS = _numbers(2, MAX_SIZE, MAX_SIZE)
_COLOURS = _numbers(NUM_COLOURS)


def symmetries(task: ArcTask, num_aug: int, seed: int) -> np.ndarray:
  """Draws the copies of a task, uint8 [1 + copies, 11], the identity first.

  As in the reference: the symmetry of the square is uniform over all eight,
  the colours 1 to 9 are permuted, and colour 0 stays. A candidate is dropped
  if it shows the same pairs as the original or as a copy before it: the same
  inputs with the same outputs, in any order, training and test pairs together.
  The draws depend on the seed and on the name of the task alone. There are
  less than `num_aug` copies if `5 * num_aug` candidates do not hold so many.
  """
  digest = hashlib.sha256(task.name.encode()).digest()
  rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
  sums = _colour_sums(task.train + task.test)
  rows = IDENTITY[None]
  hashes = _hashes(sums, rows)
  for begin in range(0, _TRIALS * num_aug, _CHUNK):
    drawn = _draw(rng)[: _TRIALS * num_aug - begin]
    rows = np.concatenate([rows, drawn])
    hashes = np.concatenate([hashes, _hashes(sums, drawn)])
    _, first = np.unique(hashes, return_index=True)
    first.sort()
    rows, hashes = rows[first], hashes[first]
    if len(rows) > num_aug:
      break
  return rows[: num_aug + 1]


def _draw(rng: np.random.Generator) -> np.ndarray:
  """Draws candidates, uint8 [_CHUNK, 11]."""
  drawn = np.tile(IDENTITY, (_CHUNK, 1))
  drawn[:, 0] = rng.integers(0, 8, _CHUNK)
  drawn[:, 2:] = rng.permuted(drawn[:, 2:], axis=1)
  return drawn


def _hashes(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Hashes what copies, uint8 [N, 11], show: uint64 [N], by `_colour_sums`."""
  square, colours = rows[:, 0], rows[:, 1:]
  pairs = np.einsum("npc,nc->np", sums[square], _COLOURS[colours])
  # Pairs are mixed before they are added up, or outputs could trade places
  # unnoticed; they are added, not xor-ed, as equal pairs would cancel.
  return _mix(pairs).sum(1, dtype=np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
  """The finalizer of splitmix64: a bijection that mixes all bits."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _colour_sums(pairs: Sequence[Pair]) -> np.ndarray:
  """Sums the numbers of the cells of each colour.

  Returns:
    uint64 [8, P, 10], for each symmetry of the square, pair and colour.
  """
  sums = np.zeros((8, len(pairs), NUM_COLOURS), np.uint64)
  for number, pair in enumerate(pairs):
    for role, grid in enumerate(pair):
      if grid is not None:
        is_colour = grid.reshape(-1, 1) == np.arange(NUM_COLOURS)
        cells = _numbers_in_images(role, *grid.shape)
        sums[:, number] += cells @ is_colour.astype(np.uint64)
  return sums


@functools.lru_cache(maxsize=256)
def _numbers_in_images(role: int, height: int, width: int) -> np.ndarray:
  """The numbers of the places where the cells of a grid are in its images.

  Of an input (role 0) or an output (1), uint64 [8, height * width].
  """
  grid = np.arange(height * width).reshape(height, width)
  cells = np.empty((8, height * width), np.uint64)
  for square, image in enumerate(dihedral.images(grid)):
    rows, columns = image.shape
    cells[square, image] = _CELLS[role, :rows, :columns]
  return cells
