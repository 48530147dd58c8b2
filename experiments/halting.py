"""Finds the cheapest halting rules that keep the accuracy, and times them.

    trm halting --workdir=DIR [--depth=16] [--within=0.2]
        [--checkpoint=best|last|STEP] [--data=SOURCE] [--puzzles=N]
        [--puzzle_id=error|mean|blank] [--skip_bad_rows]

Half of the held-out puzzles run at the fixed --depth, and every halting rule is
replayed on their answers after each step, at several limits: the halting logit,
unchanged answers, the change of the latent y and, if the task has rules,
solved puzzles. For each rule, the cheapest limit within --within percentage
points of the fixed depth's accuracy, made one step stricter for safety, is then
timed on the other half. Prints both tables, and writes `halting.json` and
`plots/halting.png` to the folder of the run.
"""

from absl import flags

from trm_jax.cli import app, solve_flags

_RUN = solve_flags.define_run()
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "The fixed depth to compare with.", lower_bound=2,
  upper_bound=256,
)  # fmt: skip
_WITHIN = flags.DEFINE_float(
  "within", 0.2, "Percentage points that a rule may lose.", lower_bound=0.0
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
