"""Evaluates a trained run: depth, breadth, halting, votes.

    python -m experiments.evaluate --workdir=DIR [--depth=1,2,4,8,16,32]
        [--checkpoint=best|last|STEP] [--puzzles=N] [--data=SOURCE]
        [--split=test|train] [--copies=N] [--puzzle_id=error|mean|blank]
        [--skip_bad_rows]
    ... [--breadth=1,8] [--halt=q,unchanged,residual,solved] [--views]
        [--select=q,vote,residual,first,solved] [--calibrate=isotonic]

Prints a table, and writes `result.json` and a plot in the folder.

The second form runs several rollouts of each puzzle, halts them early, or
both: each depth x breadth x selection rule is a row, with the fraction of
puzzles that any rollout gets right beside it. --calibrate measures how well
the confidence of the halting head fits, and corrects it (`calibration.json`).

In ARC the augmented copies of a task vote: pass@k is the fraction of test
grids that are among the k answers with most votes, and `submission.json` has
the first two in the form of Kaggle's contest. Several checkpoints separated by
commas vote together, which published scores often do without saying so.
Tasks that were not trained on have no embedding: --puzzle_id says what then.

Several processes may share the work: give each --coordinator, --num_processes
and --process_id, or --distributed, as in training.
"""

from absl import flags

from trm_jax.cli import app, solve_flags

_RUN = solve_flags.define_run()
_DEPTH = flags.DEFINE_string(
  "depth", "1,2,4,8,16,32", "Depths to report, in supervision steps."
)
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["test", "train"], "train: the puzzles of training."
)
_COPIES = flags.DEFINE_integer(
  "copies", -1, "ARC: copies that vote; 0 for all. As in training by default.",
  lower_bound=-1,
)  # fmt: skip
_BREADTH = flags.DEFINE_string("breadth", "1", "Rollouts to choose from.")
_SELECT = flags.DEFINE_list(
  "select", ["q"], "Which rollout answers: q, vote, residual, first, solved."
)
_CALIBRATE = flags.DEFINE_enum(
  "calibrate", None, ["temperature", "isotonic"],
  "Fit the confidence to held-out puzzles.",
)  # fmt: skip
_settings = solve_flags.define()
_join = app.define_processes()


def main(argv: list[str]):
  """Evaluates the run in `--workdir`."""
  app.no_arguments(argv)
  depths = app.whole_numbers(_DEPTH.value, "depth")
  breadths = app.whole_numbers(_BREADTH.value, "breadth")
  settings = _settings(depth=max(depths), breadth=max(breadths))
  solve_flags.check_selects(_SELECT.value)
  from trm_jax.cli import evaluation

  with evaluation.several_processes(_join, _RUN.workdir.value):
    loaded = _RUN.load(_SPLIT.value, _COPIES.value)
  tested = evaluation.Tested(
    *loaded, _SPLIT.value, _RUN.data.value, _RUN.puzzle_id.value
  )
  plain = settings.breadth == 1 and not settings.halt
  if plain and not (settings.flops or settings.seconds or _CALIBRATE.value):
    evaluation.by_depth(tested, _RUN.checkpoint.value.split(","), depths)
  else:
    evaluation.by_rollouts(
      tested, _RUN.checkpoint.value, settings, depths, breadths,
      _SELECT.value, _CALIBRATE.value,
    )  # fmt: skip


if __name__ == "__main__":
  app.run(main)
