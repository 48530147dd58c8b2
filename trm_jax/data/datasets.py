"""All tasks, and the way to their data: settings -> splits in memory."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from trm_jax.data import folder
from trm_jax.data.arc.task import ArcData
from trm_jax.data.maze.task import MazeData
from trm_jax.data.sudoku.task import SudokuData
from trm_jax.data.task import Settings, Split
from trm_jax.errors import UserError

TASKS: dict[str, type] = {}  # name -> the class of its settings
UNSEEN = ("error", "blank", "mean")


def register(name: str, settings: type) -> None:
  """Adds a task, so that a config may name it as `data.task`.

  Args:
    name: as in `Task.name`.
    settings: a frozen dataclass, as `task.Settings` describes it.
  """
  if TASKS.setdefault(name, settings) is not settings:
    raise ValueError(f"{name}: a task of this name is registered already")


register("sudoku", SudokuData)
register("maze", MazeData)
register("arc", ArcData)


def prepare(settings: Settings, say: Callable[[str], None]) -> list[str]:
  """Makes the dataset, if it is not there yet, or checks its folder.

  Args:
    settings: the `data` section of an experiment.
    say: called with a sentence before work that may take a minute.

  Returns:
    Sentences that users should read: what was left out and why.

  Raises:
    UserError: the dataset cannot be prepared.
  """
  if settings.path:
    folder.metadata(settings.path, settings.task)
    return []
  return settings.task.dataset.prepare(settings, say)


def has_split(settings: Settings, split: str) -> bool:
  """Whether the dataset has a training or a test split."""
  if settings.path:
    return split in folder.metadata(settings.path).splits
  return bool(getattr(settings, split))


def num_groups(settings: Settings, split: str) -> int:
  """Counts the groups of a split; see `task.Split`."""
  if settings.path:
    return len(folder.read(settings.path, split, settings.task))
  return settings.task.dataset.num_groups(settings, split)


def load(
  settings: Settings, split: str, groups: np.ndarray | None = None
) -> Split:
  """Puts a split into host memory; a folder's arrays are memory-mapped.

  Args:
    settings: the `data` section of an experiment.
    split: "train" or "test".
    groups: integers [N], the groups to load; None loads all.

  Raises:
    UserError: the dataset cannot be prepared or read, or has no such split.
  """
  if settings.path:
    whole = folder.read(settings.path, split, settings.task)
    return whole if groups is None else whole.take(groups)
  return settings.task.dataset.load(settings, split, groups)


def identifiers(settings: Settings) -> list[str]:
  """The name of each puzzle id; id 0 is blank."""
  if settings.path:
    return folder.identifiers(settings.path)
  return settings.task.dataset.identifiers(settings)


def tested_on(settings, source: str):
  """The settings with another test split, and without a training split.

  The source is a folder in the reference's layout, or what `settings.test`
  takes.
  """
  if os.path.isdir(os.path.join(os.path.expanduser(source), "test")):
    return dataclasses.replace(settings, path=source)
  # Generated puzzles must avoid those of training; a file stands alone.
  train = settings.train if source == "generate" else ""
  changes = dict.fromkeys(settings.task.dataset.selects, "")
  changes |= {"path": "", "train": train, "test": source}
  return dataclasses.replace(settings, **changes)


def match_ids(
  split: Split, names: list[str], known: list[str], unseen: str
) -> Split:
  """Gives the puzzles of a split the ids that a trained model knows them by.

  Args:
    split: puzzles whose ids count in `names`.
    names: the name of each id of the split's dataset.
    known: the name of each id of the model's.
    unseen: "error" refuses puzzles that the model does not know; "blank" and
      "mean" give them id 0, whose row the caller leaves or sets to the mean.

  Raises:
    UserError: a puzzle is not known, and `unseen` is "error".
  """
  if len(known) == 1:  # a model without names has one row for all puzzles
    return dataclasses.replace(split, puzzle_ids=0 * split.puzzle_ids)
  ids: dict[str, int] = {name: number for number, name in enumerate(known)}
  asked = [names[number] for number in split.puzzle_ids.tolist()]
  puzzle_ids = np.array([ids.get(name, 0) for name in asked], np.int32)
  missing = np.flatnonzero(puzzle_ids == 0)
  if len(missing) and unseen == "error":
    raise UserError(
      f"{len(missing):,} of {len(asked):,} puzzles were not trained on, so "
      f"they have no embedding; the first is {asked[missing[0]]!r}. Choose "
      "--puzzle_id=mean (the mean of all embeddings) or --puzzle_id=blank "
      "(none), or evaluate the tasks of the training run"
    )
  return dataclasses.replace(split, puzzle_ids=puzzle_ids)
