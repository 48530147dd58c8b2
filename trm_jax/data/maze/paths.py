"""Paths through mazes, on the host: in one maze, or in many at once."""

import functools
import math
from collections import deque

import numpy as np

from trm_jax.data.maze import grid
from trm_jax.errors import UserError

_COMPRESS_EVERY = 8  # steps between removals of finished mazes


def shortest_path(tokens: np.ndarray) -> np.ndarray:
  """The maze [L] with the cells of a shortest path turned to path.

  Most mazes have many shortest paths. This one is found by breadth-first
  search from the start that visits the neighbours below, left, right and above
  in this order. It reproduces every label of maze-30x30-hard-1k.

  Raises:
    UserError: there is no path from start to goal.
  """
  label = np.array(tokens, np.uint8)
  _, parents = search(label, grid.START)
  cell = parents[int((label == grid.GOAL).argmax())]
  if cell < 0:
    raise UserError("the maze has no way from 'S' to 'G'; open a wall.")
  while label[cell] != grid.START:
    label[cell] = grid.PATH
    cell = parents[cell]
  return label


def search(tokens: np.ndarray, source: int) -> tuple[list[int], list[int]]:
  """Searches a maze [L] breadth first, in the order of `shortest_path`.

  Returns:
    distances: steps from the token `source` to each cell, -1 for none.
    parents: the previous cell on the path to each cell, -1 for none.
  """
  near = _neighbours(math.isqrt(len(tokens)))
  first = int((tokens == source).argmax())
  is_new = (tokens != grid.WALL).tolist()
  distances, parents = [-1] * len(is_new), [-1] * len(is_new)
  is_new[first] = False
  distances[first] = 0
  queue = deque([first])
  while queue:
    cell = queue.popleft()
    for neighbour in near[cell]:
      if is_new[neighbour]:
        is_new[neighbour] = False
        distances[neighbour] = distances[cell] + 1
        parents[neighbour] = cell
        queue.append(neighbour)
  return distances, parents


@functools.cache
def _neighbours(size: int) -> list[list[int]]:
  """The existing cells below, left, right and above each cell."""
  steps = ((1, 0), (0, -1), (0, 1), (-1, 0))
  return [
    [
      (row + down) * size + column + right
      for down, right in steps
      if 0 <= row + down < size and 0 <= column + right < size
    ]
    for row in range(size)
    for column in range(size)
  ]


def far_cells(
  is_open: np.ndarray, start: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the cells `least` or more steps from the start, in many mazes.

  Returns:
    rows: int64 [M], the mazes that have such cells, in order.
    far: bool [M, L], these cells.
  """
  frontier, unseen = _pack(start), _pack(is_open & ~start)
  rows = np.arange(len(is_open))
  for count in range(1, least):
    frontier, unseen = _step(frontier, unseen)
    if count % _COMPRESS_EVERY == 0 or count == least - 1:
      is_active = frontier.any((0, 1))
      if 2 * is_active.sum() <= len(rows):
        frontier, unseen, rows = (
          array.compress(is_active, -1) for array in (frontier, unseen, rows)
        )
  far = np.zeros_like(frontier)
  while frontier.any():
    frontier, unseen = _step(frontier, unseen)
    far |= frontier
  found = far.any((0, 1))
  return rows[found], _unpack(far.compress(found, -1))


# Many mazes are searched as bits: uint32 [size, W, N], where bit b of word w
# is column 32 * w + b. N is last, for numpy's inner loops to run over it.


def _pack(cells):
  """Bool [N, L] -> uint32 [size, W, N]."""
  count, length = cells.shape
  size = math.isqrt(length)
  words = -(-size // 32)
  padded = np.zeros((count, size, 32 * words), bool)
  padded[..., :size] = cells.reshape(count, size, size)
  packed = np.packbits(padded, axis=-1, bitorder="little").view("<u4")
  return np.ascontiguousarray(packed.transpose(1, 2, 0))


def _unpack(bits):
  """The inverse of `_pack`."""
  size, _, count = bits.shape
  packed = np.ascontiguousarray(bits.transpose(2, 0, 1)).view(np.uint8)
  cells = np.unpackbits(packed, axis=-1, bitorder="little")
  return cells[..., :size].reshape(count, size * size).astype(bool)


def _step(frontier, unseen):
  """The unseen neighbours of the frontier, and the cells still unseen."""
  near = frontier << 1
  near |= frontier >> 1
  near[:, 1:] |= frontier[:, :-1] >> 31
  near[:, :-1] |= frontier[:, 1:] << 31
  near[1:] |= frontier[:-1]
  near[:-1] |= frontier[1:]
  near &= unseen
  return near, unseen ^ near
