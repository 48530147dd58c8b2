"""Reads ARC questions: the JSON of a task, or a competition's challenges."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from trm_jax.data import checks
from trm_jax.data.arc import files, grids
from trm_jax.data.questions import Fault, Question, excerpt
from trm_jax.data.task import Task
from trm_jax.errors import UserError

FORM = "the json of ARC tasks, or of a competition's challenges"

_MOST_BYTES = 100_000_000  # parsed JSON takes many times the memory
_LONGEST_NAME = 200


def read(stream: BinaryIO, task: Task, name: str) -> Iterator[Question | Fault]:
  """Reads the test pairs of tasks; see `Task.read`."""
  size = math.isqrt(task.seq_len)
  for key, content in _tasks(stream, name).items():
    where = f"task {excerpt(key)!r}"
    if not key.isprintable() or len(key) > _LONGEST_NAME:
      yield Fault.of(
        0, key,
        f"{where}: not a name; expected at most {_LONGEST_NAME} printable "
        "characters",
      )  # fmt: skip
      continue
    pairs = content.get("test") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs:
      yield Fault.of(
        0, key, f"{where}: expected an object with a list 'test' of pairs"
      )
      continue
    for number, pair in enumerate(pairs):
      try:
        tokens, label = _pair(pair, size)
      except UserError as error:
        yield Fault.of(
          0, f"{key}_{number}", f"{where}, test pair {number + 1}: {error}"
        )
      else:
        yield Question(tokens, label, f"{key}_{number}", 0)


def _tasks(stream: BinaryIO, name: str) -> dict[str, Any]:
  """Reads unchecked tasks by name."""
  text = stream.read(_MOST_BYTES + 1)
  if len(text) > _MOST_BYTES:
    raise UserError(
      f"{name}: more than {_MOST_BYTES:,} bytes of json; split it into smaller "
      "files."
    )
  if not text.strip():
    return {}
  try:
    content = checks.parse_json(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{name}: not valid json ({error}); expected {FORM}."
    ) from error
  return files.by_name(content, pathlib.PurePath(name).stem, name)


def _pair(pair: Any, size: int) -> tuple[np.ndarray, np.ndarray | None]:
  if not isinstance(pair, dict):
    raise UserError("expected an object with 'input', and 'output' if known.")
  question = grids.encode(grids.as_grid(pair.get("input")), size)
  if pair.get("output") is None:
    return question, None
  return question, grids.encode(grids.as_grid(pair["output"]), size)
