import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.data import batches
from trm_jax.data.batches import Table
from trm_jax.data.task import Split


def rows_table(n):
  """A table whose rows are groups of their own."""
  grid = np.zeros((n, 1), np.uint8)
  return jax.tree.map(jnp.asarray, Table.of(Split.of_rows(grid, grid)))


def grouped(copies, examples):
  """A table of groups with so many copies, and so many examples in each.

  Args:
    copies: puzzles of each group.
    examples: for each group, the number of examples of each of its puzzles.
  """
  counts = np.array([count for group in examples for count in group])
  total = counts.sum()
  split = Split(
    inputs=np.arange(total, dtype=np.uint8)[:, None],
    labels=np.zeros((total, 1), np.uint8),
    puzzle_ids=np.arange(1, len(counts) + 1, dtype=np.int32),
    first_puzzle=np.cumsum([0, *copies]).astype(np.int32),
    first_example=(np.cumsum(counts) - counts).astype(np.int32),
    num_examples=counts.astype(np.int32),
  )
  return split, jax.tree.map(jnp.asarray, Table.of(split))


def epoch_rows(seed, epoch, n):
  epoch = np.uint32(epoch)
  return np.asarray(batches.shuffled_row(seed, epoch, jnp.arange(n), n))


@pytest.mark.parametrize(
  "n", [1, 2, 3, 4, 5, 7, 9, 10, 17, 64, 81, 100, 101, 999, 1000, 65537]
)
def test_bijection(n):
  for seed, epoch in ((0, 0), (0, 1), (7, 2**32 - 1)):
    rows = epoch_rows(seed, epoch, n)
    assert rows.dtype == np.int32
    assert (np.sort(rows) == np.arange(n)).all()


def test_epochs_and_seeds_differ():
  orders = [epoch_rows(s, e, 1000) for s in range(3) for e in range(3)]
  for i, first in enumerate(orders):
    for second in orders[:i]:
      # Two random orders agree in one place on average.
      assert (first == second).sum() < 10


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_rows_are_uniform_over_epochs(n):
  epochs = 4000
  positions, numbers = jnp.arange(n), jnp.arange(epochs)[:, None]
  rows = np.asarray(batches.shuffled_row(3, numbers, positions, n))
  for position in {0, n // 2, n - 1}:
    observed = np.bincount(rows[:, position], minlength=n)
    expected = epochs / n
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < n - 1 + 5 * np.sqrt(2 * (n - 1))
  # ... and neighbours do not stay neighbours.
  steps = np.bincount((rows[:, 1] - rows[:, 0]) % n, minlength=n)[1:]
  expected = epochs / (n - 1)
  assert abs(steps - expected).max() < 6 * np.sqrt(expected) + 1


def test_every_order_of_three_rows_occurs_equally():
  numbers = jnp.arange(6000)[:, None]
  rows = np.asarray(batches.shuffled_row(0, numbers, jnp.arange(3), 3))
  _, counts = np.unique(rows, axis=0, return_counts=True)
  assert len(counts) == 6
  assert abs(counts - 1000).max() < 6 * np.sqrt(1000)


def test_takes_of_an_epoch_cover_each_row_once():
  n, batch = 103, 16
  table = rows_table(n)
  cursor, rows, epochs = batches.start(), [], []
  for _ in range(2 * n):
    draw = batches.take(cursor, jnp.arange(batch), 5, table)
    assert (draw.rows == draw.puzzles).all() and draw.anchored.all()
    rows += draw.rows.tolist()
    epochs += draw.epochs.tolist()
    cursor = batches.advance(cursor, batch, n)
    assert 0 <= int(cursor.position) < n
    if int(cursor.epoch) >= 3:
      break
  rows, epochs = np.array(rows), np.array(epochs)
  for epoch in range(3):
    assert sorted(rows[epochs == epoch]) == list(range(n))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 12345])
def test_advance_agrees_with_take(count):
  n = 10
  start = batches.Cursor(jnp.uint32(4), jnp.int32(7))
  ahead = batches.advance(start, count, n)
  assert (int(ahead.epoch), int(ahead.position)) == divmod(4 * n + 7 + count, n)
  offsets = jnp.arange(25)
  jax.tree.map(
    np.testing.assert_array_equal,
    batches.take(ahead, offsets, 1, rows_table(n)),
    batches.take(start, offsets + count, 1, rows_table(n)),
  )


def test_steps_add_up():
  one = many = batches.start()
  for count in (3, 100, 7, 2**30):
    one = batches.advance(one, count, 2**31 - 1)
  many = batches.advance(many, 110 + 2**30, 2**31 - 1)
  assert int(one.position) == int(many.position) == 110 + 2**30
  # The largest sum there is: it would overflow int32.
  last = batches.Cursor(jnp.uint32(0), jnp.int32(2**31 - 2))
  last = batches.advance(last, 2**31 - 1, 2**31 - 1)
  assert (int(last.epoch), int(last.position)) == (1, 2**31 - 2)


def test_jit_equals_eager_and_traces_the_cursor():
  cursor = batches.Cursor(jnp.uint32(2), jnp.int32(990))
  offsets = jnp.arange(32)
  for table in (rows_table(1000), grouped([2, 1], [[2, 2], [3]])[1]):
    eager = batches.take(cursor, offsets, 9, table)
    compiled = jax.jit(batches.take)(cursor, offsets, jnp.uint32(9), table)
    jax.tree.map(np.testing.assert_array_equal, compiled, eager)


# Groups of equal size take another way than groups of unequal size.
GROUPS = {
  "equal": ([3, 1, 2], [[2, 2, 2], [2], [2, 2]]),
  "unequal": ([3, 1, 2], [[2, 2, 2], [5], [1, 1]]),
  "uneven copies": ([2, 1], [[1, 4], [2]]),
  "one": ([4], [[3, 3, 3, 3]]),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("batch", [3, 50])
def test_a_pass_shows_one_copy_of_each_group_with_all_examples(name, batch):
  """As the reference samples: groups shuffled, one random copy of each."""
  copies, examples = GROUPS[name]
  split, table = grouped(copies, examples)
  passes, seen = 60, []
  cursor = batches.start()
  step = jax.jit(lambda cursor: batches.take(
    cursor, jnp.arange(batch), 3, table
  ))  # fmt: skip
  while int(cursor.epoch) < passes:
    draw = jax.device_get(step(cursor))
    seen.append(np.stack([draw.epochs, draw.puzzles, draw.rows, draw.anchored]))
    cursor = batches.advance(cursor, batch, table.num_rows)
  epochs, puzzles, rows, anchored = np.concatenate(seen, axis=1)
  group_of = np.repeat(np.arange(len(copies)), copies)
  shown = set()
  orders = set()
  for epoch in range(passes):
    mine = epochs == epoch
    assert mine.sum() == table.num_rows
    groups = group_of[puzzles[mine]]
    # Each group is shown in one piece.
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    assert sorted(groups[starts]) == list(range(len(copies)))
    orders.add(tuple(groups[starts]))
    for group in range(len(copies)):
      of_group = mine & (group_of[puzzles] == group)
      (puzzle,) = set(puzzles[of_group])
      count = split.num_examples[puzzle]
      own = split.first_example[puzzle] + np.arange(max(examples[group]))
      np.testing.assert_array_equal(
        rows[of_group],
        split.first_example[puzzle] + (own - own[0]) % count,
      )
      # One example of the copy stays where it is.
      assert len(set(rows[of_group & (anchored == 1)])) == 1
      shown.add(puzzle)
  assert shown == set(range(len(group_of)))  # every copy gets its turn
  assert len(orders) == {1: 1, 2: 2, 3: 6}[len(copies)]


def test_copies_and_anchors_are_drawn_evenly():
  _, table = grouped([4, 4], [[3] * 4, [3] * 4])
  batch = 6 * 2000
  draw = batches.take(batches.start(), jnp.arange(batch), 1, table)
  puzzles, anchored = np.asarray(draw.puzzles), np.asarray(draw.anchored)
  counts = np.bincount(puzzles, minlength=8) / 3
  assert abs(counts - 500).max() < 6 * np.sqrt(500)
  place = np.asarray(draw.rows)[anchored] % 3
  assert anchored.sum() == batch / 3
  assert abs(np.bincount(place) - batch / 9).max() < 6 * np.sqrt(batch / 9)


def test_a_table_says_what_a_pass_is():
  split, table = grouped([2, 1], [[1, 4], [2]])
  assert (table.num_groups, table.num_rows, table.equal_rows) == (2, 6, 0)
  even = dataclasses.replace(split, num_examples=np.array([2, 2, 2], np.int32))
  assert Table.of(even).equal_rows == 2


def test_large_tables():
  positions = jnp.arange(4096, dtype=jnp.int32) * 500_000
  rows = np.asarray(batches.shuffled_row(0, 0, positions, 2**31 - 1))
  assert (rows >= 0).all() and len(np.unique(rows)) == len(rows)
  assert abs(rows.mean() / 2**30 - 1) < 0.1
