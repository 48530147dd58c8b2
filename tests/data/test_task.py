import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.data.task import Split

EMPTY = np.array([], np.int64)


@st.composite
def splits(draw, vocab_size=7):
  """Random splits of 4-token examples.

  Where copies share the examples of their original they come with symmetries;
  otherwise every puzzle has examples of its own, one behind the other.
  """
  copies = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
  is_shared = draw(st.booleans())
  counts, first, end = [], [], 0
  for group_copies in copies:
    size = draw(st.integers(1, 3))
    for copy in range(group_copies):
      if not is_shared:
        size = draw(st.integers(1, 3))
      if copy == 0 or not is_shared:
        begin, end = end, end + size
      counts.append(size)
      first.append(begin)
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  num_puzzles = len(counts)
  return Split(
    inputs=rng.integers(0, vocab_size, (end, 4), np.uint8),
    labels=rng.integers(0, vocab_size, (end, 4), np.uint8),
    puzzle_ids=rng.permutation(num_puzzles).astype(np.int32) + np.int32(1),
    first_puzzle=np.cumsum([0, *copies], dtype=np.int32),
    first_example=np.array(first, np.int32),
    num_examples=np.array(counts, np.int32),
    symmetries=rng.integers(0, 256, (num_puzzles, 3), np.uint8)
    if is_shared
    else None,
    is_viewed=not is_shared,
    names=tuple(f"group {g}" for g in range(len(copies))),
  )


def puzzles_of(split, group):
  """What the puzzles of a group are, in plain Python."""
  return [
    {
      "id": int(split.puzzle_ids[q]),
      "symmetry": None
      if split.symmetries is None
      else split.symmetries[q].tolist(),
      "examples": [
        (split.inputs[n].tolist(), split.labels[n].tolist())
        for n in range(
          split.first_example[q],
          split.first_example[q] + split.num_examples[q],
        )
      ],
    }
    for q in range(split.first_puzzle[group], split.first_puzzle[group + 1])
  ]


def assert_same(left, right):
  for field in dataclasses.fields(Split):
    ours, theirs = getattr(left, field.name), getattr(right, field.name)
    if isinstance(ours, np.ndarray):
      assert ours.dtype == theirs.dtype, field.name
      np.testing.assert_array_equal(ours, theirs)
    else:
      assert ours == theirs, field.name


@hypothesis.settings(deadline=None)
@hypothesis.given(split=splits())
def test_rows_are_all_examples_of_all_puzzles_in_order(split):
  examples, puzzles = split.rows
  assert examples.dtype == puzzles.dtype == np.int64
  assert list(zip(examples.tolist(), puzzles.tolist(), strict=True)) == [
    (int(first) + place, puzzle)
    for puzzle, (first, count) in enumerate(
      zip(split.first_example, split.num_examples, strict=True)
    )
    for place in range(count)
  ]


def test_rows_of_shared_examples_repeat_them():
  split = Split(
    inputs=np.zeros((3, 4), np.uint8),
    labels=np.zeros((3, 4), np.uint8),
    puzzle_ids=np.array([1, 2, 3], np.int32),
    first_puzzle=np.array([0, 2, 3], np.int32),
    first_example=np.array([0, 0, 2], np.int32),
    num_examples=np.array([2, 2, 1], np.int32),
  )
  assert len(split) == 2
  examples, puzzles = split.rows
  assert examples.tolist() == [0, 1, 0, 1, 2]
  assert puzzles.tolist() == [0, 0, 1, 1, 2]


def test_rows_of_the_last_examples_that_int32_can_count():
  split = Split(
    inputs=np.broadcast_to(np.uint8(0), (2**31 - 1, 1)),
    labels=np.broadcast_to(np.uint8(0), (2**31 - 1, 1)),
    puzzle_ids=np.zeros(1, np.int32),
    first_puzzle=np.array([0, 1], np.int32),
    first_example=np.array([2**31 - 3], np.int32),
    num_examples=np.array([2], np.int32),
  )
  assert split.rows[0].tolist() == [2**31 - 3, 2**31 - 2]


@hypothesis.settings(deadline=None)
@hypothesis.given(split=splits(), data=st.data())
def test_take_keeps_the_puzzles_of_the_groups_asked_for(split, data):
  number = st.integers(0, len(split) - 1)
  groups = data.draw(st.lists(number, max_size=6))
  copies = data.draw(st.integers(0, 5))
  taken = split.take(np.array(groups, np.int64), copies)
  assert len(taken) == len(groups)
  assert taken.inputs is split.inputs and taken.labels is split.labels
  assert taken.is_viewed == split.is_viewed
  assert taken.names == tuple(split.names[g] for g in groups)
  for place, group in enumerate(groups):
    expected = puzzles_of(split, group)
    assert puzzles_of(taken, place) == expected[: copies or None]
  for name in ("puzzle_ids", "first_puzzle", "first_example", "num_examples"):
    assert getattr(taken, name).dtype == np.int32, name
  kept = len(taken.puzzle_ids)
  assert len(taken.first_example) == len(taken.num_examples) == kept
  assert taken.first_puzzle[0] == 0 and taken.first_puzzle[-1] == kept


@hypothesis.settings(deadline=None)
@hypothesis.given(split=splits(), data=st.data())
def test_taking_twice_is_taking_once(split, data):
  order = np.array(data.draw(st.permutations(range(len(split)))))
  count = data.draw(st.integers(0, len(split)))
  some = np.array(data.draw(st.permutations(range(len(split))))[:count], int)
  assert_same(split.take(order).take(some), split.take(order[some]))
  assert_same(split.take(np.arange(len(split))), split)
  assert_same(split.take(order, 1).take(some, 2), split.take(order[some], 1))


@hypothesis.settings(deadline=None)
@hypothesis.given(split=splits())
def test_rows_of_a_selection_are_those_of_the_whole(split):
  # Group by group, the rows of the parts are the rows of the whole.
  parts = [split.take(np.array([g])).rows[0] for g in range(len(split))]
  np.testing.assert_array_equal(np.concatenate(parts), split.rows[0])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_groups_may_be_of_any_integer_type(dtype):
  split = Split.of_rows(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))
  taken = split.take(np.array([3, 1], dtype))
  assert taken.first_example.tolist() == [3, 1]


def test_nothing_may_be_taken():
  split = Split.of_rows(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))
  for copies in (0, 1):
    nothing = split.take(EMPTY, copies)
    assert len(nothing) == 0
    assert [len(rows) for rows in nothing.rows] == [0, 0]
    assert_same(nothing.take(EMPTY), nothing)


def test_rows_as_a_split():
  inputs = np.arange(12, dtype=np.uint8).reshape(3, 4)
  labels = inputs + np.uint8(1)
  split = Split.of_rows(inputs, labels)
  assert len(split) == 3
  assert split.inputs is inputs and split.labels is labels
  assert not split.puzzle_ids.any() and not split.is_viewed
  assert split.symmetries is None and split.names == ()
  for rows in split.rows:
    assert rows.tolist() == [0, 1, 2]
  for name in ("puzzle_ids", "first_puzzle", "first_example", "num_examples"):
    assert getattr(split, name).dtype == np.int32, name
  taken = split.take(np.array([2, 2, 0]))
  np.testing.assert_array_equal(taken.inputs[taken.rows[0]], inputs[[2, 2, 0]])


def test_splits_and_tasks_are_frozen():
  task = sudoku_task(4)
  assert hash(task) == hash(dataclasses.replace(task))
  with pytest.raises(dataclasses.FrozenInstanceError):
    task.seq_len = 1
  split = Split.of_rows(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))
  with pytest.raises(dataclasses.FrozenInstanceError):
    split.inputs = None
