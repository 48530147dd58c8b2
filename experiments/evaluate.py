"""Evaluates a trained run at several depths, on averaged weights.

    python -m experiments.evaluate --workdir=DIR [--depth=1,2,4,8,16,32]
        [--checkpoint=best|last|STEP] [--puzzles=N] [--data=SOURCE]
        [--split=test|train] [--copies=N] [--puzzle_id=error|mean|blank]
        [--skip_bad_rows]

Prints a table, and writes `result.json` and `plots/depth.png` in the folder.

In ARC the augmented copies of a task vote: pass@k is the share of test grids
that are among the k answers with most votes, and `submission.json` has the
first two in the form of Kaggle's contest. Several checkpoints separated by
commas vote together, which published scores often do without saying so.
Tasks that were not trained on have no embedding: --puzzle_id says what then.
"""

import dataclasses

import jax
from absl import flags

from experiments import cli, report
from trm_jax import config as config_lib
from trm_jax import evaluate, fit, plots, vote
from trm_jax.data import datasets
from trm_jax.errors import UserError
from trm_jax.run_folder import RunFolder, write_json

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "best", "best, last, a step; or some of these, with commas."
)
_DEPTH = flags.DEFINE_string(
  "depth", "1,2,4,8,16,32", "Depths to report, in supervision steps."
)
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["test", "train"], "train: the puzzles that it has learnt."
)
_PUZZLES = flags.DEFINE_integer(
  "puzzles", None, "Test puzzles; 0 for all. As in training by default.",
  lower_bound=0,
)  # fmt: skip
_COPIES = flags.DEFINE_integer(
  "copies", -1, "ARC: copies that vote; 0 for all. As in training by default.",
  lower_bound=-1,
)  # fmt: skip
_DATA = flags.DEFINE_string(
  "data", "", "Test on this csv file, ARC source or reference folder instead."
)
_PUZZLE_ID = flags.DEFINE_enum(
  "puzzle_id", "error", datasets.UNSEEN,
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
_SKIP_BAD_ROWS = cli.define_skip_bad_rows()


def main(argv: list[str]) -> int:
  """Evaluates the run in `--workdir`."""
  cli.no_arguments(argv)
  depths = cli.whole_numbers(_DEPTH.value, "depth")
  folder = RunFolder(_WORKDIR.value)
  experiment = config_lib.read(folder.read_config())
  data = report.choose_data(experiment.data, _DATA.value, _SKIP_BAD_ROWS.value)
  experiment = dataclasses.replace(experiment, data=data)
  unview = experiment.task.unview
  checkpoints = _CHECKPOINT.value.split(",")
  if len(checkpoints) > 1 and not unview:
    raise UserError(
      f"--checkpoint={_CHECKPOINT.value}: several checkpoints can only vote "
      "where puzzles have copies, as in ARC; name one"
    )
  for note in datasets.prepare(experiment.data, cli.say):
    cli.say(f"note: {note}")
  puzzles = _PUZZLES.value
  puzzles = experiment.eval.puzzles if puzzles is None else puzzles
  split = report.load_test(experiment, puzzles, _COPIES.value, _SPLIT.value)
  known = folder.read_identifiers()
  split = datasets.match_ids(
    split, datasets.identifiers(experiment.data), known, _PUZZLE_ID.value
  )
  ballots = evaluate.new_ballots(depths) if unview else None
  records, steps = [], []
  for which in checkpoints:
    step, state, program = fit.restore_for_inference(experiment, folder, which)
    if step in steps:
      continue  # "best" may be "last", and must not vote twice
    params = state.averaged_params
    if _PUZZLE_ID.value == "mean":
      params = evaluate.with_mean_embedding(params, len(known))
    records = report.evaluate_depths(
      experiment, program, step, params, split, depths, ballots
    )
    steps.append(step)
  told = f"step {steps[-1]}"
  if len(steps) > 1:
    told += f"; votes of steps {', '.join(map(str, steps))} together"
  kind = "held-out" if _SPLIT.value == "test" else "training"
  report.print_depths(records, f"{folder.path}, {told}", kind)
  if jax.process_index() == 0:
    result = {
      "checkpoint": steps[-1],
      "data": _DATA.value,
      "split": _SPLIT.value,
      "depths": records,
    }
    if unview:
      result["voting_checkpoints"] = steps
    write_json(folder.result, result)
    made = [folder.result]
    if unview and ballots:
      _, pairs = vote.questions_of(split, unview)
      write_json(
        folder.submission, vote.submission(ballots[max(depths)], pairs)
      )
      made.append(folder.submission)
    if "exact_accuracy" in records[0]:
      made.append(folder.plots / "depth.png")
      plots.depth_curve(records, made[-1], report.title(experiment, steps[-1]))
    print(f"wrote {', '.join(map(str, made))}")
  return 0


if __name__ == "__main__":
  cli.run(main)
