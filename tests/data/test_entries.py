"""Puzzles as people keep them: every reader finds them, and nothing else."""

import io
import json

import hypothesis
import pytest
from conftest import DATA
from hypothesis import strategies as st

from trm_jax.data import datasets, questions
from trm_jax.data.arc.task import arc_task
from trm_jax.data.maze import generate as maze_generate
from trm_jax.data.maze.task import MazeData, maze_task
from trm_jax.data.questions import Fault, Question
from trm_jax.data.sudoku import generate
from trm_jax.data.sudoku.task import SudokuData, sudoku_task
from trm_jax.errors import UserError
from trm_jax.solve import forms

CASES = DATA / "cases"
# The puzzles of most cases: (question, answer).
KNOWN = [
  line.split(";")
  for line in (CASES / "semicolon.csv").read_text().splitlines()[1:]
]
MAZE = ("#####S  ##   ##  G#####", None)

# Which of the known puzzles a case holds.
HELD = {
  **dict.fromkeys(
    (
      "kaggle_quizzes.csv", "kaggle_clues.csv", "quoted_header.csv",
      "semicolon.csv", "cr_only.csv", "utf16.csv", "latin1_comment.txt",
      "questions.csv.gz", "trailing.txt", "blanks.txt", "lines.jsonl",
    ),
    (0, 1, 2, 3, 4, 5),
  ),
  "board_nine_lines.txt": (0, 1, 2), "euler.txt": (0, 1, 2),
  "simple_sudoku.ss": (0,), "sudocue.sdk": (1,),
  "stray_quote.csv": (1, 2, 3, 5),
}  # fmt: skip
HAS_ANSWERS = {name for name in HELD if name.endswith(("csv", "gz", "jsonl"))}


def settings(name, folder, **changes):
  made = {"train": str(CASES / name), "cache_dir": str(folder), "test": ""}
  return SudokuData(**made | changes, subsample=0)


def read(text, task):
  data = text if isinstance(text, bytes) else text.encode()
  return questions.read(io.BytesIO(data), task, "file")


def texts(items, task):
  assert all(isinstance(item, Question) for item in items), items
  return [task.render(item.tokens) for item in items]


@pytest.mark.parametrize("name", HELD)
def test_every_reader_finds_the_puzzles(tmp_path, name):
  task, expected = sudoku_task(9), [KNOWN[place] for place in HELD[name]]
  wanted = [question for question, _ in expected]
  data = (CASES / name).read_bytes()
  found = [one for one in read(data, task) if isinstance(one, Question)]
  assert texts(found, task) == wanted
  if name in HAS_ANSWERS:
    assert [task.render(one.label) for one in found] == [a for _, a in expected]
  # `show` reads rows; training and `evaluate --data` prepare a dataset of them.
  made = settings(name, tmp_path, skip_bad_rows=True)
  rows = task.dataset.read_rows(made, made.train)
  split = datasets.load(made, "train")
  tested = datasets.tested_on(made, made.train)
  for inputs, labels in (
    (rows.inputs, rows.labels),
    (split.inputs, split.labels),
    (
      datasets.load(tested, "test").inputs,
      datasets.load(tested, "test").labels,
    ),
  ):
    assert [task.render(row) for row in inputs] == wanted
    assert [task.render(row) for row in labels] == [a for _, a in expected]
  assert rows.searched == (0 if name in HAS_ANSWERS else len(expected))
  # The processor takes one puzzle.
  if "utf16" in name or "gz" in name or "stray" in name:
    return
  text = data.decode("latin-1")
  if len(wanted) == 1:
    assert texts(forms.read(text, task, "puzzle"), task) == wanted
  else:
    with pytest.raises(UserError, match=f"holds {len(wanted)} puzzles"):
      forms.read(text, task, "puzzle")


def test_a_stray_quote_costs_its_row(tmp_path):
  task, path = sudoku_task(9), CASES / "stray_quote.csv"
  faults = [
    one for one in read(path.read_bytes(), task) if isinstance(one, Fault)
  ]
  assert [fault.line for fault in faults] == [2, 6]
  with pytest.raises(UserError, match=r"stray_quote\.csv, line 2: not a row"):
    datasets.prepare(settings(path.name, tmp_path), print)
  skipped = settings(path.name, tmp_path, skip_bad_rows=True)
  (note,) = datasets.prepare(skipped, print)
  assert "2 bad rows of 6 were left out" in note and "line 6" in note


def test_quotes_far_apart_swallow_no_rows(tmp_path):
  question, answer = KNOWN[0]
  good = f"own,{question},{answer},1"
  lines = [good] * 1000
  for place in (200, 601):
    lines[place] = '"' + good
  path = tmp_path / "rows.csv"
  path.write_text("\n".join(["source,question,answer,rating", *lines]))
  made = settings("x", tmp_path, train=str(path), skip_bad_rows=True)
  rows = made.task.dataset.read_rows(made, str(path))
  assert (len(rows), rows.bad) == (998, 2)
  assert "line 202: " in rows.skipped[0] and "line 603: " in rows.skipped[1]


def test_a_maze_of_another_program(tmp_path):
  path, task = CASES / "maze_exit_E.txt", maze_task(5)
  (found,) = read(path.read_bytes(), task)
  assert task.render(found.tokens) == "######S  ## # ##  G######"
  made = MazeData(size=5, train=str(path), test="", cache_dir=str(tmp_path))
  split = datasets.load(made, "train")
  assert [task.render(row) for row in split.labels] == [
    "######S  ##o# ##ooG######"
  ]
  assert texts(forms.read(path.read_text(), task, "puzzle"), task)


def test_a_key_twice_is_refused_everywhere():
  with pytest.raises(UserError, match="'test' stands twice"):
    read((CASES / "arc_key_twice.json").read_bytes(), arc_task(30))
  (fault,) = read('{"puzzle": "1", "puzzle": "2"}', sudoku_task(4))
  assert "'puzzle' stands twice" in fault.message


# Sudokus in any style.


FORMS = (
  "line", "count", "remark", "rows", "titled", "boxes", "ss", "sdk", "csv",
  "jsonl", "spaced", "spaced rows",
)  # fmt: skip


@st.composite
def styles(draw, forms=FORMS):
  """How to write a file: the blank, the form of boards, what is between."""
  blank = draw(st.sampled_from(".0*_-xX"))
  form = draw(st.sampled_from(forms))
  end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
  return blank, form, end


def boxed(rows, size, width, corner, cross):
  """Rows with bars between boxes, and lines between bands."""
  starts = range(0, size, width)
  bars = ["|".join(row[i : i + width] for i in starts) for row in rows]
  line = cross.join("-" * width for _ in range(size // width))
  height = {4: 2, 6: 2, 9: 3}[size]
  out = [corner + "-" * len(line) + corner] if corner else []
  for number, row in enumerate(bars):
    if number and number % height == 0:
      out.append(f"|{line}|" if corner else line)
    out.append(f"|{row}|" if corner else row)
  return out + out[:1] * bool(corner)


def write(boards, answers, size, blank, form):
  """The lines of each board, in a style."""
  width = {4: 2, 6: 3, 9: 3}[size]
  blocks = []
  for number, (board, answer) in enumerate(
    zip(boards, answers, strict=True), 1
  ):
    board = board.replace(".", blank)
    rows = [board[i : i + size] for i in range(0, size * size, size)]
    blocks.append({
      "line": [board],
      "count": [f"{board},{size * size - board.count(blank)}"],
      "remark": [f"{board} # {number} of many"],
      "rows": [*rows, ""],
      "gapless": rows,
      "titled": [f"Grid {number:02}", *rows],
      "boxes": [*boxed(rows, size, width, "", "+"), ""],
      "ss": [*boxed(rows, size, width, "*", "+"), ""],
      "sdk": ["#A me", "[Puzzle]", *rows, ""],
      "sadman": ["[Puzzle]", *rows, "[State]", answer[:size], *rows[1:]],
      "csv": [f"{number},{answer},{board}"],
      "jsonl": [json.dumps({"id": 1, "puzzle": board, "solution": answer})],
      "spaced": [" ".join(board)],
      "spaced rows": [*(" ".join(row) for row in rows), ""],
    }[form])  # fmt: skip
  return blocks


SIZES = {4: (5, 8), 6: (9, 14), 9: (28, 34)}


@pytest.fixture(scope="module")
def sudokus():
  made = {}
  for size, givens in SIZES.items():
    task = sudoku_task(size)
    inputs, labels, _ = generate.generate(size, 6, seed=0, givens=givens)
    made[size] = [[task.render(x) for x in each] for each in (inputs, labels)]
  return made


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
  style=styles((*FORMS, "sadman", "gapless")), size=st.sampled_from(list(SIZES))
)
def test_boards_are_read_back_in_any_style(sudokus, style, size):
  blank, form, end = style
  boards, answers = sudokus[size]
  blocks = write(boards, answers, size, blank, form)
  lines = [line for block in blocks for line in block]
  header = ["id,Solutions, puzzle"] if form == "csv" else []
  found = read(end.join(header + lines), sudoku_task(size))
  assert texts(found, sudoku_task(size)) == boards
  if form in ("csv", "jsonl"):
    task = sudoku_task(size)
    assert [task.render(item.label) for item in found] == answers


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(
  style=styles(), size=st.sampled_from(list(SIZES)), data=st.data()
)
def test_damage_of_a_line_costs_its_puzzle(sudokus, style, size, data):
  blank, form, end = style
  task = sudoku_task(size)
  boards, answers = sudokus[size]
  blocks = write(boards, answers, size, blank, form)
  place = data.draw(st.integers(0, len(blocks) - 1))
  row = data.draw(st.integers(0, len(blocks[place]) - 1))
  line = blocks[place][row]
  at = data.draw(st.integers(0, len(line)))
  noise = data.draw(st.text("?qß%&é\0", min_size=1, max_size=3))
  kind = data.draw(st.sampled_from(["insert", "replace", "cut", "all"]))
  blocks[place][row] = {
    "insert": line[:at] + noise + line[at:],
    "replace": line[:at] + noise + line[at + len(noise) :],
    "cut": line[:at],
    "all": noise,
  }[kind]
  lines = [line for block in blocks for line in block]
  header = ["id,Solutions, puzzle"] if form == "csv" else []
  found = read(end.join(header + lines), task)
  got = [
    task.render(item.tokens) for item in found if isinstance(item, Question)
  ]
  others = boards[:place] + boards[place + 1 :]
  # Its title or a remark may be what is damaged; then it is read.
  assert got in (boards, others)
  # Nothing, or a line of dashes, is no puzzle.
  if got == others and "".join(blocks[place]).strip(" -*_"):
    assert any(isinstance(item, Fault) for item in found)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    # Blank rows of dashes, or lines between rows of dots.
    ("12--\n----\n--34\n----\n", ["12..", "....", "..34", "...."]),
    ("12..\n----\n..34\n.1..\n----\n...2", ["12..", "..34", ".1..", "...2"]),
    ("1234\n3412\n----\n2143\n4321", ["1234", "3412", "2143", "4321"]),
    # Four rows are a board, whatever the other line is; two readings are none.
    ("12--\n----\n--34\n-1--\n----\n---2\n", ["12--", "--34", "-1--", "---2"]),
    ("12--\n----\n--34\n-1--\n----\n", None),
    ("----------------", None),
  ],
)
def test_a_line_is_blank_cells_or_a_line_between_rows(text, expected):
  found = read(text, sudoku_task(4))
  if expected is None:
    assert all(isinstance(item, Fault) for item in found)
  else:
    assert texts(found, sudoku_task(4)) == ["".join(expected).replace("-", ".")]


@pytest.mark.parametrize(
  ("text", "faults"),
  [
    ("12..\n..34\n1...\n", [1]),  # three rows
    ("12..\n..34\n1...\n...2\n1...\n", [1]),  # five
    ("hello\n12..3.1..1.34..1\nsudoku,solved\n12..3.1..1.34..1", [1, 3]),
    ("Easy, by me\n12..\n..34\n....\n....", []),
    ("12..3.1..1.34..1,1234341221434321", [1]),
    ("12..3.1..1.34..12", [1]),
    ("[Puzzle\n12..\n..34\n1...\n1...", [2]),  # a title; but two 1s
    ("question,answer\n1,2,3\n", [2]),
    ('{"question": 7}\n{"x": ""}\n[1]\n{\n', [1, 2, 3, 4]),
    ('{"question": "1", "puzzle": "2"}', [1]),
  ],
)
def test_what_is_not_clear_is_a_fault(text, faults):
  found = read(text, sudoku_task(4))
  lines = [item.line for item in found if isinstance(item, Fault)]
  assert lines == faults


@pytest.mark.parametrize(
  ("header", "told"),
  [
    ("sudoku,solved", "names no column of questions; name it question, puzzle"),
    ('"Sudoku";"Solved 1"', "names no column of questions"),
    ("puzzle\tquiz", "has several columns of questions"),
  ],
)
def test_a_header_without_questions_is_told_once(header, told):
  delimiter = next(c for c in ",;\t" if c in header)
  row = delimiter.join(["12..3.1..1.34..1"] * 2)
  with pytest.raises(
    UserError, match=f"^file, line 1: the csv header .*{told}"
  ):
    read(f"{header}\n{row}\n{row}\n", sudoku_task(4))


def test_mazes_with_other_characters():
  inputs, _, _ = maze_generate.generate(
    6, 4, 0, wall_density=(0.2, 0.4), min_length=4, unique=False
  )
  task = maze_task(6)
  mazes = [task.render(row) for row in inputs]
  theirs = [maze.replace("G", "E").replace(" ", ".") for maze in mazes]
  blocks = ["\n".join(m[i : i + 6] for i in range(0, 36, 6)) for m in theirs]
  jsonl = [json.dumps({"question": m}) for m in (*theirs[:2], *blocks[2:])]
  for text in ("\n\n".join(blocks), "\n".join(theirs), "\n".join(jsonl)):
    assert texts(read(text, task), task) == mazes
