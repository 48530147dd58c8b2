"""Scores recorded ARC predictions, as the reference's evaluator does."""

import dataclasses
import functools
import math
import os
import pathlib

import numpy as np

from trm_jax.data.arc import grids, predictions
from trm_jax.data.arc.task import arc_task
from trm_jax.data.task import Task
from trm_jax.errors import UserError
from trm_jax.solve import vote


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """The votes of recorded predictions."""

  ballot: vote.Ballot
  pairs: list[vote.Pair]  # all test pairs
  task: Task
  notes: list[str]  # sentences about test inputs that are not scored


def score(puzzles: str | os.PathLike, recorded: str | os.PathLike) -> Scored:
  """Counts the votes of the copies of each task.

  `puzzles` is a path for `predictions.find_tasks`, `recorded` one for
  `predictions.read`. Raises UserError if they do not belong together.
  """
  file = pathlib.Path(recorded)
  source = predictions.find_tasks(puzzles)
  tasks, symmetries = predictions.read_identifiers(source.parent, file.parent)
  answered = predictions.read(file, len(tasks))
  size = math.isqrt(answered.inputs.shape[1])
  pairs, numbers = _number_pairs(source, size)
  task = arc_task(size)
  ballot = _cast_votes(answered, tasks, symmetries, numbers, task)
  unanswered = sum(not ballot.ranking(number) for number in numbers.values())
  if unanswered == len(numbers):
    raise UserError(
      f"{file}: no row answers a test input of {source}; do the two and "
      "identifiers.json belong together?"
    )
  unknown = sum(pair.label is None for pair in pairs)
  notes = [
    f"{count} of {total} test inputs {what}"
    for count, total, what in (
      (unanswered, len(numbers), "have no prediction"),
      (unknown, len(pairs), "have no known solution"),
    )
    if count
  ]
  return Scored(ballot, pairs, task, notes)


def _number_pairs(source, size):
  """The pairs of the tasks, and {(task, key of the input): number}."""
  numbers: dict[tuple[str, int], int] = {}
  pairs = []
  for task, members in predictions.read_pairs(source).items():
    for question, solution in members:
      try:
        place = (task, _key(question, size))
        label = None if solution is None else _key(solution, size)
      except UserError as error:
        raise UserError(f"{source}: task {task!r}: {error}") from error
      number = numbers.setdefault(place, len(numbers))
      pairs.append(vote.Pair(task, number, label))
  return pairs, numbers


def _key(grid, size):
  return int(vote.as_keys(vote.fingerprints(grids.encode(grid, size), np)))


def _cast_votes(answered, tasks, symmetries, numbers, task):
  """Counts the predictions for questions in `numbers` as votes."""
  undo = functools.partial(
    vote.unviewed, symmetries=symmetries[answered.puzzle_ids], task=task
  )
  _, keys = undo(answered.inputs)
  names = [tasks[i] for i in answered.puzzle_ids.tolist()]
  questions = np.array(
    [numbers.get(each, -1) for each in zip(names, keys.tolist(), strict=True)],
    int,
  )
  answers, keys = undo(answered.answers)
  counted = questions >= 0
  q = vote.confidences(answered.q_halt)
  ballot = vote.Ballot()
  ballot.add(questions[counted], keys[counted], q[counted], answers[counted])
  return ballot
