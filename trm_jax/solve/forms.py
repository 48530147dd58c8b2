"""The forms in which people give a puzzle, as the one that files have."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from trm_jax.data import questions
from trm_jax.data.questions import Fault, Question
from trm_jax.data.task import Task
from trm_jax.errors import UserError


def listed(puzzle: Any, task: Task) -> Sequence[Any] | None:
  """The puzzles, if many were given; None if it is one.

  Many are a list or a tuple that does not consist of the rows or the cells of
  one, or an array `[N, rows, columns]` or `[N, S]`.
  """
  if isinstance(puzzle, (np.ndarray, jax.Array)):
    is_many = puzzle.ndim == 3 or puzzle.shape[1:] == (task.seq_len,)
    return list(puzzle) if is_many else None
  if not isinstance(puzzle, (list, tuple)):
    return None
  if not puzzle:
    return puzzle
  if all(isinstance(row, str) for row in puzzle):
    return None if _are_rows(puzzle, task) else puzzle
  first = puzzle[0]
  if _has_parts(first):
    # A row is shorter than a whole puzzle.
    is_row = 0 < len(first) < task.seq_len and not _has_parts(first[0])
  else:
    is_row = isinstance(first, (int, float, np.number))
  return None if is_row else puzzle


def read(puzzle: Any, task: Task, name: str) -> list[Question]:
  """Reads one puzzle, as `TRMProcessor.reason` takes it.

  Returns:
    The question, with that name; for ARC one for each test grid of a task.

  Raises:
    UserError: if it is not a puzzle of the task, or more than one.
  """
  # A character that cannot be encoded is not part of any puzzle.
  content = _as_text(puzzle, task, name).encode(errors="replace")
  found = questions.read(io.BytesIO(content), task, name)
  asked = []
  for item in found:
    if isinstance(item, Fault):
      raise UserError(f"{name}: {item.message}")
    asked.append(item)
  if task.read:
    return asked
  if len(asked) > 1:
    raise UserError(
      f"{name}: the text holds {len(asked)} puzzles; give a list of them"
    )
  (one,) = asked
  return [Question(one.tokens, one.label, name, one.line)]


def _has_parts(value: Any) -> bool:
  if isinstance(value, (np.ndarray, jax.Array)):
    return value.ndim > 0
  return isinstance(value, (list, tuple))


def _are_rows(texts: Sequence[str], task: Task) -> bool:
  """Whether texts are the rows of one puzzle, or its cells."""
  width = len(texts[0])
  return (
    not task.read
    and width < task.seq_len
    and all(len(text) == width for text in texts)
    and width * len(texts) == task.seq_len
  )


def _as_text(puzzle: Any, task: Task, name: str) -> str:
  """A puzzle in the form that `questions.read` takes."""
  if isinstance(puzzle, str):
    cells = "".join(puzzle.split())
    # A board may be written as its rows, which in a file are puzzles.
    is_text = not task.read and not task.in_rows
    return cells if is_text and len(cells) == task.seq_len else puzzle
  if task.read and isinstance(puzzle, Mapping):
    return _as_json(dict(puzzle), name)
  if not isinstance(puzzle, (list, tuple, np.ndarray, jax.Array)):
    raise UserError(
      f"{name}: {type(puzzle).__name__} is no puzzle; expected {task.form}"
    )
  try:
    grid = np.asarray(puzzle)
  except ValueError as error:
    raise UserError(f"{name}: its rows differ in length") from error
  if grid.dtype.kind == "U" and not task.read:
    return "".join(grid.reshape(-1).tolist())
  if grid.dtype.kind not in "iu" or not task.from_numbers or not grid.size:
    raise UserError(
      f"{name}: an array {grid.shape} of {grid.dtype} is no puzzle; expected "
      f"{task.form}"
    )
  try:
    return task.from_numbers(grid)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error


def _as_json(content: dict[str, Any], name: str) -> str:
  def plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
      return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")

  try:
    return json.dumps(content, default=plain)
  except (TypeError, ValueError, RecursionError) as error:
    raise UserError(f"{name}: is not as in json ({error})") from error
