"""Puzzles as people write them: csv, JSON lines, or boards as text.

Lines become entries (a question, perhaps its answer) whose cells are not
checked yet. A line or board that is no entry is a fault and costs only itself.
"""

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from trm_jax.data import checks, lines
from trm_jax.errors import UserError

_NAMES = {
  "question": (
    "question", "questions", "puzzle", "puzzles", "quiz", "quizzes",
  ),
  "answer": ("answer", "answers", "solution", "solutions"),
  "source": ("source",),
  "rating": ("rating",),
}  # fmt: skip
_FIELDS = {name: field for field, names in _NAMES.items() for name in names}
WANTED = "a csv file with columns question and answer"

_EXCERPT = 60  # characters
_MESSAGE = 300
_MOST_TITLES = 10  # above one board
_MOST_FAULTS = 10_000
# Beyond the above, so many faults to a puzzle mean a file of something else.
_MOST_FAULTS_EACH = 100
SHOWN = 10  # faults that are reported in full


class Entry(NamedTuple):
  """A puzzle of a file, unchecked.

  Attributes:
    line: its first line, from 1.
    question: its cells, or a line for each row.
    answer: the same; None if it is not given.
    source: where it is from.
    rating: its difficulty.
  """

  line: int
  question: str
  answer: str | None = None
  source: str = ""
  rating: str = "0"


@dataclasses.dataclass(frozen=True)
class Fault:
  """An invalid puzzle.

  Attributes:
    line: its first line, from 1; 0 in JSON.
    text: its beginning, in printable characters.
    message: why it is invalid.
  """

  line: int
  text: str
  message: str

  @classmethod
  def of(cls, line: int, text: str, error: UserError | str) -> "Fault":
    """A fault with text and message cut to a displayable length."""
    message = str(error)
    if len(message) > _MESSAGE:
      message = message[:_MESSAGE] + "..."
    return cls(line, excerpt(text), message)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How text holds puzzles of a task.

  Attributes:
    cells: `line -> str | None`, the cells of a row or of a whole puzzle without
      what is around them; "" for a line between puzzles, None for a line to
      skip. Raises a `UserError` for anything else.
    side: cells of a row, of as many rows; 0 if a line is always a puzzle.
    comment: the prefix of lines to skip.
    is_title: `line -> bool`, whether a line without cells is a title, which
      is skipped above the rows of a board.
    blanks: characters of blank cells.
    rulers: those of them that also draw lines between rows.
  """

  cells: Callable[[str], str | None] = lambda line: line
  side: int = 0
  comment: str | None = None
  is_title: Callable[[str], bool] = lambda line: False
  blanks: str = ""
  rulers: str = ""


A_LINE = Layout()  # a line is a puzzle


class Faults:
  """Counts faults, and ends the reading of files that hold something else.

  Attributes:
    name: the path or name of the file.
    wanted: what is expected, for messages.
    count: faults so far.
    first: the first few, in full.
  """

  def __init__(self, name: str, wanted: str):
    self.name, self.wanted = name, wanted
    self.count = 0
    self.first: list[Fault] = []

  def add(self, found: Iterable[Fault], count: int, good: int):
    """Adds `count` faults, of which `found` are the first few.

    Raises a `UserError` if they are too many for `good` puzzles so far.
    """
    room = SHOWN - len(self.first)
    self.first += [fault for fault, _ in zip(found, range(room), strict=False)]
    self.count += count
    if self.count > _MOST_FAULTS and self.count > _MOST_FAULTS_EACH * good:
      raise UserError(
        f"{self.name}: more than {_MOST_FAULTS:,} lines are no puzzle; "
        f"expected {self.wanted}. Line {self.first[0].line}: "
        f"{self.first[0].message}"
      )


def excerpt(text: str) -> str:
  """The beginning of a text, in printable characters."""
  shown = "".join(c if c.isprintable() else "?" for c in text[:_EXCERPT])
  return shown + "..." * (len(text) > _EXCERPT)


def alike(messages: Sequence[str]) -> bool:
  """Whether two or more messages differ in numbers and quoted text only."""
  plain = {re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "", one) for one in messages}
  return len(messages) > 1 and len(plain) == 1


def resemblance(text: str) -> str:
  """What a file looks like that begins with this text; "" if unknown."""
  text = text.strip()
  if re.match(r"\[(\s*(\{|\[?\s*[\"\d])|$)", text):
    return "it looks like a JSON list; write one object on each line"
  return "it looks like HTML or XML" if text.startswith("<") else ""


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
  if not (header := _header(first[1], f"{name}, line {first[0]}")):
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
    yield from _csv(numbered, header)
  else:  # of one column, or a title
    numbered = ((number, line.strip('"')) for number, line in numbered)
    yield from _text(numbered, layout, length)


class Header(NamedTuple):
  """The first line of a csv file: the place of each column that is read."""

  delimiter: str
  places: dict[str, int]
  width: int


def _header(line: str, where: str) -> Header | None:
  """The header if a line has the name of a column of questions."""
  for delimiter in ",;\t":
    names = [name.strip(" \"'").lower() for name in line.split(delimiter)]
    fields = [_FIELDS.get(name) for name in names]
    if "question" not in fields:
      continue
    places = {field: place for place, field in enumerate(fields) if field}
    for field in places:
      if fields.count(field) > 1:
        raise UserError(
          f"{where}: the csv header {excerpt(line)!r} has several columns of "
          f"{field}s; rename all but one."
        )
    return Header(delimiter, places, len(names))
  return None


def _other_header(line: str) -> str:
  """The delimiter, if a line has names of columns only."""
  for delimiter in ",;\t":
    names = line.split(delimiter)
    word = r"[ \"']*[A-Za-z_]{2}[\w .-]*[ \"']*"
    if len(names) > 1 and all(re.fullmatch(word, name) for name in names):
      return delimiter
  return ""


def split(line: str, delimiter: str = ",") -> list[str]:
  """The columns of one line; a quote cannot continue on the next line."""
  if '"' not in line:
    return line.split(delimiter)
  try:
    return next(csv.reader([line], delimiter=delimiter, strict=True), [])
  except csv.Error as error:
    raise UserError(f"not a row of a csv file ({error})") from error


def _is_comment(line: str, mark: str | None) -> bool:
  return bool(mark) and mark in line and line.lstrip().startswith(str(mark))


def _too_long(number: int, line: str) -> Fault:
  return Fault.of(
    number, line, f"the line has more than {lines.LONGEST:,} characters"
  )


def _csv(
  numbered: Iterator[tuple[int, str]], header: Header
) -> Iterator[Entry | Fault]:
  delimiter, places, width = header
  question, answer, source, rating = map(places.get, _NAMES)
  assert question is not None
  for number, line in numbered:
    if not line:
      continue
    if len(line) > lines.LONGEST:
      yield _too_long(number, line)
      continue
    try:
      row = split(line, delimiter)
      if len(row) != width:
        raise UserError(
          f"{len(row)} columns; expected {width}, as in the header"
        )
    except UserError as error:
      yield Fault.of(number, line, error)
      continue
    yield Entry(
      number,
      row[question],
      None if answer is None else row[answer],
      "" if source is None else row[source],
      "0" if rating is None else row[rating],
    )


def _of_json(number: int, line: str) -> Entry:
  """The entry of a JSON object on a line."""
  try:
    item = checks.parse_json(line)
  except (ValueError, RecursionError) as error:
    raise UserError(f"not a JSON object on a line ({error})") from error
  fields = {}
  for key, value in item.items():
    field = _FIELDS.get(key.lower())
    if field in fields:
      raise UserError(f"two fields with a {field}; keep one")
    if field and value is not None:
      fields[field] = value
  if "question" not in fields:
    raise UserError(
      f"no field 'question' or 'puzzle', only {excerpt(json.dumps(list(item)))}"
    )
  for field in ("question", "answer"):
    if not isinstance(fields.get(field, ""), str):
      raise UserError(
        f"its {field} is not a text; expected the cells in quotes"
      )
  fields["source"] = str(fields.get("source", ""))
  fields["rating"] = str(fields.get("rating", "0"))
  return Entry(number, **fields)


_Row = tuple[int, str]  # the number of a line, and its cells


def _text(
  numbered: Iterator[_Row], layout: Layout, length: int
) -> Iterator[Entry | Fault]:
  """Reads JSON objects and boards: a line each, or a line for each row."""
  side = layout.side
  block: list[_Row] = []
  titles: list[_Row] = []

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
      yield _too_long(number, line)
      continue
    is_json = line.lstrip().startswith("{")
    try:
      cells = None if is_json else layout.cells(line)
      if is_json:
        yield from flush()
        yield _of_json(number, line)
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
    elif not side or len(cells) > 2 * side:
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
  if not drawn or not rows:
    return rows if len(block) < side or not drawn else None
  blanks = set("".join(cells for _, cells in rows)) & set(layout.blanks)
  if blanks and not blanks & drawn:  # these boards write blanks in another way
    return rows
  fitting = [found for found in (rows, block) if len(found) % side == 0]
  return fitting[0] if len(fitting) == 1 else None
