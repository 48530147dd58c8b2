"""Evaluates a trained run: depth, breadth, halting, votes.

    trm evaluate --workdir=DIR [--depth=1,2,4,8,16,32]
        [--checkpoint=best|last|STEP] [--puzzles=N] [--data=SOURCE]
        [--split=test|train] [--copies=N] [--puzzle_id=error|mean|blank]
        [--skip_bad_rows]
    ... [--breadth=1,8] [--halt=q,unchanged,residual,solved]
        [--threshold=0] [--patience=3] [--tolerance=0.01] [--views]
        [--initial_noise=0] [--cycle_noise=0.2] [--seed=0]
        [--select=q,vote,residual,first,solved] [--calibrate=isotonic]
        [--flops=N] [--seconds=N]

Prints a table, and writes `result.json` and a plot to the folder of the run.

The second form runs --breadth rollouts of each puzzle, halts early by the
rules of --halt, or both. It has a row for each depth, breadth and selection
rule, with the fraction of puzzles that any rollout gets right. --calibrate
fits the halting head's confidence to its accuracy (`calibration.json`).

In ARC the augmented copies of a task vote: pass@k is the fraction of test
grids among the k answers with most votes, and `submission.json` has the first
two in Kaggle's format. Several checkpoints, separated by commas, vote together.
--puzzle_id: the embedding of tasks that the run was not trained on.

Several processes, as in `trm train`: --distributed, or --coordinator,
--num_processes and --process_id; --heartbeat_seconds, --join_seconds.
"""

from absl import flags

from trm_jax.cli import app, solve_flags

_RUN = solve_flags.define_run()
_DEPTH = flags.DEFINE_string(
  "depth", "1,2,4,8,16,32", "Depths to report, in supervision steps."
)
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["test", "train"], "The split to evaluate."
)
_COPIES = flags.DEFINE_integer(
  "copies", -1, "ARC: copies that vote; 0 for all, -1 as in the config.",
  lower_bound=-1,
)  # fmt: skip
_BREADTH = flags.DEFINE_string("breadth", "1", "Rollouts to choose from.")
_SELECT = flags.DEFINE_list(
  "select", ["q"], "Selection rules: q, vote, residual, first, solved."
)
_CALIBRATE = flags.DEFINE_enum(
  "calibrate", None, ["temperature", "isotonic"],
  "Calibrate the confidence on held-out puzzles.",
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
