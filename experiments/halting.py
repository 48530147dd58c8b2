"""What halting saves: finds the cheapest rules that cost no accuracy.

    python -m experiments.halting --workdir=DIR [--depth=16] [--within=0.2]
        [--checkpoint=best|last|STEP] [--data=SOURCE] [--puzzles=N]
        [--puzzle_id=error|mean|blank] [--skip_bad_rows]

Half of the held-out puzzles run at fixed depth, and every rule is replayed on
what they answered after each step: the halting head at some thresholds, answers
that do not change, latents that come to rest and, where a task has rules,
answers that are solutions. Of each rule the cheapest limit within so many
points of the fixed depth, and one notch stricter to be on the safe side, is
then used on the other half, and timed beside it. Prints both tables, and writes
`halting.json` and `plots/halting.png` in the folder.
"""

from absl import flags

from trm_jax.cli import app, solve_flags

_RUN = solve_flags.define_run()
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "The fixed depth to save from.", lower_bound=2, upper_bound=256
)
_WITHIN = flags.DEFINE_float(
  "within", 0.2, "Points of accuracy that a rule may cost.", lower_bound=0.0
)


def main(argv: list[str]):
  """Finds and times halting rules for the run in `--workdir`."""
  app.no_arguments(argv)
  from trm_jax.cli import evaluation

  tested = evaluation.Tested(
    *_RUN.load(copies=1), "test", _RUN.data.value, _RUN.puzzle_id.value
  )
  evaluation.compare_halting(
    tested, _RUN.checkpoint.value, _DEPTH.value, _WITHIN.value
  )


if __name__ == "__main__":
  app.run(main)
