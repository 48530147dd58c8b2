"""Reads puzzles to solve, each in the form that people keep its task in.

    sudoku  a puzzle a line; empty lines and lines that begin with # are skipped
    maze    a maze a line, or as many lines as it has rows, with an empty line
            or nothing between mazes
    arc     a task's json, or a competition's challenges (id -> task)

Sudoku and mazes may be csv as well, if the header has a column `question`;
there may be a column `answer`. What is no puzzle is reported and the others
are read all the same. Nothing of what is read is trusted.
"""

import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import jax
import numpy as np

from trm_jax.data.arc import grids
from trm_jax.data.maze import grid as maze_grid
from trm_jax.data.maze import paths
from trm_jax.data.sudoku import board, geometry
from trm_jax.data.task import Task
from trm_jax.errors import UserError

_LONGEST = 1_000_000  # bytes of a line
_MOST = 1_000_000_000  # bytes in all
_MOST_JSON = 100_000_000  # parsed, it takes many times the memory
_MOST_FAULTS = 10_000
_CHUNK = 4096  # answers judged together: bounds the memory
_EXCERPT = 60  # characters
_MESSAGE = 300
_NAME = 200

_FORMS = {
  "sudoku": "one Sudoku a line",
  "maze": "mazes of text, a line each or an empty line between them",
  "arc": "the json of an ARC task, or of a competition's challenges",
}


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
  if task.name == "arc":
    questions = _arc(stream, task, name)
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
          f"{_FORMS[task.name]}. Line {first.line}: {first.message}"
        )
  except OSError as error:
    raise UserError(
      f"{name}: cannot be read ({error.strerror or error}); check the path."
    ) from error
  if not found:
    raise UserError(f"{name}: holds no puzzle; expected {_FORMS[task.name]}.")
  return _judge(found, task)


def _fault(line: int, text: str, error: UserError | str) -> Fault:
  message = str(error)
  if len(message) > _MESSAGE:
    message = message[:_MESSAGE] + "..."
  return Fault(line, _excerpt(text), message)


def _excerpt(text: str) -> str:
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
      yield _fault(number, text, f"the line has more than {_LONGEST:,} bytes")
      continue
    try:
      yield number, begin.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
      text = begin.decode(errors="replace")
      yield _fault(number, text, f"the line is not UTF-8 text ({error})")


def _text(lines: Iterator[_Line], task: Task) -> Iterator[Question | Fault]:
  if task.name == "sudoku":
    lines = (line for line in lines if not _is_comment(line))
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
  if task.name == "maze":
    lines = _grouped(lines, task.seq_len)
  for line in lines:
    yield line if isinstance(line, Fault) else _of_text(*line, task)


def _is_empty(line: _Line) -> bool:
  return not isinstance(line, Fault) and not line[1]


def _is_comment(line: _Line) -> bool:
  if isinstance(line, Fault):
    return False
  text = line[1].strip()
  return not text or text[0] == "#"


def _header(text: str) -> dict[str, int] | None:
  """Where the columns of a csv file are, if this is its first line."""
  columns = [column.strip().lower() for column in text.split(",")]
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
    return _fault(line, text, error)


def _of_row(
  line: int, text: str, columns: dict[str, int], task: Task
) -> Question | Fault:
  try:
    row = next(csv.reader([text], strict=True))
  except csv.Error as error:
    return _fault(line, text, f"no row of a csv file ({error})")
  if len(row) != len(columns):
    return _fault(
      line, text,
      f"{len(row)} columns; expected {len(columns)}, as in the header",
    )  # fmt: skip
  answer = row[columns["answer"]] if "answer" in columns else ""
  try:
    tokens = _parse(row[columns["question"]], task)
    label = task.parse(answer) if answer else None
  except UserError as error:
    return _fault(line, text, error)
  return Question(tokens, label, f"line {line}", line)


def _parse(text: str, task: Task) -> np.ndarray:
  tokens = task.parse(text)
  if task.name == "sudoku":
    _check_givens(tokens)
  elif task.name == "maze":
    if (tokens == maze_grid.PATH).any():
      raise UserError("the maze holds 'o', a path; expected the bare maze.")
    paths.shortest_path(tokens)  # complains if there is none
  return tokens


def _check_givens(tokens: np.ndarray) -> None:
  """Raises a `UserError` if a unit has a digit twice."""
  size = math.isqrt(len(tokens))
  cells = np.sort(tokens[geometry.units(size)], axis=-1)
  twice = (cells[:, 1:] == cells[:, :-1]) & (cells[:, 1:] > board.BLANK)
  if twice.any():
    unit, place = np.argwhere(twice)[0].tolist()
    kind = ("row", "column", "box")[unit // size]
    digit = board.render(cells[unit, [place]])
    raise UserError(
      f"{kind} {unit % size + 1} has two {digit}s, so there is no solution."
    )


def _judge(found: list[Question | Fault], task: Task) -> list[Question | Fault]:
  """Turns puzzles whose given answers do not solve them into faults."""
  if task.is_solution is None:
    return found
  labelled = [
    (place, item, item.label)
    for place, item in enumerate(found)
    if isinstance(item, Question) and item.label is not None
  ]
  for begin in range(0, len(labelled), _CHUNK):
    part = labelled[begin : begin + _CHUNK]
    inputs = np.stack([question.tokens for _, question, _ in part])
    labels = np.stack([label for _, _, label in part])
    is_right = np.asarray(_is_solution(inputs, labels, task))
    for row in np.flatnonzero(~is_right):
      place, question, label = part[row]
      found[place] = _fault(
        question.line,
        task.render(question.tokens),
        f"the answer {_excerpt(task.render(label))} does not solve it",
      )
  return found


@functools.partial(jax.jit, static_argnames="task")
def _is_solution(inputs, labels, task):
  return task.is_solution(inputs, labels)


# ARC.


def _arc(stream: BinaryIO, task: Task, name: str) -> Iterator[Question | Fault]:
  size = math.isqrt(task.seq_len)
  for called, content in _arc_tasks(stream, name).items():
    where = f"task {_excerpt(called)!r}"
    if not called.isprintable() or len(called) > _NAME:
      yield _fault(
        0, called,
        f"{where}: not a name; expected at most {_NAME} printable characters",
      )  # fmt: skip
      continue
    pairs = content.get("test") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs:
      yield _fault(
        0, called, f"{where}: expected an object with a list 'test' of pairs"
      )
      continue
    for number, pair in enumerate(pairs):
      try:
        tokens, label = _arc_pair(pair, size)
      except UserError as error:
        yield _fault(
          0, f"{called}_{number}", f"{where}, test pair {number + 1}: {error}"
        )
      else:
        yield Question(tokens, label, f"{called}_{number}", 0)


def _arc_tasks(stream: BinaryIO, name: str) -> dict[str, Any]:
  """Name -> what should be a task."""
  text = stream.read(_MOST_JSON + 1)
  if len(text) > _MOST_JSON:
    raise UserError(
      f"{name}: more than {_MOST_JSON:,} bytes of json; split it into smaller "
      "files."
    )
  if not text.strip():
    return {}
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{name}: not valid json ({error}); expected {_FORMS['arc']}."
    ) from error
  if not isinstance(content, dict):
    raise UserError(f"{name}: holds no object; expected {_FORMS['arc']}.")
  if isinstance(content.get("test"), list):
    return {pathlib.PurePath(name).stem: content}
  return content


def _arc_pair(pair: Any, size: int) -> tuple[np.ndarray, np.ndarray | None]:
  if not isinstance(pair, dict):
    raise UserError("expected an object with 'input', and 'output' if known.")
  question = grids.encode(grids.as_grid(pair.get("input")), size)
  if "output" not in pair:
    return question, None
  return question, grids.encode(grids.as_grid(pair["output"]), size)
