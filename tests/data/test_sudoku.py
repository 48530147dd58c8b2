import csv
import pathlib

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.errors import UserError

SIZES = (4, 6, 9)
SAMPLE = pathlib.Path(__file__).parent.parent / "recorded" / "sudoku_sample.csv"


def is_solution_by_sets(question, answer, size):
  """The rules on text, with sets: shares nothing with the package."""
  height, width = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
  digits = set("123456789"[:size])
  for row in range(size):
    if set(answer[row * size : (row + 1) * size]) != digits:
      return False
    if set(answer[row::size]) != digits:
      return False
  for top in range(0, size, height):
    for left in range(0, size, width):
      box = {
        answer[(top + i) * size + left + j]
        for i in range(height)
        for j in range(width)
      }
      if box != digits:
        return False
  return all(q in (".", a) for q, a in zip(question, answer, strict=True))


@pytest.fixture(scope="module")
def sample():
  with open(SAMPLE, newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def solved():
  return {
    size: generate(size, 3, 0, {4: (5, 8), 6: (12, 18), 9: (32, 40)}[size])[:2]
    for size in SIZES
  }


def test_tokens():
  tokens = board.parse("1234" + "." * 4 + "0" * 4 + "4321", size=4)
  assert tokens.dtype == np.uint8
  assert tokens.tolist() == [2, 3, 4, 5] + [1] * 8 + [5, 4, 3, 2]


@pytest.mark.parametrize("size", SIZES)
@hypothesis.given(data=st.data())
def test_parse_and_render_are_inverse(size, data):
  tokens = data.draw(
    st.lists(
      st.integers(1, size + 1), min_size=size * size, max_size=size * size
    )
  )
  text = board.render(np.array(tokens))
  assert board.parse(text, size=size).tolist() == tokens
  lines = "\n".join(text[i : i + size] for i in range(0, len(text), size))
  assert board.parse(lines, size=size).tolist() == tokens


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("1" * 15, "16 cells"),
    ("1" * 17, "17 characters"),
    ("1" * 6 + "5" + "1" * 9, "row 2, column 3"),
    ("1" * 15 + "y", "'y'"),
  ],
)
def test_parse_says_what_is_wrong(text, words):
  with pytest.raises(UserError, match=words):
    board.parse(text, size=4)


def test_render_marks_what_is_no_cell():
  assert board.render([0, 1, 2, 10, 11]) == "?.19?"


def test_tasks():
  for size in SIZES:
    task = sudoku_task(size)
    assert task is sudoku_task(size)
    assert hash(task) == hash(sudoku_task(size))
    assert (task.seq_len, task.vocab_size) == (size * size, size + 2)
  with pytest.raises(UserError, match=r"\[4, 6, 9\]"):
    sudoku_task(8)


def test_units_are_rows_columns_and_boxes():
  for size in SIZES:
    units = board.units(size)
    assert units.shape == (3 * size, size)
    assert (np.bincount(units.ravel()) == 3).all()
  assert board.units(6)[12].tolist() == [0, 1, 2, 6, 7, 8]


def test_real_rows_are_solved_by_their_answers(sample):
  task = sudoku_task(9)
  inputs = np.stack([task.parse(row["question"]) for row in sample])
  labels = np.stack([task.parse(row["answer"]) for row in sample])
  assert np.asarray(jax.jit(task.is_solution)(inputs, labels)).all()
  assert board.solves(inputs, labels, size=9).all()
  # Legal grids, but of other puzzles.
  assert not np.asarray(task.is_solution(inputs, np.roll(labels, 1, 0))).any()
  # A blank or a pad in the answer, or the question itself, is no solution.
  assert not board.solves(inputs, inputs, size=9).any()
  for token in (0, 1, 11, 12, 255):
    spoiled = labels.copy()
    spoiled[:, 40] = token
    assert not board.solves(inputs, spoiled, size=9).any()
    assert not np.asarray(task.is_solution(inputs, spoiled)).any()


@pytest.mark.parametrize("size", SIZES)
@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(data=st.data())
def test_verifier_agrees_with_sets(size, solved, data):
  inputs, labels = solved[size]
  row = data.draw(st.integers(0, len(labels) - 1))
  x, answer = inputs[row].copy(), labels[row].copy()
  cells = st.integers(0, size * size - 1)
  for _ in range(data.draw(st.integers(0, 2))):
    answer[data.draw(cells)] = data.draw(st.integers(2, size + 1))
  if data.draw(st.booleans()):  # a legal grid that breaks the givens
    order = np.array(data.draw(st.permutations(range(2, size + 2))))
    answer = order[answer - 2].astype(np.uint8)
  x[data.draw(cells)] = 1
  expected = is_solution_by_sets(board.render(x), board.render(answer), size)
  assert bool(sudoku_task(size).is_solution(x, answer)) == expected
  assert bool(board.solves(x, answer, size=size)) == expected


def test_draw(tmp_path, sample):
  puzzle = board.parse(sample[0]["question"], size=9)
  label = board.parse(sample[0]["answer"], size=9)
  answer = label.copy()
  wrong, right = np.flatnonzero(puzzle == 1)[:2]
  answer[wrong] = label[right] if label[right] != label[wrong] else 1
  from matplotlib import colors, figure

  axes = figure.Figure().add_subplot()
  board.draw(axes, puzzle, answer, label)
  seen = [colors.to_hex(text.get_color()) for text in axes.texts]
  givens = int((puzzle > 1).sum())
  assert seen.count(colors.to_hex("black")) == givens
  assert seen.count(colors.to_hex("tab:red")) == int(answer[wrong] > 1)
  assert seen.count(colors.to_hex("tab:blue")) == 80 - givens
  # Wrong cells are marked, blank or not.
  assert len(axes.collections) == 1
