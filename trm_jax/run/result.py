"""The last scores of a run: `result.json`.

checkpoint   int, the checkpoint's step
split        "test" or "train"
data         source of the puzzles, or "" for the run's own, see its config
records      list of scores, each with depth, breadth, select (the selection
             rule), halt (the halting rules in words), puzzles and numbers
...          other values of the program, such as settings and speed
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from trm_jax.errors import UserError
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
  """The records of a checkpoint, each with its `split` and `data`.

  Empty if another checkpoint was scored last.
  """
  result = read_optional(path)
  if result.get("checkpoint") != checkpoint:
    return []
  # Earlier versions wrote "depths" or "grid", and no "split" or "data".
  records = next(
    (result[k] for k in ("records", "depths", "grid") if k in result), []
  )
  tested = {name: result[name] for name in ("split", "data") if name in result}
  return [tested | record for record in checked(path, records)]


def checked(path: pathlib.Path, records: Any) -> list[dict[str, Any]]:
  """The records; a UserError if they are not a list of objects with a depth."""
  if isinstance(records, list) and all(
    isinstance(record, dict) and type(record.get("depth")) is int
    for record in records
  ):
    return records
  raise UserError(
    f"{path} is damaged: its scores are not a list of objects with a depth; "
    "evaluate the run again, and export it again"
  )


def puzzles_in_words(split: str, data: str) -> str:
  """What scores are of, such as "held-out puzzles"."""
  if not data:
    return "held-out puzzles" if split == "test" else "training puzzles"
  return f"puzzles of {data}" + ", training split" * (split == "train")


def in_words(records: Sequence[Mapping[str, Any]]) -> list[str]:
  """The deepest record of each set of puzzles as a line."""
  deepest: dict[str, Mapping[str, Any]] = {}
  for record in records:
    puzzles = "unknown puzzles"  # of a file by an earlier version
    if "split" in record:
      puzzles = puzzles_in_words(record["split"], record.get("data", ""))
    if record["depth"] >= deepest.get(puzzles, record)["depth"]:
      deepest[puzzles] = record
  return [
    "".join(
      f"{name.replace('_', ' ')} {record[name]:.1%}, "
      for name in ("exact_accuracy", "pass@1", "pass@2")
      if isinstance(record.get(name), float)
    )
    + f"depth {record['depth']}, {record.get('puzzles')} {puzzles}"
    for puzzles, record in deepest.items()
  ]
