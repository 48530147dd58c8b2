"""The last scores of a run: `result.json`.

checkpoint   int, the checkpoint's step
split        "test" or "train"
data         source of the puzzles, or "" for the run's own
records      list of scores, each with depth, breadth, select (the selection
             rule), halt (the halting rules in words), puzzles and numbers
...          other values of the program, such as settings and speed
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from trm_jax.run.files import read_optional, write_json


def write(
  path: pathlib.Path,
  checkpoint: int,
  records: Sequence[Mapping[str, Any]],
  *,
  split: str = "test",
  data: str = "",
  **more: Any,
):
  """Writes scores; records may lack the rules that `_complete` adds."""
  write_json(
    path,
    {
      "checkpoint": checkpoint,
      "split": split,
      "data": data,
      "records": [_complete(record) for record in records],
      **more,
    },
  )


def _complete(record: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the rules of plain evaluation where a record has none."""
  select = "vote" if "pass@1" in record else "q"
  rules = {"breadth": 1, "select": select, "halt": "fixed"}
  return {"depth": record["depth"], **rules, **record}


def read(path: pathlib.Path, checkpoint: int) -> list[dict[str, Any]]:
  """The records of a checkpoint; empty if another one was scored last."""
  result = read_optional(path)
  if result.get("checkpoint") != checkpoint:
    return []
  # Earlier versions wrote "depths" or "grid".
  return next(
    (result[k] for k in ("records", "depths", "grid") if k in result), []
  )
