"""Reads puzzles to solve from a file, in the format of its task.

By default that is csv, JSON lines or boards as text, see `text`. Tasks with
another format have `Task.read`.

Invalid puzzles are reported as faults, and the rest is read anyway. The input
is not trusted.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from trm_jax.data import lines, text
from trm_jax.data.entries import Entry, Fault, Faults, excerpt
from trm_jax.data.task import Task, judge
from trm_jax.errors import UserError

_MOST = 1_000_000_000  # characters of a file


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


def read(stream: BinaryIO, task: Task, name: str) -> list[Question | Fault]:
  """Reads all puzzles, in order.

  A puzzle is a fault if the task's rules do not allow it, or if it has an
  answer that does not solve it.

  Args:
    stream: bytes, of a file or of standard input; may be compressed.
    task: their task.
    name: the path, or another name for the stream. If the file holds a single
      ARC task, its stem is the task's id.

  Returns:
    The questions and faults, one or more.
  """
  return judged(list(arriving(stream, task, name, _MOST)), task)


def arriving(
  stream: BinaryIO, task: Task, name: str, most: int | None = None
) -> Iterator[Question | Fault]:
  """`read`, one by one as they arrive; their answers are not judged yet.

  `most` is the most characters in all; None for any number.
  """
  faults, good = Faults(name, task.form), 0
  try:
    for item in _items(stream, task, name, most):
      if isinstance(item, Fault):
        faults.add([item], 1, good)
      else:
        good += 1
      yield item
  except OSError as error:
    raise lines.unreadable(name, error) from error
  if not (good or faults.count):
    raise UserError(f"{name}: holds no puzzle; expected {task.form}.")


def _items(
  stream: BinaryIO, task: Task, name: str, most: int | None
) -> Iterator[Question | Fault]:
  if task.read:
    content = lines.unpack(stream, name, task.form)
    yield from task.read(content, task, name)
    return
  numbered = lines.read(stream, name, task.form, most)
  for item in text.read(numbered, task.layout, task.seq_len, name):
    yield item if isinstance(item, Fault) else _of_entry(item, task)


def _of_entry(entry: Entry, task: Task) -> Question | Fault:
  line = entry.line
  try:
    tokens = _parse(entry.question, task)
    label = task.parse(entry.answer) if entry.answer else None
  except UserError as error:
    return Fault.of(line, entry.question, error)
  return Question(tokens, label, f"line {line}", line)


def _parse(text: str, task: Task) -> np.ndarray:
  tokens = task.parse(text)
  if task.check:
    task.check(tokens)
  return tokens


def judged(
  found: Sequence[Question | Fault], task: Task
) -> list[Question | Fault]:
  """Turns puzzles whose given answers do not solve them into faults."""
  labelled = [
    (place, item, item.label)
    for place, item in enumerate(found)
    if isinstance(item, Question) and item.label is not None
  ]
  if task.is_solution is None or not labelled:
    return list(found)
  found = list(found)
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
