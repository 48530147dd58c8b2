"""Scores recorded ARC predictions: the augmented copies of a task vote.

    python -m experiments.arc_score --puzzles=DIR --predictions=FILE.npz
      [--submission=OUT.json]

Prints pass@k as JSON: the mean over tasks of the share of their test inputs
whose solution is among the first k candidates. DIR holds test_puzzles.json,
as folders in the reference's layout do, or a file of the competition whose
name ends in challenges.json, with its solutions beside it; or name such a
file. identifiers.json is looked for in the same folder, then beside the
predictions, which are what the reference's evaluator gets to see:

    inputs, preds        integers [M, S], tokens, as the copies show them
    q_halt_logits        float [M]
    puzzle_identifiers   integers [M], places in identifiers.json; rows with 0
                         are skipped
"""

import json
import math
import pathlib
import sys

import numpy as np
from absl import flags

from trm_jax.cli import app
from trm_jax.data.arc import grids, predictions
from trm_jax.data.arc.symmetry import COPIES
from trm_jax.data.arc.task import arc_task
from trm_jax.errors import UserError
from trm_jax.run.folder import write_json
from trm_jax.solve import vote

_PUZZLES = flags.DEFINE_string("puzzles", "", "The tasks: a folder or a file.")
_PREDICTIONS = flags.DEFINE_string("predictions", "", "The .npz to score.")
_SUBMISSION = flags.DEFINE_string(
  "submission", "", "Where to write two attempts a test input, for Kaggle."
)


def main(argv: list[str]) -> int:
  """Scores `--predictions`."""
  app.no_arguments(argv)
  for flag in (_PUZZLES, _PREDICTIONS):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; see --help")
  file = pathlib.Path(_PREDICTIONS.value)
  source = predictions.find_tasks(_PUZZLES.value)
  tasks, symmetries = predictions.read_identifiers(source.parent, file.parent)
  answered = predictions.read(file, len(tasks))
  size = math.isqrt(answered.inputs.shape[1])
  pairs, numbers = _number_pairs(source, size)
  ballot = _cast_votes(answered, tasks, symmetries, numbers)
  silent = sum(not ballot.ranking(number) for number in numbers.values())
  if silent == len(numbers):
    raise UserError(
      f"{file}: no row answers a test input of {source}; do the two and "
      "identifiers.json belong together?"
    )
  unknown = sum(pair.label is None for pair in pairs)
  for count, of, what in (
    (silent, numbers, "have no prediction"),
    (unknown, pairs, "have no known solution"),
  ):
    if count:
      print(f"note: {count} of {len(of)} test inputs {what}", file=sys.stderr)
  if _SUBMISSION.value:
    submission = vote.submission(ballot, pairs, arc_task(size))
    write_json(pathlib.Path(_SUBMISSION.value), submission)
  scores = vote.pass_at_k(ballot, pairs)
  print(json.dumps({f"ARC/pass@{k}": s for k, s in scores.items()}, indent=1))
  return 0


def _number_pairs(source, size):
  """Reads tasks: pairs, and the number of each (task, key of the input)."""
  numbers: dict[tuple[str, int], int] = {}
  pairs = []
  for task, members in predictions.read_pairs(source).items():
    for question, solution in members:
      try:
        asked = (task, _key(question, size))
        label = None if solution is None else _key(solution, size)
      except UserError as error:
        raise UserError(f"{source}: task {task!r}: {error}") from error
      number = numbers.setdefault(asked, len(numbers))
      pairs.append(vote.Pair(task, number, label))
  return pairs, numbers


def _key(grid, size):
  return int(vote.as_keys(vote.fingerprints(grids.encode(grid, size), np)))


def _cast_votes(answered, tasks, symmetries, numbers):
  """Lets the predictions vote on those questions that have a number."""
  ballot = vote.Ballot()
  confidences = vote.confidences(answered.q_halt)
  for part in vote.parts(len(confidences)):
    ids = answered.puzzle_ids[part]
    shown_by = symmetries[ids]
    _, keys = vote.undone(answered.inputs[part], shown_by, COPIES)
    asked = zip([tasks[i] for i in ids.tolist()], keys.tolist(), strict=True)
    questions = np.array([numbers.get(each, -1) for each in asked])
    answers, keys = vote.undone(answered.answers[part], shown_by, COPIES)
    counted = questions >= 0
    ballot.add(
      questions[counted],
      keys[counted],
      confidences[part][counted],
      answers[counted],
    )
  return ballot


if __name__ == "__main__":
  app.run(main)
