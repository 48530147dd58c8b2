import itertools

import numpy as np
import pytest
from test_maze import copies

from trm_jax.data import dihedral
from trm_jax.data.maze import generate as maze_generate
from trm_jax.data.maze import grid, paths
from trm_jax.data.maze.generate import generate
from trm_jax.errors import UserError

DENSITY = (0.3, 0.5)


def make(size=8, count=40, seed=0, min_length=10, **changes):
  settings = {"wall_density": DENSITY, "min_length": min_length} | changes
  return generate(size, count, seed, **settings)


def count_shortest_paths(maze):
  """By the number of ways to each cell: shares nothing with the package."""
  size = round(len(maze) ** 0.5)
  goal = divmod(int((maze == grid.GOAL).argmax()), size)
  ways = {divmod(int((maze == grid.START).argmax()), size): 1}
  seen = set()
  while ways and goal not in ways:
    seen |= set(ways)
    after = {}
    for (i, j), number in ways.items():
      for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
        inside = 0 <= near[0] < size and 0 <= near[1] < size
        if inside and near not in seen and maze[near[0] * size + near[1]] != 1:
          after[near] = after.get(near, 0) + number
    ways = after
  return ways.get(goal, 0)


def names(mazes, size):
  return {dihedral.canonical(maze, size) for maze in mazes}


def test_the_counter_of_paths():
  for text, expected in (("S     G  ", 1), ("S       G", 6), ("S#   # #G", 0)):
    assert count_shortest_paths(grid.parse(text, size=3)) == expected


@pytest.mark.parametrize(
  ("size", "min_length"), [(3, 2), (8, 10), (12, 18), (33, 60)]
)
@pytest.mark.parametrize("unique", [False, True])
def test_generated_mazes(size, min_length, unique):
  inputs, labels, lengths = make(size, 30, 3, min_length, unique=unique)
  assert inputs.shape == labels.shape == (30, size * size)
  assert inputs.dtype == labels.dtype == np.uint8
  assert lengths.dtype == np.int32 and lengths.min() >= min_length
  assert ((labels == grid.PATH).sum(-1) + 2 == lengths).all()
  assert len(names(inputs, size)) == 30
  for maze, label in zip(inputs, labels, strict=True):
    assert sorted(set(maze)) in ([1, 2, 3, 4], [2, 3, 4])
    assert (maze == grid.START).sum() == (maze == grid.GOAL).sum() == 1
    assert (paths.shortest_path(maze) == label).all()
  found = np.array([count_shortest_paths(maze) for maze in inputs])
  if unique:
    assert (found == 1).all()
  else:
    assert (found >= 1).all()
    assert size == 3 or (found > 1).any()


def test_walling_off_other_paths_keeps_the_labels():
  (plain, plain_labels, _), (walled, labels, _) = make(), make(unique=True)
  assert ((labels == grid.PATH) == (plain_labels == grid.PATH)).all()
  changed = plain != walled
  assert (plain[changed] == grid.FREE).all()
  assert (walled[changed] == grid.WALL).all()
  assert changed.any()


def test_mazes_depend_on_the_seed_and_the_share():
  first = make()
  for again in (make(), [array[:40] for array in make(count=60)]):
    for one, other in zip(first, again, strict=True):
      assert (one == other).all()
  for other in (make(seed=1), make(held_out=True)):
    assert names(first[0], 8).isdisjoint(names(other[0], 8))


def test_avoided_mazes_do_not_occur_in_any_orientation():
  inputs, *_ = make(3, 60, min_length=2)
  images = copies(inputs, 3)
  others, *_ = make(3, 60, min_length=2, avoid=names(images[5::8], 3))
  for maze in others:
    assert not (images == maze).all(-1).any()


def test_density_of_walls_is_as_asked():
  for density in ((0.2, 0.2), (0.35, 0.35)):
    inputs, *_ = make(12, 300, min_length=4, wall_density=density)
    # Start and goal are free, and no way leads through very dense walls.
    assert abs((inputs == grid.WALL).mean() - density[0]) < 0.015
  open_, *_ = make(8, 5, min_length=12, wall_density=(0, 0))
  assert not (open_ == grid.WALL).any()


def test_start_and_goal_are_drawn_alike():
  rng = np.random.default_rng(0)
  draws = maze_generate._draws(3, (0, 0), 3, False, rng)
  count = np.zeros((9, 9), int)
  for maze, _ in itertools.islice(draws, 9000):
    count[(maze == grid.START).argmax(), (maze == grid.GOAL).argmax()] += 1
  rows, columns = np.divmod(np.arange(9), 3)
  distance = abs(rows[:, None] - rows) + abs(columns[:, None] - columns)
  may_be = distance >= 2
  expected = 1000 * may_be / may_be.sum(-1, keepdims=True)
  assert (abs(count - expected) <= 4 * expected**0.5).all()


def test_news_of_long_work(monkeypatch):
  heard = []
  monkeypatch.setattr(maze_generate, "_SECONDS_BETWEEN_NEWS", 0)
  make(count=5, say=heard.append)
  assert len(heard) == 4
  assert heard[0].startswith("1 of 5 mazes made, ")


def test_impossible_wishes_are_refused(monkeypatch):
  monkeypatch.setattr(maze_generate, "MAX_MISSES", 20_000)
  with pytest.raises(UserError, match=r"min_length=60.* no shortest path of"):
    make(min_length=60)
  with pytest.raises(UserError, match=r"wall_density=\(0.95, 0.99\)"):
    make(wall_density=(0.95, 0.99), min_length=20)
  # An empty board has few places for start and goal.
  with pytest.raises(UserError, match="after 1 of 2; ask for fewer mazes"):
    make(3, 2, min_length=5, wall_density=(0.0, 0.0))
