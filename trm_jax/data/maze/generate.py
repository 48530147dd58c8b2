"""Generates mazes whose goal is far from their start.

Cells are walls independently of each other. A start is drawn among the free
cells, then a goal among those that are far enough away. (maze-30x30-hard-1k
was probably made by drawing the goal among all free cells and rejecting near
ones. That takes some thirty times as many mazes, and prefers those with many
far cells; here each maze that has one is equally likely.)
"""

import time
from collections.abc import Callable, Collection, Iterator

import numpy as np

from trm_jax.data.dihedral import canonical
from trm_jax.data.maze import grid, paths
from trm_jax.errors import UserError

# The settings are infeasible after so many consecutive mazes (or cells, about a
# minute's work) without a cell that is far enough, or after so many consecutive
# mazes that are duplicates.
MAX_MISSES = 5_000_000
MAX_MISSED_CELLS = 2**32
MAX_REPEATS = 2_000

# Mazes drawn together, so few that their bits stay in the cache.
_BATCH = 8192
_BATCH_CELLS = 2**22

_SECONDS_BETWEEN_NEWS = 15


def generate(
  size: int,
  count: int,
  seed: int,
  *,
  wall_density: tuple[float, float],
  min_length: int,
  unique: bool = False,
  held_out: bool = False,
  avoid: Collection[bytes] = (),
  say: Callable[[str], None] = lambda text: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Generates different mazes, each with a shortest path.

  No two are images of each other under a rotation or reflection. A larger
  count extends a smaller one.

  Args:
    size: cells along one side of a maze.
    count: mazes to make.
    seed: the seed, 0 or more.
    wall_density: lowest and highest probability of a cell to be a wall; each
      maze draws its own, uniformly.
    min_length: least cells on a shortest path, including start and goal.
    unique: whether the label is the only shortest path. Cells on all others
      become walls, which makes the walls denser.
    held_out: selects another random stream.
    avoid: `dihedral.canonical` of mazes not to make.
    say: called now and then with the progress.

  Returns:
    inputs: uint8 [count, L] tokens of the mazes.
    labels: uint8 [count, L] tokens of the mazes with `paths.shortest_path`.
    ratings: int32 [count], cells on the path, including start and goal.

  Raises:
    UserError: a minute of drawing gave no maze with so long a path, or the
      last mazes were all duplicates.
  """
  seen = set(avoid)
  mazes = []
  repeats = 0
  begin = reported = time.monotonic()
  rng = np.random.default_rng([seed, int(held_out)])
  for maze, label in _draws(size, wall_density, min_length, unique, rng):
    key = canonical(maze, size)
    repeats = repeats + 1 if key in seen else 0
    if repeats == MAX_REPEATS:
      raise UserError(
        f"min_length={min_length}, wall_density={wall_density}: the last "
        f"{repeats:,} mazes of {size}x{size} were rotations or reflections of "
        f"earlier ones, after {len(mazes)} of {count}; ask for fewer mazes or "
        f"larger ones."
      )
    if repeats:
      continue
    seen.add(key)
    mazes.append((maze, label))
    if len(mazes) == count:
      break
    if time.monotonic() - reported > _SECONDS_BETWEEN_NEWS:
      reported = time.monotonic()
      left = (reported - begin) * (count / len(mazes) - 1)
      say(f"{len(mazes):,} of {count:,} mazes made, {left:.0f} s to go")
  inputs, labels = (np.stack(column) for column in zip(*mazes, strict=True))
  lengths = (labels == grid.PATH).sum(-1, dtype=np.int32) + 2
  return inputs, labels, lengths


def _draws(size, wall_density, min_length, unique, rng) -> Iterator[tuple]:
  """Yields (maze, label) of mazes with a goal far enough, endlessly."""
  batch = max(1, min(_BATCH, _BATCH_CELLS // size**2))
  most, misses = min(MAX_MISSES, MAX_MISSED_CELLS // size**2), 0
  while misses < most:
    mazes, far = _draw_batch(batch, size, wall_density, min_length, rng)
    misses = 0 if len(mazes) else misses + batch
    for maze, is_far in zip(mazes, far, strict=True):
      maze[rng.choice(np.flatnonzero(is_far))] = grid.GOAL
      yield _label(maze, unique)
  raise UserError(
    f"min_length={min_length}, wall_density={wall_density}: the last "
    f"{misses:,} mazes of {size}x{size} had no shortest path of {min_length} "
    f"cells; lower min_length, or try another wall_density."
  )


def _draw_batch(batch, size, wall_density, min_length, rng):
  """Mazes [M, L] without a goal, and cells possible for it, bool [M, L]."""
  noise = rng.random((batch, size * size), np.float32)
  is_free = noise >= rng.uniform(*wall_density, (batch, 1)).astype(np.float32)
  # The highest noise is at a free cell, and uniform over free cells.
  start = noise.argmax(-1)
  is_start = np.zeros_like(is_free)
  is_start[np.arange(batch), start] = True
  rows, far = paths.far_cells(is_free, is_start, min_length - 1)
  mazes = np.where(is_free[rows], grid.FREE, grid.WALL).astype(np.uint8)
  mazes[np.arange(len(rows)), start[rows]] = grid.START
  return mazes, far


def _label(maze: np.ndarray, unique: bool) -> tuple[np.ndarray, np.ndarray]:
  """Labels a maze; if `unique`, walls off all other shortest paths."""
  label = paths.shortest_path(maze)
  if unique:
    # A cell is on a shortest path if its distances add up to the length.
    steps = (label == grid.PATH).sum() + 1
    distances = [paths.search(maze, end)[0] for end in (grid.START, grid.GOAL)]
    other = (np.sum(distances, 0) == steps) & (label == grid.FREE)
    maze[other] = label[other] = grid.WALL
  return maze, label
