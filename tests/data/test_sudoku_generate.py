import csv
import itertools
import pathlib

import numpy as np
import pytest

from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.solver import solve
from trm_jax.errors import UserError

SAMPLE = pathlib.Path(__file__).parent.parent / "recorded" / "sudoku_sample.csv"


@pytest.fixture(scope="module")
def sample():
  with open(SAMPLE, newline="") as file:
    rows = list(csv.DictReader(file))
  return [
    np.stack([board.parse(row[column], size=9) for row in rows])
    for column in ("question", "answer")
  ]


def count_by_trial(puzzle):
  """Counts the solutions of a 4x4 puzzle by trying every grid."""
  units = [set(unit) for unit in board.units(4).tolist()]

  def fill(grid):
    if 1 not in grid:
      return 1
    cell = grid.index(1)
    seen = {grid[c] for unit in units if cell in unit for c in unit}
    total = 0
    for token in set(range(2, 6)) - seen:
      total += fill([*grid[:cell], token, *grid[cell + 1 :]])
    return total

  return fill(puzzle.tolist())


def test_solver_solves_real_puzzles(sample):
  for question, answer in zip(*sample, strict=True):
    result = solve(question)
    assert result.solutions == 1
    assert (result.answer == answer).all()


def test_solver_counts_like_trial_and_error():
  inputs, *_ = generate(4, 10, 1, givens=(4, 6))
  for puzzle, extra in itertools.product(inputs, (0, 1, 2)):
    puzzle = puzzle.copy()
    puzzle[np.flatnonzero(puzzle > 1)[:extra]] = 1
    assert solve(puzzle, limit=10**6).solutions == count_by_trial(puzzle)
  assert solve(np.ones(16, np.uint8), limit=10**6).solutions == 288


def test_solver_sees_contradictions():
  puzzle = np.ones(16, np.uint8)
  puzzle[:2] = 2  # the same digit twice in a row
  assert solve(puzzle).solutions == 0
  assert solve(puzzle).answer is None


def test_rating_counts_guesses(sample):
  assert solve(board.parse("123434122143432.", size=4)).guesses == 0
  assert solve(np.ones(16, np.uint8), limit=1).guesses > 0
  ratings = [solve(question).guesses for question in sample[0]]
  assert min(ratings) == 0 and max(ratings) > 20


@pytest.mark.parametrize(
  ("size", "givens"), [(4, (4, 6)), (6, (9, 12)), (9, (24, 30))]
)
def test_generated_puzzles(size, givens):
  inputs, labels, ratings = generate(size, 30, 5, givens)
  assert inputs.dtype == labels.dtype == np.uint8
  assert ratings.dtype == np.int32
  assert board.solves(inputs, labels, size=size).all()
  count = (inputs > 1).sum(-1)
  assert count.min() >= givens[0] and count.max() <= givens[1]
  assert len({puzzle.tobytes() for puzzle in inputs}) == len(inputs)
  for puzzle, label, rating in zip(inputs, labels, ratings, strict=True):
    result = solve(puzzle)
    assert (result.solutions, result.guesses) == (1, rating)
    assert (result.answer == label).all()


def test_a_larger_count_extends_a_smaller_one():
  few, more = generate(6, 10, 2, (9, 12)), generate(6, 25, 2, (9, 12))
  for small, large in zip(few, more, strict=True):
    assert (small == large[:10]).all()
  other = generate(6, 10, 3, (9, 12))
  assert not (other[0] == few[0]).all()


def test_rating_range():
  *_, ratings = generate(6, 10, 0, (8, 12), rating=(1, 3))
  assert ratings.min() >= 1 and ratings.max() <= 3


@pytest.mark.parametrize("size", [4, 6])
def test_held_out_grids_are_not_training_grids(size):
  givens = {4: (4, 8), 6: (10, 14)}[size]
  _, labels, _ = generate(size, 200, 0, givens)
  _, held_labels, _ = generate(size, 100, 0, givens, held_out=True)
  grids = {label.tobytes() for label in labels}
  assert grids.isdisjoint(label.tobytes() for label in held_labels)
  if size == 4:  # of the 288 grids both shares are used well
    assert len(grids) > 100
    assert len({label.tobytes() for label in held_labels}) > 15


def test_avoided_grids_do_not_occur():
  _, labels, _ = generate(4, 20, 0, (4, 8))
  avoid = {label.tobytes() for label in labels}
  _, others, _ = generate(4, 20, 0, (4, 8), avoid=avoid)
  assert avoid.isdisjoint(label.tobytes() for label in others)


@pytest.mark.parametrize(
  ("size", "count", "givens", "rating"),
  [
    (4, 1, (4, 8), (3, 9)),  # 4x4 puzzles are solved by singles
    (9, 1, (10, 16), None),  # 17 givens are the fewest
    (4, 400, (16, 16), None),  # there are only 288 full grids
  ],
)
def test_infeasible_ranges_are_refused(size, count, givens, rating):
  with pytest.raises(UserError, match=r"givens=\("):
    generate(size, count, 0, givens, rating)
