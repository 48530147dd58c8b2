"""Drawings show every cell and every mark, with and without colours."""

import io

import numpy as np
import pytest
from rich.console import Console

from trm_jax.data.arc import grids
from trm_jax.data.arc.task import arc_task
from trm_jax.data.maze.task import maze_task
from trm_jax.data.sudoku import board, generate
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.draw import terminal

ARC = arc_task(30)
MAZE = maze_task(4)
# A wall below the start, and two ways around it.
QUESTION = MAZE.parse("S   " + "##  " + "    " + "G   ")
ANSWER = MAZE.parse("Soo " + "##o " + "ooo " + "G   ")


def printed(drawing, **settings):
  """What a console prints, line by line."""
  console = Console(file=io.StringIO(), **({"width": 80} | settings))
  console.print(drawing)
  return console.file.getvalue().splitlines()


@pytest.fixture(params=[4, 6, 9], scope="module")
def sudoku(request):
  size = request.param
  givens = {4: (5, 8), 6: (9, 12), 9: (28, 32)}[size]
  inputs, labels, _ = generate.generate(size, 1, seed=0, givens=givens)
  return sudoku_task(size), inputs[0], labels[0]


def test_sudoku_has_every_cell_and_lines_between_boxes(sudoku):
  task, question, label = sudoku
  size = round(task.seq_len**0.5)
  for answer in (None, label):
    lines = printed(terminal.draw(task, question, answer))
    digits = "".join(c for line in lines for c in line if c in ".123456789")
    assert digits == task.render(question if answer is None else answer)
    rules = [line for line in lines if not set(line) & set(".123456789")]
    assert len(lines) == size + len(rules)
    assert len(rules) == {4: 3, 6: 4, 9: 4}[size]
    assert len(lines[1].split("│")) == {4: 4, 6: 4, 9: 5}[size]


def test_sudoku_marks_what_changed_and_what_is_wrong(sudoku):
  task, question, label = sudoku
  blanks = np.flatnonzero(question == board.BLANK)
  answer, before = label.copy(), label.copy()
  wrong = blanks[0]
  answer[wrong] = before[wrong] = label[wrong] % 4 + 2
  before[blanks[1:4]] = board.BLANK

  def marks(**known):
    text = "".join(printed(terminal.draw(task, question, answer, **known)))
    return text.count("*"), text.count("x")

  assert marks() == (0, 0)
  assert marks(before=before) == (3, 0)
  assert marks(label=label) == (0, 1)
  assert marks(before=before, label=label) == (3, 1)


def test_a_maze_has_every_cell():
  lines = printed(terminal.draw(MAZE, QUESTION, ANSWER, before=QUESTION))
  assert lines == ["S o*o*  ", "####o*  ", "o*o*o*  ", "G       "]
  wrong = MAZE.parse("S  o" + "# oo" + "ooo " + "G   ")
  lines = printed(terminal.draw(MAZE, QUESTION, wrong, label=ANSWER))
  assert lines == ["S  x xox", "## xo ox", "o o o   ", "G       "]


def test_arc_shows_question_and_answer_side_by_side_or_below():
  question, answer = ARC.parse("01/23"), ARC.parse("456/789")
  drawing = terminal.draw(
    ARC, question, answer, ARC.parse("45/78"), ARC.parse("406/789")
  )
  heads, *rows = (line.rstrip() for line in printed(drawing))
  assert heads.split() == ["question", "answer"]
  assert [row.split("  ")[-1].strip() for row in rows] == ["4 5x6*", "7 8 9*"]
  assert [row[:3] for row in rows] == ["0 1", "2 3"]
  below = [line.rstrip() for line in printed(drawing, width=12)]
  assert below == [
    "question", "0 1", "2 3", "answer", "4 5x6*", "7 8 9*",
  ]  # fmt: skip


def test_grids_of_arc_as_large_as_they_get():
  rng = np.random.default_rng(0)
  cells = rng.integers(0, 10, (2, 30, 30)).astype(np.uint8)
  question, answer = (grids.encode(grid) for grid in cells)
  text = "".join(printed(terminal.draw(ARC, question, answer)))
  digits = "".join(c for c in text if c.isdigit())
  assert digits == "".join(map(str, cells.reshape(-1)))


def test_answers_that_are_no_boards_are_drawn():
  nothing = np.zeros(ARC.seq_len, np.int64)
  lines = printed(terminal.draw(ARC, ARC.parse("1"), nothing, label=nothing))
  assert "(no grid)" in lines[1]
  padded = np.zeros(16, np.int64)
  assert printed(terminal.draw(MAZE, QUESTION, padded)) == ["? " * 4] * 4
  task = sudoku_task(4)
  text = "".join(printed(terminal.draw(task, padded + 1, padded)))
  assert text.count("?") == 16


@pytest.mark.parametrize("kind", ["pipe", "no_color", "ascii"])
def test_without_colours_there_is_no_code_of_one(kind, sudoku, monkeypatch):
  monkeypatch.delenv("FORCE_COLOR", raising=False)
  task, question, label = sudoku
  settings = {}
  stream = io.TextIOWrapper(
    io.BytesIO(), "ascii" if kind == "ascii" else "utf-8"
  )
  if kind == "no_color":
    monkeypatch.setenv("NO_COLOR", "1")
    settings = {"force_terminal": True, "color_system": "truecolor"}
  console = Console(file=stream, width=80, **settings)
  console.print(terminal.draw(task, question, label, before=question))
  console.print(terminal.draw(MAZE, QUESTION, ANSWER, before=QUESTION))
  stream.flush()
  text = stream.buffer.getvalue().decode()
  assert "38;2" not in text and "48;2" not in text
  if kind != "no_color":  # which may have bold digits
    assert "\x1b" not in text
  assert "*" in text and "##" in text


def test_with_colours_cells_are_coloured():
  text = "".join(
    printed(
      terminal.draw(ARC, ARC.parse("1"), None),
      force_terminal=True,
      color_system="truecolor",
    )
  )
  assert "48;2;0;116;217" in text  # 1 is blue


def frames():
  return [terminal.draw(MAZE, QUESTION, a) for a in (QUESTION, ANSWER)]


def test_films_are_printed_where_there_is_no_terminal():
  console = Console(file=io.StringIO(), width=80)
  terminal.play(frames(), console, "[red]maze", seconds=1000)
  lines = console.file.getvalue().splitlines()
  assert [line for line in lines if "step" in line] == [
    "[red]maze, step 1 of 2", "[red]maze, step 2 of 2",
  ]  # fmt: skip
  assert lines[1:5] == ["S       ", "####    ", "        ", "G       "]
  assert lines[6:] == ["S o o   ", "####o   ", "o o o   ", "G       "]


def test_films_play_in_place_on_a_terminal(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  waited = []
  monkeypatch.setattr(terminal.time, "sleep", waited.append)
  console = Console(file=io.StringIO(), width=80, force_terminal=True)
  terminal.play(frames(), console, "maze", seconds=0.5)
  text = console.file.getvalue()
  assert waited == [0.5, 0.5]
  assert "step 1 of 2" in text and "step 2 of 2" in text
  assert "\x1b[1A" in text  # goes up again
