"""All tasks, and functions that load their splits from the settings."""

import dataclasses
from collections.abc import Callable

import numpy as np

from trm_jax.data import duplicates, folder
from trm_jax.data.arc.task import ArcData
from trm_jax.data.maze.task import MazeData
from trm_jax.data.sudoku.task import SudokuData
from trm_jax.data.task import Settings, Split
from trm_jax.errors import UserError

TASKS: dict[str, type] = {}  # name -> the class of its settings
UNSEEN = ("error", "blank", "mean")


def register(name: str, settings: type) -> None:
  """Adds a task, with the class of its settings, for `data.task` in configs."""
  if TASKS.setdefault(name, settings) is not settings:
    raise ValueError(f"{name}: a task of this name is registered already")


register("sudoku", SudokuData)
register("maze", MazeData)
register("arc", ArcData)


def prepare(settings: Settings, say: Callable[[str], None]) -> list[str]:
  """Makes the dataset if it does not exist, or checks its folder.

  `say` is called with a sentence before work that may take a minute. Returns
  sentences for users of the dataset, such as what was left out and why.
  """
  if settings.path:
    folder.metadata(settings.path, settings.task)
  elif settings.task.dataset.prepare:
    return settings.task.dataset.prepare(settings, say)
  questions = {}
  for name in folder.SPLITS:
    if has_split(settings, name):
      split = load(settings, name)
      originals = split.take(np.arange(len(split)), copies=1)
      questions[name] = split.inputs[originals.rows[0]]
  return duplicates.notes(questions, settings.task)


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
  """Loads a split into host memory; a folder's arrays are memory-mapped.

  `groups`, integers [N], selects the groups to load; None loads all.
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

  The source is a folder in the reference's layout, or a value of
  `settings.test`.
  """
  if folder.is_dataset(source):
    return dataclasses.replace(settings, path=source)
  # Generated puzzles avoid those of training, so they need its settings.
  train = settings.train if source == "generate" else ""
  changes = dict.fromkeys(settings.task.dataset.selects, "")
  changes |= {"path": "", "train": train, "test": source}
  return dataclasses.replace(settings, **changes)


def match_ids(
  split: Split, names: list[str], known: list[str], unseen: str
) -> Split:
  """Replaces the puzzle ids of a split by those of a trained model.

  Args:
    split: puzzles whose ids are indices of `names`.
    names: the name of each id of the split's dataset.
    known: the name of each id of the model.
    unseen: "error" refuses puzzles without an id in the model; "blank" and
      "mean" give them id 0, whose embedding the caller sets.
  """
  if len(known) == 1:  # one embedding for all puzzles
    return dataclasses.replace(split, puzzle_ids=0 * split.puzzle_ids)
  ids: dict[str, int] = {name: number for number, name in enumerate(known)}
  puzzles = [names[number] for number in split.puzzle_ids.tolist()]
  puzzle_ids = np.array([ids.get(name, 0) for name in puzzles], np.int32)
  missing = np.flatnonzero(puzzle_ids == 0)
  if len(missing) and unseen == "error":
    raise UserError(
      f"{len(missing):,} of {len(puzzles):,} puzzles were not trained on, so "
      f"they have no embedding; the first is {puzzles[missing[0]]!r}. Choose "
      "--puzzle_id=mean (the mean of all embeddings) or --puzzle_id=blank "
      "(none), or evaluate the tasks of the training run"
    )
  return dataclasses.replace(split, puzzle_ids=puzzle_ids)
