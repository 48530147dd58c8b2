"""The forms in which people give a puzzle, as the one that files have."""

import io
import json
import math
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
  if task.name == "arc":
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
    task.name != "arc"
    and width < task.seq_len
    and all(len(text) == width for text in texts)
    and width * len(texts) == task.seq_len
  )


def _as_text(puzzle: Any, task: Task, name: str) -> str:
  """A puzzle in the form that `questions.read` takes."""
  if isinstance(puzzle, str):
    cells = "".join(puzzle.split())
    # A board may be written as its rows, which in a file are puzzles.
    is_board = task.name == "sudoku" and len(cells) == task.seq_len
    return cells if is_board else puzzle
  if task.name == "arc" and isinstance(puzzle, Mapping):
    return _as_json(dict(puzzle), name)
  if not isinstance(puzzle, (list, tuple, np.ndarray, jax.Array)):
    raise UserError(
      f"{name}: {type(puzzle).__name__} is no puzzle; expected "
      f"{_expected(task)}"
    )
  try:
    grid = np.asarray(puzzle)
  except ValueError as error:
    raise UserError(f"{name}: its rows differ in length") from error
  if grid.dtype.kind == "U" and task.name != "arc":
    return "".join(grid.reshape(-1).tolist())
  if grid.dtype.kind not in "iu" or task.name == "maze" or not grid.size:
    raise UserError(
      f"{name}: an array {grid.shape} of {grid.dtype} is no puzzle; expected "
      f"{_expected(task)}"
    )
  if task.name == "arc":
    return _as_json({"test": [{"input": grid}]}, name)
  side = math.isqrt(task.seq_len)
  if grid.shape not in ((side, side), (task.seq_len,)):
    raise UserError(
      f"{name}: its shape is {grid.shape}; expected {(side, side)} or "
      f"{(task.seq_len,)}"
    )
  if grid.min() < 0 or grid.max() > 9:
    raise UserError(
      f"{name}: numbers from {grid.min()} to {grid.max()}; expected digits, "
      "and 0 for a blank"
    )
  return "".join(map(str, grid.reshape(-1).tolist()))


def _expected(task: Task) -> str:
  return {
    "sudoku": "a text, or rows of digits with 0 for a blank",
    "maze": "a text of '# SG', or rows of it",
    "arc": "rows of colours, or a task as in its json",
  }[task.name]


def _as_json(content: dict[str, Any], name: str) -> str:
  def plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
      return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")

  try:
    return json.dumps(content, default=plain)
  except (TypeError, ValueError, RecursionError) as error:
    raise UserError(f"{name}: is not as in json ({error})") from error
