"""Reads puzzles to solve from a file, in the form that its task is kept in.

By default that is text: a puzzle a line, and empty lines and comments are
skipped; or, where a task is written in rows (`Task.in_rows`), as many lines as
a puzzle has rows. Text may be csv as well, if its header has a column
`question`; there may be a column `answer`. A task with another form reads it
itself (`Task.read`).

What is no puzzle is reported, and the others are read all the same. Nothing of
what is read is trusted.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from trm_jax.data import csv_rows
from trm_jax.data.task import Task, judge
from trm_jax.errors import UserError

_LONGEST = 1_000_000  # bytes of a line
_MOST = 1_000_000_000  # bytes in all
_MOST_FAULTS = 10_000
_EXCERPT = 60  # characters
_MESSAGE = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """A puzzle.

  Attributes:
    tokens: uint8 [S].
    label: uint8 [S], its answer; None if that was not given.
    name: "line 3", or of ARC the task's id and the test pair's number from 0,
      as in "007bbfb7_0".
    line: the line it begins on, from 1; 0 in json.
  """

  tokens: np.ndarray
  label: np.ndarray | None
  name: str
  line: int


@dataclasses.dataclass(frozen=True)
class Fault:
  """Something that is no puzzle.

  Attributes:
    line: the line it begins on, from 1; 0 in json.
    text: how it begins, in printable characters.
    message: what is wrong with it.
  """

  line: int
  text: str
  message: str

  @classmethod
  def of(cls, line: int, text: str, error: UserError | str) -> "Fault":
    """A fault with as much of the text and the message as can be shown."""
    message = str(error)
    if len(message) > _MESSAGE:
      message = message[:_MESSAGE] + "..."
    return cls(line, excerpt(text), message)


def read(stream: BinaryIO, task: Task, name: str) -> list[Question | Fault]:
  """Reads all puzzles, in order.

  Sudoku must not break the rules as given, mazes must have a way to the goal,
  and an answer, where there is one, must solve its puzzle.

  Args:
    stream: bytes, as of a file or of standard input.
    task: their task.
    name: what the stream is called: a path. The stem of a file with a single
      ARC task is the task's id.

  Returns:
    What was found, one or more.

  Raises:
    UserError: there is nothing to read, too much of it, or it is json that
      holds no tasks.
  """
  if task.read:
    questions = task.read(stream, task, name)
  else:
    questions = _text(_lines(stream, name), task)
  found, faults = [], 0
  try:
    for item in questions:
      found.append(item)
      faults += isinstance(item, Fault)
      if faults > _MOST_FAULTS:
        first = next(item for item in found if isinstance(item, Fault))
        raise UserError(
          f"{name}: more than {_MOST_FAULTS:,} lines are no puzzle; expected "
          f"{task.form}. Line {first.line}: {first.message}"
        )
  except OSError as error:
    raise UserError(
      f"{name}: cannot be read ({error.strerror or error}); check the path."
    ) from error
  if not found:
    raise UserError(f"{name}: holds no puzzle; expected {task.form}.")
  return _judge(found, task)


def excerpt(text: str) -> str:
  """The beginning of a text, in printable characters."""
  shown = "".join(c if c.isprintable() else "?" for c in text[:_EXCERPT])
  return shown + "..." * (len(text) > _EXCERPT)


# Text.

_Line = tuple[int, str] | Fault


def _lines(stream: BinaryIO, name: str) -> Iterator[_Line]:
  """Numbers and decodes lines; never holds more than one."""
  left = _MOST
  for number in itertools.count(1):
    begin = rest = stream.readline(_LONGEST + 1)
    if not begin:
      return
    left -= len(begin)
    while len(begin) > _LONGEST and rest and rest[-1:] != b"\n" and left >= 0:
      rest = stream.readline(_LONGEST)
      left -= len(rest)
    if left < 0:
      raise UserError(
        f"{name}: more than {_MOST:,} bytes; split it into smaller files."
      )
    if number == 1:
      begin = begin.removeprefix(b"\xef\xbb\xbf")
    if len(begin) > _LONGEST:
      text = begin[:_LONGEST].decode(errors="replace")
      yield Fault.of(number, text, f"the line has more than {_LONGEST:,} bytes")
      continue
    try:
      yield number, begin.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
      text = begin.decode(errors="replace")
      yield Fault.of(number, text, f"the line is not UTF-8 text ({error})")


def _text(lines: Iterator[_Line], task: Task) -> Iterator[Question | Fault]:
  if task.comment:
    lines = (line for line in lines if not _is_comment(line, task.comment))
  first = next((line for line in lines if not _is_empty(line)), None)
  if first is None:
    return
  columns = None if isinstance(first, Fault) else _header(first[1])
  if columns:
    for line in lines:
      if isinstance(line, Fault):
        yield line
      elif line[1]:
        yield _of_row(*line, columns, task)
    return
  lines = itertools.chain([first], lines)
  if task.in_rows:
    lines = _grouped(lines, task.seq_len)
  for line in lines:
    yield line if isinstance(line, Fault) else _of_text(*line, task)


def _is_empty(line: _Line) -> bool:
  return not isinstance(line, Fault) and not line[1]


def _is_comment(line: _Line, mark: str) -> bool:
  if isinstance(line, Fault):
    return False
  text = line[1].strip()
  return not text or text.startswith(mark)


def _header(text: str) -> dict[str, int] | None:
  """Where the columns of a csv file are, if this is its first line."""
  columns = csv_rows.header_of(text)
  if "question" not in columns:
    return None
  return {column: place for place, column in enumerate(columns)}


def _grouped(lines: Iterator[_Line], length: int) -> Iterator[_Line]:
  """Puts the lines of each maze together."""
  block: list[str] = []
  begin = 0
  for line in lines:
    if isinstance(line, Fault) or len(line[1]) in (0, length):
      if block:
        yield begin, "\n".join(block)
        block = []
      if not _is_empty(line):
        yield line
      continue
    begin = begin if block else line[0]
    block.append(line[1])
    if len(block) == math.isqrt(length):
      yield begin, "\n".join(block)
      block = []
  if block:
    yield begin, "\n".join(block)


def _of_text(line: int, text: str, task: Task) -> Question | Fault:
  try:
    return Question(_parse(text, task), None, f"line {line}", line)
  except UserError as error:
    return Fault.of(line, text, error)


def _of_row(
  line: int, text: str, columns: dict[str, int], task: Task
) -> Question | Fault:
  try:
    row = csv_rows.split(text)
    if len(row) != len(columns):
      raise UserError(
        f"{len(row)} columns; expected {len(columns)}, as in the header"
      )
    answer = row[columns["answer"]] if "answer" in columns else ""
    tokens = _parse(row[columns["question"]], task)
    label = task.parse(answer) if answer else None
  except UserError as error:
    return Fault.of(line, text, error)
  return Question(tokens, label, f"line {line}", line)


def _parse(text: str, task: Task) -> np.ndarray:
  tokens = task.parse(text)
  if task.check:
    task.check(tokens)
  return tokens


def _judge(found: list[Question | Fault], task: Task) -> list[Question | Fault]:
  """Turns puzzles whose given answers do not solve them into faults."""
  labelled = [
    (place, item, item.label)
    for place, item in enumerate(found)
    if isinstance(item, Question) and item.label is not None
  ]
  if task.is_solution is None or not labelled:
    return found
  inputs = np.stack([question.tokens for _, question, _ in labelled])
  labels = np.stack([label for _, _, label in labelled])
  for row in np.flatnonzero(~judge(inputs, labels, task)):
    place, question, label = labelled[row]
    found[place] = Fault.of(
      question.line,
      task.render(question.tokens),
      f"the answer {excerpt(task.render(label))} does not solve it",
    )
  return found
