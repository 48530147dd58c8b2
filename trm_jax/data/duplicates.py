"""Finds puzzles that stand in a dataset more than once."""

from collections.abc import Mapping

import numpy as np

from trm_jax.data.hashes import hash_rows
from trm_jax.data.task import Task

_MOST = 100_000_000  # tokens compared under symmetries, which takes seconds


def notes(splits: Mapping[str, np.ndarray], task: Task) -> list[str]:
  """Sentences on repeated questions, for users of a dataset.

  Args:
    splits: questions of each split, uint8 [N, S]; "train" comes first.
    task: their task. If it has `Symmetry.keys`, images of questions count too.
  """
  names, parts = list(splits), list(splits.values())
  ends = np.cumsum([len(part) for part in parts])
  kinds = [np.split(np.concatenate([*map(hash_rows, parts)]), ends[:-1])]
  symmetry = task.augmentation
  if symmetry and symmetry.keys and sum(map(np.size, parts)) <= _MOST:
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
