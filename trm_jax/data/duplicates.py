"""Finds puzzles that stand in a dataset more than once."""

from collections.abc import Mapping

import numpy as np

from trm_jax.data.hashes import hash_rows
from trm_jax.data.task import Task

_CHUNK = 1 << 22  # tokens hashed at a time
_MOST_KEYED = 1_000_000  # puzzles compared under symmetries, for some seconds


def notes(splits: Mapping[str, np.ndarray], task: Task) -> list[str]:
  """Sentences on repeated questions, for users of a dataset.

  Args:
    splits: questions of each split, uint8 [N, S]; "train" comes first.
    task: their task. If it has `Symmetry.keys`, images of questions count too.
  """
  names, parts = list(splits), list(splits.values())
  ends = np.cumsum([len(part) for part in parts])
  kinds = [np.split(np.concatenate([*map(_hash, parts)]), ends[:-1])]
  symmetry = task.augmentation
  if symmetry and symmetry.keys and ends[-1] <= _MOST_KEYED:
    keys = symmetry.keys(np.concatenate(parts))
    kinds.append(np.split(keys, ends[:-1]))
  found = []
  if len(names) == 2:
    found += _sentence(
      "overlap",
      [np.isin(test, train) for train, test in kinds],
      "test puzzles stand in the training set",
      "; scores on them tell nothing of new puzzles",
    )
  for number, name in enumerate(names):
    repeated = [_repeats(keys[number]) for keys in kinds]
    what = f"puzzles of {name} repeat an earlier one"
    found += _sentence("duplicates", repeated, what)
  return found


def _hash(rows: np.ndarray) -> np.ndarray:
  size = max(1, _CHUNK // max(1, rows.shape[1]))
  parts = [hash_rows(rows[i : i + size]) for i in range(0, len(rows), size)]
  return np.concatenate([np.empty(0, np.uint64), *parts])


def _repeats(keys: np.ndarray) -> np.ndarray:
  """Which keys stand earlier as well, bool [N]."""
  repeated = np.ones(len(keys), bool)
  repeated[np.unique(keys, return_index=True)[1]] = False
  return repeated


def _sentence(
  kind: str, masks: list[np.ndarray], what: str, advice: str = ""
) -> list[str]:
  """A note on the puzzles of a split that are equal, or images: bool [N]."""
  either = masks[0] | masks[-1]
  count, images = either.sum(), either.sum() - masks[0].sum()
  if not count:
    return []
  places = ", ".join(map(str, np.flatnonzero(either)[:3]))
  more = f", {images:,} of them under a symmetry of the task" if images else ""
  return [
    f"{kind}: {count:,} of {len(either):,} {what}{more} (numbers {places}"
    f"{', ...' * bool(count > 3)}, counted from 0){advice}."
  ]
