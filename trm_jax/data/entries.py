"""Puzzles of files before their cells are checked, and faults in their place.

Entries (a question, perhaps its answer) are read from csv and JSON here, and
from boards in `text`.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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


class Header(NamedTuple):
  """The first line of a csv file: the place of each column that is read."""

  delimiter: str
  places: dict[str, int]
  width: int


def header_of(line: str, where: str) -> Header | None:
  """The header if a line has the name of a column of questions."""
  if line.lstrip().startswith("{"):  # JSON
    return None
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


def split(line: str, delimiter: str = ",") -> list[str]:
  """The columns of one line; a quote cannot continue on the next line."""
  if '"' not in line:
    return line.split(delimiter)
  try:
    return next(csv.reader([line], delimiter=delimiter, strict=True), [])
  except csv.Error as error:
    raise UserError(f"not a row of a csv file ({error})") from error


def too_long(number: int, line: str) -> Fault:
  """The fault of a line that `lines.read` has cut."""
  return Fault.of(
    number, line, f"the line has more than {lines.LONGEST:,} characters"
  )


def of_csv(
  numbered: Iterator[tuple[int, str]], header: Header
) -> Iterator[Entry | Fault]:
  """Reads the lines below the header of a csv file."""
  delimiter, places, width = header
  question, answer, source, rating = map(places.get, _NAMES)
  assert question is not None
  for number, line in numbered:
    if not line:
      continue
    if len(line) > lines.LONGEST:
      yield too_long(number, line)
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


def of_json(number: int, line: str) -> Entry:
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
