"""Scores recorded ARC predictions: the augmented copies of a task vote.

    python -m experiments.arc_score --puzzles=DIR --predictions=FILE.npz
      [--submission=OUT.json]

Prints pass@k as JSON: the mean over tasks of the fraction of their test inputs
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
import pathlib
import sys

from absl import flags

from trm_jax.cli import app
from trm_jax.errors import UserError

_PUZZLES = flags.DEFINE_string("puzzles", "", "The tasks: a folder or a file.")
_PREDICTIONS = flags.DEFINE_string("predictions", "", "The .npz to score.")
_SUBMISSION = flags.DEFINE_string(
  "submission", "", "Where to write two attempts a test input, for Kaggle."
)


def main(argv: list[str]):
  """Scores `--predictions`."""
  app.no_arguments(argv)
  for flag in (_PUZZLES, _PREDICTIONS):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; see --help")
  from trm_jax.run.folder import write_json
  from trm_jax.solve import arc_score, vote

  scored = arc_score.score(_PUZZLES.value, _PREDICTIONS.value)
  for note in scored.notes:
    print(f"note: {note}", file=sys.stderr)
  if _SUBMISSION.value:
    attempts = vote.submission(scored.ballot, scored.pairs, scored.task)
    write_json(pathlib.Path(_SUBMISSION.value), attempts)
  passes = vote.pass_at_k(scored.ballot, scored.pairs)
  print(json.dumps({f"ARC/pass@{k}": s for k, s in passes.items()}, indent=1))


if __name__ == "__main__":
  app.run(main)
