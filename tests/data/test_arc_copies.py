import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from trm_jax.data.arc import copies, grids
from trm_jax.data.arc.files import ArcTask
from trm_jax.data.arc.symmetry import transform

SIZE = 6  # of the canvas, where grids are shown as the device shows them


def task_of(*pairs, name="task", train=1):
  pairs = tuple(
    tuple(None if grid is None else np.array(grid, np.uint8) for grid in pair)
    for pair in pairs
  )
  return ArcTask(name, pairs[:train], pairs[train:], "")


# Every symmetry of the square, of colours that are asked for or not.
ASYMMETRIC = task_of(([[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]), ([[1, 0]], [[2]]))
# Looks the same in rotations and reflections, and in 8! permutations of 9!.
PLAIN = task_of(([[1]], [[0, 0], [0, 0]]), ([[0]], [[1]]))
# Its two pairs trade places under half of the symmetries.
TRADING = task_of(([[1, 0]], [[2]]), ([[1], [0]], [[2]]))


@jax.jit
@jax.vmap
def _show(tokens, symmetry):
  return transform(symmetry, tokens)


def looks(task, symmetries):
  """What each copy shows, exactly: all its pairs, sorted."""
  shown = []
  for pair in task.train + task.test:
    grids_of_pair = []
    for grid in pair:
      if grid is None:
        grids_of_pair.append(None)
        continue
      tokens = np.tile(grids.encode(grid, SIZE), (len(symmetries), 1))
      grids_of_pair.append(np.asarray(_show(tokens, symmetries)))
    shown.append(grids_of_pair)
  return [
    tuple(
      sorted(
        tuple(b"" if grid is None else grid[row].tobytes() for grid in pair)
        for pair in shown
      )
    )
    for row in range(len(symmetries))
  ]


def first_of_each(task, symmetries):
  """Drops copies that look like one before, by comparing all that is shown."""
  seen, kept = set(), []
  for row, look in enumerate(looks(task, symmetries)):
    if look not in seen:
      seen.add(look)
      kept.append(row)
  return symmetries[kept]


def candidates(task, count, seed, monkeypatch):
  """The candidates that copies are chosen from, in order."""
  with monkeypatch.context() as patch:
    # A hash of its own for each: nothing is a duplicate.
    numbers = itertools.count()
    patch.setattr(
      copies,
      "_hashes",
      lambda sums, rows: np.array([next(numbers) for _ in rows], np.uint64),
    )
    return copies.symmetries(task, count, seed)


@pytest.mark.parametrize("task", [ASYMMETRIC, PLAIN, TRADING])
def test_duplicates_are_dropped_exactly(task, monkeypatch):
  drawn = candidates(task, 5 * 100, 0, monkeypatch)
  expected = first_of_each(task, drawn)[:101]
  assert (copies.symmetries(task, 100, 0) == expected).all()


def test_as_many_as_there_are():
  # Nine colours for the one that is seen.
  assert len(copies.symmetries(PLAIN, 100, 0)) == 9
  # As many times four rotations: the others make the same pairs, traded.
  trading = copies.symmetries(TRADING, 500, 0)
  assert len(trading) == 4 * 9 * 8 == len(set(looks(TRADING, trading)))
  assert len(copies.symmetries(ASYMMETRIC, 1000, 0)) == 1001


def test_no_more_trials_than_five_for_each_copy(monkeypatch):
  drawn = []
  hashes = copies._hashes
  monkeypatch.setattr(
    copies,
    "_hashes",
    lambda sums, rows: drawn.append(len(rows)) or hashes(sums, rows),
  )
  copies.symmetries(PLAIN, 200, 0)
  assert sum(drawn) == 1 + 5 * 200
  drawn.clear()
  copies.symmetries(ASYMMETRIC, 200, 0)
  assert sum(drawn) < 5 * 200


@pytest.mark.parametrize("task", [ASYMMETRIC, PLAIN, TRADING])
def test_the_original_comes_first(task):
  for count in (0, 1, 20):
    symmetries = copies.symmetries(task, count, 0)
    assert symmetries.dtype == np.uint8
    assert symmetries.shape == (min(count, 8 if task is PLAIN else 99) + 1, 11)
    assert (symmetries[0] == grids.IDENTITY).all()


def test_draws_are_uniform_and_leave_black_alone():
  symmetries = copies.symmetries(ASYMMETRIC, 4000, 0)[1:]
  assert not symmetries[:, 1].any()
  assert (np.sort(symmetries[:, 2:]) == np.arange(1, 10)).all()
  squares = np.bincount(symmetries[:, 0], minlength=8)
  assert (abs(squares - 500) < 110).all()  # five standard deviations
  for colour in range(1, 10):
    images = np.bincount(symmetries[:, 1 + colour], minlength=10)[1:]
    assert (abs(images - 4000 / 9) < 100).all()


def test_draws_depend_on_seed_and_name_alone():
  def draw(pairs=ASYMMETRIC.train, name="task", count=30, seed=0):
    return copies.symmetries(ArcTask(name, pairs, (), ""), count, seed)

  assert (draw() == draw()).all()
  assert (draw() != draw(seed=1)).any()
  assert (draw() != draw(name="other")).any()
  # Other pairs without duplicates, and fewer copies, change nothing else.
  other = task_of(([[9, 8, 7, 6, 5]], [[1, 2, 3, 4]])).train
  assert (draw() == draw(pairs=other)).all()
  assert (draw()[:11] == draw(count=10)).all()
  assert (draw(count=2000)[:31] == draw()).all()


GRIDS = st.integers(1, 3).flatmap(
  lambda width: st.lists(
    st.lists(st.integers(0, 2), min_size=width, max_size=width),
    min_size=1,
    max_size=3,
  )
)
TASKS = st.lists(
  st.tuples(GRIDS, st.one_of(GRIDS, st.none())), min_size=1, max_size=3
).map(lambda pairs: task_of(*pairs))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(TASKS)
def test_hashes_are_equal_when_copies_look_alike_and_only_then(task):
  squares = np.repeat(np.arange(8, dtype=np.uint8), 12)
  rng = np.random.default_rng(0)
  colours = rng.permuted(np.tile(np.arange(1, 5), (len(squares), 1)), axis=1)
  symmetries = np.tile(grids.IDENTITY, (len(squares), 1))
  symmetries[:, 0] = squares
  symmetries[:, 2:6] = colours
  sums = copies._colour_sums(task.train + task.test)
  hashes = copies._hashes(sums, symmetries).tolist()
  shown = looks(task, symmetries)
  assert len(set(zip(hashes, shown, strict=True))) == len(set(shown))
  assert len(set(hashes)) == len(set(shown))


def test_what_a_sum_over_cells_would_confuse():
  def hashed(*pairs):
    sums = copies._colour_sums(task_of(*pairs).train + task_of(*pairs).test)
    return copies._hashes(sums, grids.IDENTITY[None]).item()

  a, b, c, d = [[1, 2]], [[3]], [[4, 4]], [[5]]
  distinct = [
    [(a, b), (c, d)],
    [(a, d), (c, b)],  # outputs trade places
    [(b, a), (d, c)],  # inputs and outputs trade places
    [(a, b), (a, b)],
    [(c, d), (c, d)],
    [(a, b)],
    [(a, None)],
    [(a, b), (a, b), (a, b)],
    [([[1], [2]], b)],  # the same cells in another shape
    [([[0]], b)],
    [([[0, 0]], b)],
    [([[0], [0]], b)],
  ]
  assert len({hashed(*pairs) for pairs in distinct}) == len(distinct)
  assert hashed((a, b), (c, d)) == hashed((c, d), (a, b))
