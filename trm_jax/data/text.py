"""Reads files of puzzles: csv, JSON lines, or boards as text.

A line or board that is no puzzle is a fault and costs only itself. What could
be read in two ways is one too.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator

from trm_jax.data import entries, lines
from trm_jax.data.entries import Entry, Fault, excerpt
from trm_jax.errors import UserError

_MOST_TITLES = 10  # above one board


@dataclasses.dataclass(frozen=True)
class Layout:
  """How text holds puzzles of a task.

  Attributes:
    cells: `line -> str | None`, the cells of a row or of a whole puzzle without
      what is around them; "" for a line between puzzles, None for a line to
      skip. Raises a `UserError` for anything else.
    side: cells of a row, of as many rows; 0 if a line is always a puzzle.
    comment: the prefix of lines to skip.
    skipped: how headings of sections to skip begin, in lower case; the section
      ends at an empty line or another heading `[...]`.
    is_title: `line -> bool`, whether a line without cells is a title, which
      is skipped above the rows of a board.
    blanks: characters of blank cells.
    rulers: those of them that also draw lines between rows.
  """

  cells: Callable[[str], str | None] = lambda line: line
  side: int = 0
  comment: str | None = None
  skipped: tuple[str, ...] = ()
  is_title: Callable[[str], bool] = lambda line: False
  blanks: str = ""
  rulers: str = ""


A_LINE = Layout()  # a line is a puzzle


def read(
  numbered: Iterator[tuple[int, str]], layout: Layout, length: int, name: str
) -> Iterator[Entry | Fault]:
  """Reads entries; a header as the first line makes a file csv.

  Raises a `UserError` for a header without one column of questions.

  Args:
    numbered: lines with their numbers, see `lines.read`.
    layout: how boards are written as text.
    length: cells of a puzzle.
    name: the path or name of the file, for messages.
  """
  numbered = (
    line for line in numbered if not _is_comment(line[1], layout.comment)
  )
  sizes = (layout.side, length)  # a row of spaces may be one of a maze
  first = next(
    (
      line
      for line in numbered
      if line[1].strip() or (line[1] and len(line[1]) in sizes)
    ),
    None,
  )
  if first is None:
    return
  if not (header := entries.header_of(first[1], f"{name}, line {first[0]}")):
    numbered = itertools.chain([first], numbered)
    if delimiter := _other_header(first[1]):
      first, second = next(numbered), next(numbered, (0, ""))
      if second[1].count(delimiter) == first[1].count(delimiter):
        raise UserError(
          f"{name}, line {first[0]}: the csv header {excerpt(first[1])!r} "
          "names no column of questions; name it question, puzzle or quizzes, "
          "and the answers answer or solution"
        )
      numbered = itertools.chain([first, second], numbered)
    yield from _text(numbered, layout, length)
  elif header.width > 1:
    yield from entries.of_csv(numbered, header)
  else:  # of one column, or a title
    numbered = ((number, line.strip('"')) for number, line in numbered)
    yield from _text(numbered, layout, length)


def _other_header(line: str) -> str:
  """The delimiter, if a line has names of columns only."""
  for delimiter in ",;\t":
    names = line.split(delimiter)
    word = r"[ \"']*[A-Za-z_]{2}[\w .-]*[ \"']*"
    if len(names) > 1 and all(re.fullmatch(word, name) for name in names):
      return delimiter
  return ""


def _is_comment(line: str, mark: str | None) -> bool:
  return bool(mark) and mark in line and line.lstrip().startswith(str(mark))


_Row = tuple[int, str]  # the number of a line, and its cells


def _text(
  numbered: Iterator[_Row], layout: Layout, length: int
) -> Iterator[Entry | Fault]:
  """Reads JSON objects and boards: a line each, or a line for each row."""
  side = layout.side
  block: list[_Row] = []
  titles: list[_Row] = []
  is_skipped = False

  def flush(keep_titles: bool = False) -> Iterator[Entry | Fault]:
    # What looks like a title is one only above the rows of a board.
    if not keep_titles or len(titles) > _MOST_TITLES:
      for number, line in titles:
        yield Fault.of(number, line, _no_cells(layout, length))
      titles.clear()
    yield from _boards(block, layout)
    block.clear()

  for number, line in numbered:
    if len(line) > lines.LONGEST:
      yield from flush()
      yield entries.too_long(number, line)
      continue
    if not line.strip() or line.startswith("["):
      is_skipped = line.lower().startswith(layout.skipped)
      if is_skipped:
        yield from flush()
    if is_skipped:
      continue
    is_json = line.lstrip().startswith("{")
    try:
      cells = None if is_json else layout.cells(line)
      if is_json:
        yield from flush()
        yield entries.of_json(number, line)
    except UserError as error:
      if is_json:
        yield Fault.of(number, line, error)
      elif side and layout.is_title(line):
        yield from flush(keep_titles=True)
        titles.append((number, line))
      elif side and len(block) % side:  # a damaged row of the board
        block.append((number, line))
      else:
        yield from flush()
        yield Fault.of(number, line, error)
      continue
    if cells is None:
      continue
    if cells == "":
      yield from flush(keep_titles=True)
    elif not side or len(cells) > 2 * side:  # a whole puzzle
      yield from flush()
      if set(cells) <= set(layout.rulers):
        yield Fault.of(number, line, _DOUBTFUL)
      else:
        yield Entry(number, cells)
    else:
      titles.clear()
      block.append((number, cells))
  yield from flush()


_DOUBTFUL = (
  "blank cells, or a line between rows? Write blanks as '.' or '0' to make it "
  "clear"
)


def _no_cells(layout: Layout, length: int) -> str:
  return (
    f"no puzzle, nor a title above the rows of one; expected {length} cells, "
    f"or a row of {layout.side}"
  )


def _boards(block: list[_Row], layout: Layout) -> Iterator[Entry | Fault]:
  """Yields the boards of consecutive rows."""
  side = layout.side
  rows = _without_rulers(block, layout) if block else []
  if rows is None:
    yield Fault.of(*block[0], _DOUBTFUL)
  elif not any(len(cells) == side for _, cells in rows):
    yield from (Entry(*row) for row in rows)  # each is a puzzle of its own
  elif len(rows) % side:
    yield Fault.of(
      *rows[0],
      f"a board has {side} rows, but there are {len(rows)} lines from here on; "
      "write an empty line between boards",
    )
  else:
    for begin in range(0, len(rows), side):
      board = rows[begin : begin + side]
      odd = next((row for row in board if len(row[1]) != side), None)
      if odd:
        number, cells = odd
        yield Fault.of(
          board[0][0], cells,
          f"line {number} has {len(cells)} cells; expected a row of {side}",
        )  # fmt: skip
      else:
        yield Entry(board[0][0], "\n".join(cells for _, cells in board))


def _without_rulers(block: list[_Row], layout: Layout) -> list[_Row] | None:
  """Drops lines between rows; None if they may as well be rows of blanks."""
  rulers, side = set(layout.rulers), layout.side
  if not rulers:
    return block
  rows = [row for row in block if not set(row[1]) <= rulers]
  drawn = {cells[0] for _, cells in block if set(cells) <= rulers}
  if not drawn:
    return rows
  if not rows:  # a frame without a board, or a blank board
    return rows if len(block) < side else None
  blanks = set("".join(cells for _, cells in rows)) & set(layout.blanks)
  if blanks and not blanks & drawn:  # these boards write blanks in another way
    return rows
  fitting = [found for found in (rows, block) if len(found) % side == 0]
  return fitting[0] if len(fitting) == 1 else None
