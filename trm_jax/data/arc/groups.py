"""Selects the tasks of an ARC dataset, and finds overlap of its splits."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from trm_jax.data.arc import files
from trm_jax.data.arc.files import ArcTask, Pair
from trm_jax.errors import UserError


def gather(settings: Any) -> tuple[list[ArcTask], list[str]]:
  """Reads the sources of an `ArcData` and unites tasks of the same name.

  Returns:
    tasks: those of `settings.train` first, then sorted by name per source. Here
      `ArcTask.train` are the pairs to train on, and `ArcTask.test` those to
      evaluate, which only tasks of `settings.test` have.
    notes: sentences for users of the dataset.
  """
  trained = [t for source in settings.train_sources for t in files.read(source)]
  tested = [t for source in settings.test_sources for t in files.read(source)]
  if settings.only_names:
    trained, tested = _only(settings.only_names, trained, tested)
    if settings.test_sources and not tested:
      raise UserError(
        f"only: {settings.only!r} names no task of test; name one, or set test "
        f"to '' to train without an evaluation."
      )
  _check_size(trained + tested, settings.size)
  tasks, differing = _unite([*map(_all_trained_on, trained), *tested])
  notes = _notes_on_sources(settings)
  notes += _notes_on_solutions(trained, tested)
  for option, part in (("train", trained), ("test", tested)):
    notes += _notes_on_names(option, part)
  if differing:
    notes.append(
      f"Pairs are put together where sources differ in a task: "
      f"{_some(differing)}."
    )
  overlap = _overlap(tasks, {task.name for task in trained})
  if overlap:
    text = (
      f"the training set gives away {len(overlap)} of "
      f"{sum(bool(task.test) for task in tasks)} test tasks, by the task "
      f"itself or by a test pair: {_some(overlap)}. Scores on them tell "
      f"nothing of new tasks"
    )
    if settings.refuse_overlap:
      raise UserError(
        f"refuse_overlap: {text}; take them out of a source, or choose others "
        f"with only."
      )
    notes.append(f"overlap: {text}.")
  return tasks, notes


def _only(
  names: Sequence[str], *parts: list[ArcTask]
) -> tuple[list[ArcTask], ...]:
  """Keeps the tasks with these names."""
  known = {task.name for part in parts for task in part}
  for name in names:
    if name not in known:
      similar = difflib.get_close_matches(name, known) or sorted(known)[:3]
      raise UserError(
        f"only: no source has a task {name!r}; expected names such as "
        f"{', '.join(similar)}."
      )
  return tuple([task for task in part if task.name in names] for part in parts)


def _check_size(tasks: Iterable[ArcTask], size: int) -> None:
  for task in tasks:
    for pair in task.train + task.test:
      for grid in pair:
        if grid is not None and max(grid.shape) > size:
          height, width = grid.shape
          raise UserError(
            f"size: {size}, but task {task.name!r} of {task.source} has a "
            f"grid of {height}x{width}; raise size, or choose tasks with "
            f"only."
          )


def _notes_on_solutions(
  trained: Sequence[ArcTask], tested: Sequence[ArcTask]
) -> list[str]:
  notes = []
  for option, tasks, meaning in (
    ("train", trained, "they are not trained on"),
    ("test", tested, "they are not scored"),
  ):
    pairs = [pair for task in tasks for pair in task.test]
    unknown = sum(output is None for _, output in pairs)
    if unknown:
      notes.append(
        f"{option}: {unknown} of {len(pairs)} test pairs have no solution; "
        f"{meaning}."
      )
  return notes


def _notes_on_sources(settings: Any) -> list[str]:
  return [
    f"{source} holds the folders train and test, and the tasks of both are "
    "used; to use one, give its path."
    for source in settings.train_sources + settings.test_sources
    if all(
      os.path.isdir(os.path.join(os.path.expanduser(source), part))
      for part in ("train", "test")
    )
  ]


def _notes_on_names(option: str, tasks: Sequence[ArcTask]) -> list[str]:
  """Notes tasks that differ in their names only."""
  names: dict[Any, dict[str, None]] = {}
  for task in tasks:
    content = (
      frozenset(map(_key, task.train)),
      frozenset(_key(pair)[0] for pair in task.test),
    )
    names.setdefault(content, {})[task.name] = None
  equal = [" = ".join(found) for found in names.values() if len(found) > 1]
  total = sum(map(len, names.values()))
  count = total - len(names)
  return [
    f"duplicates: {count} of {total} tasks of {option} repeat another "
    f"under a name of their own: {_some(equal)}."
  ] * bool(count)


def _all_trained_on(task: ArcTask) -> ArcTask:
  solved = tuple(pair for pair in task.test if pair[1] is not None)
  return dataclasses.replace(task, train=task.train + solved, test=())


def _unite(tasks: Iterable[ArcTask]) -> tuple[list[ArcTask], list[str]]:
  """Merges tasks of the same name; also returns names whose pairs differ."""
  united: dict[str, ArcTask] = {}
  differing = []
  for task in tasks:
    known = united.get(task.name)
    if known and _keys(known) != _keys(task):
      differing.append(task.name)
    united[task.name] = _union(known, task) if known else task
  return list(united.values()), differing


def _union(task: ArcTask, other: ArcTask) -> ArcTask:
  """Merges two tasks of the same name."""
  if not _keys(task) & _keys(other):
    raise UserError(
      f"{other.source}: task {other.name!r} has no pair in common with the "
      f"task of this name in {task.source}; expected the same task. Rename "
      f"one, or take it out of its source."
    )
  known = {_key(pair) for pair in task.train}
  tested = {_key(pair)[0] for pair in task.test}
  return dataclasses.replace(
    task,
    train=task.train + tuple(p for p in other.train if _key(p) not in known),
    test=task.test + tuple(p for p in other.test if _key(p)[0] not in tested),
  )


def _keys(task: ArcTask) -> set[tuple]:
  return {_key(pair) for pair in task.train + task.test}


def _overlap(tasks: Sequence[ArcTask], trained_on: set[str]) -> list[str]:
  """Names the test tasks that the training set contains, and where."""
  owners = {_key(pair): task.name for task in tasks for pair in task.train}
  found = []
  for task in tasks:
    if task.test and task.name in trained_on:
      found.append(task.name)
      continue
    for pair in task.test:
      if _key(pair) in owners:
        found.append(f"{task.name} (in {owners[_key(pair)]})")
        break
  return found


def _key(pair: Pair) -> tuple:
  """A hashable value that is equal for equal pairs."""
  return tuple(
    None if grid is None else (grid.shape, grid.tobytes()) for grid in pair
  )


def _some(names: Sequence[str]) -> str:
  more = f" and {len(names) - 5} more" if len(names) > 5 else ""
  return ", ".join(names[:5]) + more
