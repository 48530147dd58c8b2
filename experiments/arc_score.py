"""Scores recorded ARC predictions: the augmented copies of a task vote.

    trm arc_score --puzzles=DIR --predictions=FILE.npz [--submission=OUT.json]

Prints pass@k as JSON: the mean over tasks of the fraction of their test inputs
whose solution is among the first k candidates.

--puzzles is test_puzzles.json of a folder in the reference's layout, or a
challenges.json file of the competition with its solutions beside it; or the
folder of such a file. identifiers.json is read from the same folder, or from
that of the predictions. These are the inputs of the reference's evaluator:

    inputs, preds        integers [M, S], tokens of the augmented copies
    q_halt_logits        float [M]
    puzzle_identifiers   integers [M], indices into identifiers.json; rows with
                         0 are skipped
"""

import json
import pathlib
import sys

from absl import flags

from trm_jax.cli import app
from trm_jax.errors import UserError, printable

_PUZZLES = flags.DEFINE_string("puzzles", "", "The tasks: a folder or a file.")
_PREDICTIONS = flags.DEFINE_string("predictions", "", "The .npz to score.")
_SUBMISSION = flags.DEFINE_string(
  "submission", "", "File to write, with two attempts per test input."
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
  if _SUBMISSION.value:
    attempts = vote.submission(scored.ballot, scored.pairs, scored.task)
    write_json(pathlib.Path(_SUBMISSION.value), attempts)
  for note in scored.notes:
    print(printable(f"note: {note}"), file=sys.stderr)
  passes = vote.pass_at_k(scored.ballot, scored.pairs)
  print(json.dumps({f"ARC/pass@{k}": s for k, s in passes.items()}, indent=1))


if __name__ == "__main__":
  app.run(main)
