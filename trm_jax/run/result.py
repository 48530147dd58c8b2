"""The last scores of a run: `result.json`.

checkpoint   int, optimizer steps behind the model
split        "test" or "train", of what was scored
data         the source that was scored instead of the run's own, or ""
records      a list of scores, each with depth, breadth, select (the selection
             rule), halt (the halting rules in words), puzzles and numbers
...          what else the program tells, such as its settings and speed
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from trm_jax.run.files import read_optional
from trm_jax.run.folder import write_json


def write(
  path: pathlib.Path,
  checkpoint: int,
  records: Sequence[Mapping[str, Any]],
  *,
  split: str = "test",
  data: str = "",
  **more: Any,
):
  """Writes scores; records of plain evaluation need not name their rules."""
  write_json(
    path,
    {
      "checkpoint": checkpoint,
      "split": split,
      "data": data,
      "records": [complete(record) for record in records],
      **more,
    },
  )


def complete(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record of plain evaluation, with the names of its rules."""
  select = "vote" if "pass@1" in record else "q"
  rules = {"breadth": 1, "select": select, "halt": "fixed"}
  return {"depth": record["depth"], **rules, **record}


def read(path: pathlib.Path, checkpoint: int) -> list[dict[str, Any]]:
  """The records of a checkpoint; none if another one was scored last.

  Raises:
    UserError: the file is damaged.
  """
  result = read_optional(path)
  if result.get("checkpoint") != checkpoint:
    return []
  # "depths" and "grid" were the names of earlier versions.
  return next(
    (result[k] for k in ("records", "depths", "grid") if k in result), []
  )
