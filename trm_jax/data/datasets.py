"""The door to all data: a config's settings -> splits in host memory."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from trm_jax.data import folder
from trm_jax.data.arc import builder as arc
from trm_jax.data.arc.settings import ArcData
from trm_jax.data.maze import builder as maze
from trm_jax.data.maze.settings import MazeData
from trm_jax.data.sudoku import builder as sudoku
from trm_jax.data.sudoku.settings import SudokuData
from trm_jax.data.task import Split
from trm_jax.errors import UserError

_BUILDERS = {SudokuData: sudoku, MazeData: maze, ArcData: arc}
UNSEEN = ("error", "blank", "mean")


def prepare(settings, say: Callable[[str], None]) -> list[str]:
  """Makes the dataset, if it is not there yet, or checks its folder.

  Args:
    settings: the `data` section of an experiment.
    say: told in a sentence, before it starts, of work that may take a minute.

  Returns:
    Sentences that its users should read: what was left out and why.

  Raises:
    UserError: the dataset cannot be prepared.
  """
  if settings.path:
    folder.check_fits(settings.path, settings.task)
    return []
  return _BUILDERS[type(settings)].prepare(settings, say)


def has_test(settings) -> bool:
  """Whether the dataset has a test split."""
  if settings.path:
    return "test" in folder.metadata(settings.path).splits
  return bool(settings.test)


def num_groups(settings, split: str) -> int:
  """Counts the groups of a split; see `task.Split`."""
  if settings.path:
    return len(folder.read(settings.path, split))
  return _BUILDERS[type(settings)].num_groups(settings, split)


def load(settings, split: str, groups: np.ndarray | None = None) -> Split:
  """Puts a split into host memory; a folder's arrays are memory-mapped.

  Args:
    settings: the `data` section of an experiment.
    split: "train" or "test".
    groups: integers [N], the groups to load; None loads all.

  Returns:
    The split.

  Raises:
    UserError: the dataset cannot be prepared or read, or has no such split.
  """
  if settings.path:
    whole = folder.read(settings.path, split)
    return whole if groups is None else whole.take(groups)
  return _BUILDERS[type(settings)].load(settings, split, groups)


def identifiers(settings) -> list[str]:
  """The name of each puzzle id; id 0 is blank."""
  if settings.path:
    return folder.identifiers(settings.path)
  return _BUILDERS[type(settings)].identifiers(settings)


def tested_on(settings, source: str):
  """The settings of the same task family with another test split.

  Args:
    settings: the `data` section of an experiment.
    source: a folder in the reference's layout, or what `settings.test` takes.

  Returns:
    The settings, without a training split.
  """
  if os.path.isdir(os.path.join(os.path.expanduser(source), "test")):
    return dataclasses.replace(settings, path=source)
  # Generated puzzles must avoid those of training; a file stands alone.
  train = settings.train if source == "generate" else ""
  changes = {"path": "", "train": train, "test": source}
  if isinstance(settings, ArcData):
    changes["only"] = ""
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

  Returns:
    The split with the model's ids.

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
