"""Draws puzzles and answers in the terminal.

A cell is two characters: its content and a mark, `*` if it has changed and `x`
if it is wrong. So colours are not needed.
"""

import time
from collections.abc import Sequence

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trm_jax.data.task import Task
from trm_jax.errors import printable

_CHANGED, _WRONG = "bold #ffffff on #cc00cc", "bold #ffffff on #d00000"


def draw(
  task: Task,
  question: np.ndarray,
  answer: np.ndarray | None,
  before: np.ndarray | None = None,
  label: np.ndarray | None = None,
) -> RenderableType:
  """Draws a puzzle or an answer to it.

  If answers fill in the question (`Task.in_place`) both are one drawing;
  otherwise the question is beside the answer, or above it on a narrow terminal.

  Args:
    task: the puzzle's task.
    question: integers [S], its tokens.
    answer: integers [S], the answer's tokens; None for the bare puzzle.
    before: integers [S], an earlier answer, to mark cells that changed.
    label: integers [S], the right answer, to mark wrong cells. None or all 0 if
      it is unknown.
  """
  rows = task.rows(question if answer is None else answer)
  given = task.rows(question)
  old = rows if before is None else task.rows(before)
  right = rows if label is None or not np.any(label) else task.rows(label)
  cells = [
    [
      _cell(
        task,
        character,
        *(_at(grid, row, column) for grid in (given, old, right)),
      )
      for column, character in enumerate(line)
    ]
    for row, line in enumerate(rows)
  ]
  if task.boxes:
    return _boxes(cells, *task.boxes)
  if answer is None or task.in_place:
    return _lines(cells)
  asked = Group("question", draw(task, question, None))
  return Columns([asked, Group("answer", _lines(cells))], padding=(0, 3))


def _at(rows: list[str], row: int, column: int) -> str:
  """The content of a cell; empty outside of the grid."""
  inside = row < len(rows) and column < len(rows[row])
  return rows[row][column] if inside else ""


def _cell(
  task: Task, character: str, given: str, before: str, right: str
) -> Text:
  """The two characters of a cell: its content and its mark."""
  style = task.style(character, given)
  cell = Text(character, style)
  is_wrong, has_changed = character != right, character != before
  if is_wrong or has_changed:
    mark = "x" if is_wrong else "*"
    return cell.append(mark, _CHANGED if has_changed else _WRONG)
  return cell.append("#" if character == "#" else " ", style)  # a solid wall


def _lines(cells: Sequence[Sequence[Text]]) -> Text:
  rows = [Text.assemble(*row) for row in cells]
  text = Text("\n").join(rows) if rows else Text("(no grid)")
  text.no_wrap = True
  return text


def _boxes(cells: list[list[Text]], height: int, width: int) -> Table:
  """A board with lines between its boxes."""
  size = len(cells)
  table = Table(show_header=False, show_lines=True, padding=(0, 0, 0, 1))
  for _ in range(0, size, width):
    table.add_column(no_wrap=True)
  for top in range(0, size, height):
    table.add_row(
      *(
        _lines([row[left : left + width] for row in cells[top : top + height]])
        for left in range(0, size, width)
      )
    )
  return table


def play(
  frames: Sequence[RenderableType], console: Console, title: str, seconds: float
) -> None:
  """Shows drawings one after another.

  On a terminal each is shown for some seconds and then replaced; elsewhere all
  are printed.
  """
  titled = [
    Group(Text(f"{printable(title)}, step {number} of {len(frames)}"), frame)
    for number, frame in enumerate(frames, 1)
  ]
  if not console.is_terminal or console.is_dumb_terminal:
    for frame in titled:
      console.print(frame)
    return
  with Live(console=console, auto_refresh=False) as live:
    for frame in titled:
      live.update(frame, refresh=True)
      time.sleep(seconds)
