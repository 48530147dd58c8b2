"""Reads puzzles to solve from a file, in the format of its task.

By default that is text with one puzzle per line, where empty lines and
comments are skipped; if the task is written in rows (`Task.in_rows`), a puzzle
takes one line per row. Text may also be csv with a column `question` and
optionally a column `answer`. Tasks with another format have `Task.read`.

Invalid puzzles are reported as faults, and the rest is read anyway. The input
is not trusted.
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
_MOST = 1_000_000_000  # bytes in total
_MOST_FAULTS = 10_000
_EXCERPT = 60  # characters
_MESSAGE = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """A puzzle.

  Attributes:
    tokens: uint8 [S].
    label: uint8 [S], its answer; None if it is not given.
    name: "line 3", or in ARC the task's id and the test pair's number from 0,
      as in "007bbfb7_0".
    line: its first line, from 1; 0 in JSON.
  """

  tokens: np.ndarray
  label: np.ndarray | None
  name: str
  line: int


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


def read(stream: BinaryIO, task: Task, name: str) -> list[Question | Fault]:
  """Reads all puzzles, in order.

  A puzzle is a fault if the task's rules do not allow it, or if it has an
  answer that does not solve it.

  Args:
    stream: bytes, of a file or of standard input.
    task: their task.
    name: the path, or another name for the stream. If the file holds a single
      ARC task, its stem is the task's id.

  Returns:
    The questions and faults, one or more.
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


_Line = tuple[int, str] | Fault


def _lines(stream: BinaryIO, name: str) -> Iterator[_Line]:
  """Numbers and decodes lines, holding one at a time in memory."""
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
  header = () if isinstance(first, Fault) else csv_rows.header_of(first[1])
  if "question" in header:
    columns = {column: index for index, column in enumerate(header)}
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
    if isinstance(line, Fault):
      yield line
      continue
    number, text = line
    try:
      tokens = _parse(text, task)
    except UserError as error:
      yield Fault.of(number, text, error)
    else:
      yield Question(tokens, None, f"line {number}", number)


def _is_empty(line: _Line) -> bool:
  return not isinstance(line, Fault) and not line[1]


def _is_comment(line: _Line, mark: str) -> bool:
  if isinstance(line, Fault):
    return False
  text = line[1].strip()
  return not text or text.startswith(mark)


def _grouped(lines: Iterator[_Line], length: int) -> Iterator[_Line]:
  """Joins the rows of each puzzle; a line may also be a whole puzzle."""
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
