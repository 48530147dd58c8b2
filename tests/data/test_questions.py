"""Puzzles are read in any form; what is no puzzle is told, not fatal."""

import io
import json

import hypothesis
import numpy as np
import pytest
from conftest import DATA
from hypothesis import strategies as st

from trm_jax.data import entries, questions
from trm_jax.data.arc import files, grids
from trm_jax.data.arc import questions as arc_questions
from trm_jax.data.arc.task import arc_task
from trm_jax.data.maze import generate as maze_generate
from trm_jax.data.maze.task import maze_task
from trm_jax.data.questions import Fault, Question
from trm_jax.data.sudoku import generate
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.errors import UserError

SUDOKU = sudoku_task(4)
MAZE = maze_task(6)
ARC = arc_task(30)
TASKS = {"sudoku": SUDOKU, "maze": MAZE, "arc": ARC}


def read(text, task, name="here/there.txt"):
  data = text if isinstance(text, bytes) else text.encode()
  return questions.read(io.BytesIO(data), task, name)


def tokens(found):
  assert all(isinstance(item, Question) for item in found), found
  return np.stack([item.tokens for item in found])


def wrapped(text, side):
  return "\n".join(text[row : row + side] for row in range(0, len(text), side))


@pytest.fixture(scope="module")
def sudoku():
  inputs, labels, _ = generate.generate(4, 5, seed=0, givens=(5, 8))
  return inputs, labels


@pytest.fixture(scope="module")
def mazes():
  inputs, labels, _ = maze_generate.generate(
    6, 4, 0, wall_density=(0.2, 0.4), min_length=4, unique=False
  )
  return inputs, labels


# Sudoku.


def test_sudoku_a_line(sudoku):
  inputs, _ = sudoku
  lines = [SUDOKU.render(row) for row in inputs]
  lines[1] = lines[1].replace(".", "0")
  lines[2] = " " + " ".join(lines[2]) + "\r"
  text = "\ufeff# easy ones\n\n" + "\n".join(lines)
  found = read(text, SUDOKU)
  np.testing.assert_array_equal(tokens(found), inputs)
  assert [item.line for item in found] == [3, 4, 5, 6, 7]
  assert found[0].name == "line 3" and found[0].label is None
  assert found[0].tokens.dtype == np.uint8


def test_what_is_no_puzzle_does_not_hide_the_others(sudoku):
  good = SUDOKU.render(sudoku[0][0])
  found = read(
    b"\n".join([
      good.encode(), b"12", b"5" + b"." * 15, b"\xff\xfe", b"1\0" + b"." * 14,
      b"x" * 2_000_000, b"\x1b[31m", good.encode(),
    ]),
    SUDOKU,
  )  # fmt: skip
  assert [type(item) for item in found] == [Question] + [Fault] * 6 + [Question]
  faults = found[1:-1]
  assert [item.line for item in faults] == list(range(2, 8))
  for fault, told in zip(
    faults,
    (
      "has 2 characters",
      "holds '5'",
      "no Sudoku",
      "x00",
      "more than",
      "no Sudoku",
    ),
    strict=True,
  ):
    assert told in fault.message
  for fault in faults:
    assert fault.text.isprintable() and len(fault.text) < 70
    assert fault.message.isprintable() and len(fault.message) < 310


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("1..1" + "." * 12, "row 1 has two 1s"),
    ("...3" + "." * 8 + "...3", "column 4 has two 3s"),
    ("." * 8 + "2...." + "2..", "box 3 has two 2s"),
  ],
)
def test_givens_may_not_break_the_rules(text, told):
  (fault,) = read(text, SUDOKU)
  assert isinstance(fault, Fault) and told in fault.message


def test_csv_with_and_without_answers(sudoku):
  inputs, labels = sudoku
  rows = [
    (SUDOKU.render(question), SUDOKU.render(label))
    for question, label in zip(inputs, labels, strict=True)
  ]
  full = "source,question,answer,rating\n" + "".join(
    f'"a, b",{question},{answer},3\n' for question, answer in rows
  )
  found = read(full, SUDOKU)
  np.testing.assert_array_equal(tokens(found), inputs)
  np.testing.assert_array_equal([item.label for item in found], labels)
  assert [item.line for item in found] == [2, 3, 4, 5, 6]
  found = read("Question\n" + "\n".join(q for q, _ in rows), SUDOKU)
  np.testing.assert_array_equal(tokens(found), inputs)
  assert all(item.label is None for item in found)


def test_answers_must_solve_their_questions(sudoku):
  (first, second, *_), (right, _, other, *_) = sudoku
  text = "answer,question\n" + "\n".join(
    f"{SUDOKU.render(answer)},{SUDOKU.render(question)}"
    for answer, question in ((right, first), (other, second), ([], first))
  )
  text += '\n"unclosed\n1,2,3\n'
  solved, wrong, unknown, unclosed, long = read(text, SUDOKU)
  assert (solved.label == right).all()
  assert "does not solve it" in wrong.message and wrong.line == 3
  assert unknown.label is None
  assert "csv" in unclosed.message
  assert "3 columns; expected 2" in long.message


# Mazes.


@pytest.mark.parametrize("gap", ["\n", "\n\n", "\r\n\r\n\r\n"])
def test_mazes_of_lines(mazes, gap):
  blocks = [wrapped(MAZE.render(row), 6) for row in mazes[0]]
  found = read(gap.join(blocks) + "\n", MAZE)
  np.testing.assert_array_equal(tokens(found), mazes[0])
  step = 5 + gap.count("\n")
  assert [item.line for item in found] == [1 + step * k for k in range(4)]


def test_mazes_a_line_and_mixed(mazes):
  one, two, three, four = (MAZE.render(row) for row in mazes[0])
  text = "\n".join([one, wrapped(two, 6), three, "", wrapped(four, 6)])
  found = read(text, MAZE)
  np.testing.assert_array_equal(tokens(found), mazes[0])
  assert [item.line for item in found] == [1, 2, 8, 10]


def test_mazes_of_csv(mazes):
  rows = [
    f"x,{MAZE.render(question)},{MAZE.render(answer)},1"
    for question, answer in zip(*mazes, strict=True)
  ]
  rows.append(f"x,{MAZE.render(mazes[0][0])},{MAZE.render(mazes[0][0])},1")
  *found, wrong = read(
    "source,question,answer,rating\n" + "\n".join(rows), MAZE
  )
  np.testing.assert_array_equal(tokens(found), mazes[0])
  np.testing.assert_array_equal([item.label for item in found], mazes[1])
  assert "does not solve it" in wrong.message


def test_faults_of_mazes(mazes):
  good = wrapped(MAZE.render(mazes[0][0]), 6)
  walled = wrapped("S#    ##    " + "      " * 3 + "     G", 6)
  marked = wrapped("So   G" + "      " * 5, 6)
  short = good[:-8]
  found = read("\n\n".join([walled, good, marked, short, good]), MAZE)
  kinds = [type(item) for item in found]
  assert kinds == [Fault, Question, Fault, Fault, Question]
  assert [item.line for item in found] == [1, 8, 15, 22, 28]
  for place, told in ((0, "no way"), (2, "bare maze"), (3, "5 lines")):
    assert told in found[place].message


# ARC.


def arc_pair(question, answer=None):
  known = {} if answer is None else {"output": answer}
  return {"input": question} | known


def test_arc_tasks_and_challenges_hold_the_same():
  task = {
    "train": [arc_pair([[1]], [[2]])],
    "test": [arc_pair([[1, 2], [3, 4]], [[5]]), arc_pair([[0]])],
  }
  single = read(json.dumps(task), ARC, "folder/007bbfb7.json")
  many = read(json.dumps({"007bbfb7": task, "b": task}), ARC)
  assert [item.name for item in single] == ["007bbfb7_0", "007bbfb7_1"]
  assert [item.name for item in many[2:]] == ["b_0", "b_1"]
  np.testing.assert_array_equal(tokens(single), tokens(many[:2]))
  assert ARC.render(single[0].tokens) == "12/34"
  assert ARC.render(single[0].label) == "5"
  assert single[1].label is None and single[1].line == 0


def test_challenges_are_read_as_datasets_are():
  path = DATA / "arc" / "arc_evaluation_challenges.json"
  found = {item.name: item for item in read(path.read_bytes(), ARC)}
  expected = {
    f"{task.name}_{number}": question.tolist()
    for task in files.read(str(path))
    for number, (question, _) in enumerate(task.test)
  }
  grid = {name: grids.decode(item.tokens) for name, item in found.items()}
  assert {name: cells.tolist() for name, cells in grid.items()} == expected


def test_faults_of_arc():
  good = arc_pair([[1]])
  content = {
    "a": {"test": [good, arc_pair([[10]]), arc_pair([[1], [1, 2]]), 7]},
    "b": {"test": []},
    "c": [1],
    "\x1b[31m": {"test": [good]},
    "d": {"test": [arc_pair([[1] * 31]), arc_pair([[1]], [])]},
    "e": {"test": [good]},
  }
  found = read(json.dumps(content), ARC)
  names = [item.name for item in found if isinstance(item, Question)]
  assert names == ["a_0", "e_0"]
  faults = [item for item in found if isinstance(item, Fault)]
  told = ["holds 10", "one length", "'input'", "list 'test'", "list 'test'",
          "not a name", "does not fit", "no rows"]  # fmt: skip
  for fault, expected in zip(faults, told, strict=True):
    assert expected in fault.message
    assert fault.message.isprintable() and fault.text.isprintable()
  assert "task 'a', test pair 2" in faults[0].message


# Whole files.


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("text", ["", "\n\n", "\r\n"])
def test_nothing_to_read(name, text):
  with pytest.raises(UserError, match=r"there\.txt: holds no puzzle"):
    read(text, TASKS[name])


@pytest.mark.parametrize("text", ["[1]", "{", '{"a":' * 100_000, "\0", "NaN"])
def test_json_that_is_no_task(text):
  with pytest.raises(UserError, match=r"there\.txt: .*expected the json"):
    read(text, ARC)


class Endless(io.RawIOBase):
  """As much as is asked for, without end; counts what was taken."""

  taken = 0

  def __init__(self, text):
    self.text = text

  def readable(self):
    return True

  def readinto(self, buffer):
    self.taken += len(buffer)
    assert self.taken < 50_000_000
    buffer[:] = (self.text * (len(buffer) // len(self.text) + 1))[: len(buffer)]
    return len(buffer)


@pytest.mark.parametrize(
  "text", [b"\0", b"#" * 99 + b"\n", b"junk\n", b"-" * 30 + b"\n", b"x"]
)
@pytest.mark.parametrize("name", TASKS)
def test_streams_without_end_are_left(monkeypatch, name, text):
  monkeypatch.setattr(questions, "_MOST", 3_000_000)
  monkeypatch.setattr(arc_questions, "_MOST_BYTES", 3_000_000)
  monkeypatch.setattr(entries, "_MOST_FAULTS", 100)
  with pytest.raises(UserError, match=r"more than|binary data"):
    questions.read(Endless(text), TASKS[name], "zero")


class Broken(io.RawIOBase):
  def readable(self):
    return True

  def readinto(self, buffer):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("name", TASKS)
def test_a_file_that_cannot_be_read(name):
  with pytest.raises(UserError, match="disk: cannot be read"):
    questions.read(Broken(), TASKS[name], "disk")


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
  data=st.binary(max_size=60)
  | st.text("#SGo .1234,\n\"'question", max_size=90).map(str.encode)
  | st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.dictionaries(st.sampled_from(["test", "input", "a"]), inner)
    ),
  ).map(lambda value: json.dumps(value).encode()),
  name=st.sampled_from(list(TASKS)),
)
def test_anything_is_told_or_read(data, name):
  task = TASKS[name]
  try:
    found = read(data, task)
  except UserError as error:
    assert str(error).startswith("here/there.txt: ")
    return
  for item in found:
    if isinstance(item, Question):
      assert item.tokens.shape == (task.seq_len,)
      assert item.tokens.dtype == np.uint8
    else:
      assert item.message and item.text.isprintable()
