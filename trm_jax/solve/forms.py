"""Reads puzzles given as Python values: texts, lists, arrays, ARC tasks."""

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
  """The puzzles, if `puzzle` is many; None if it is one.

  Many is an array `[N, rows, columns]` or `[N, S]`, or a list or tuple, unless
  of the rows or cells of one puzzle.
  """
  if isinstance(puzzle, (np.ndarray, jax.Array)):
    is_many = puzzle.ndim == 3 or puzzle.shape[1:] == (task.seq_len,)
    return list(puzzle) if is_many else None
  if not isinstance(puzzle, (list, tuple)):
    return None
  if not puzzle:
    return puzzle
  if all(isinstance(row, str) for row in puzzle):
    width = len(puzzle[0])
    is_one = (  # its rows or its cells
      not task.read
      and width < task.seq_len
      and all(len(row) == width for row in puzzle)
      and width * len(puzzle) == task.seq_len
    )
    return None if is_one else puzzle
  first = puzzle[0]
  if _is_sequence(first):
    # A row is shorter than a whole puzzle.
    is_row = 0 < len(first) < task.seq_len and not _is_sequence(first[0])
  else:
    is_row = isinstance(first, (int, float, np.number))
  return None if is_row else puzzle


def read(puzzle: Any, task: Task, name: str) -> list[Question]:
  """Reads one puzzle, in any form that `TRMProcessor.reason` takes.

  Returns:
    The question, called `name`; for ARC one for each test grid of a task.

  Raises:
    UserError: if it is not a puzzle of the task, or more than one.
  """
  # Characters that cannot be encoded are refused as those of no puzzle.
  content = _as_text(puzzle, task, name).encode(errors="replace")
  found = []
  for item in questions.read(io.BytesIO(content), task, name):
    if isinstance(item, Fault):
      raise UserError(f"{name}: {item.message}")
    found.append(item)
  if task.read:
    return found
  if len(found) > 1:
    raise UserError(
      f"{name}: the text holds {len(found)} puzzles; give a list of them"
    )
  (one,) = found
  return [Question(one.tokens, one.label, name, one.line)]


def _is_sequence(value: Any) -> bool:
  if isinstance(value, (np.ndarray, jax.Array)):
    return value.ndim > 0
  return isinstance(value, (list, tuple))


def _as_text(puzzle: Any, task: Task, name: str) -> str:
  """A puzzle as the text of a file, for `questions.read`."""
  if isinstance(puzzle, str):
    cells = "".join(puzzle.split())
    # A text may break a board into rows; in a file each line is a puzzle.
    in_lines = not task.read and not task.in_rows
    return cells if in_lines and len(cells) == task.seq_len else puzzle
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
