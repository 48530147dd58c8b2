"""Evaluates a trained run at several depths, on averaged weights.

    python -m experiments.evaluate --workdir=DIR [--depth=1,2,4,8,16,32]
        [--checkpoint=best|last|STEP] [--puzzles=N] [--data=FILE.csv]
        [--skip_bad_rows]

Prints a table, and writes `result.json` and `plots/depth.png` in the folder.
"""

import dataclasses

import jax
from absl import flags

from experiments import cli, report
from trm_jax import config as config_lib
from trm_jax import fit, plots
from trm_jax.run_folder import RunFolder, write_json

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_DEPTH = flags.DEFINE_string(
  "depth", "1,2,4,8,16,32", "Depths to report, in supervision steps."
)
_PUZZLES = flags.DEFINE_integer(
  "puzzles", None, "Test puzzles; 0 for all. As in training by default.",
  lower_bound=0,
)  # fmt: skip
_DATA = flags.DEFINE_string("data", "", "Test on this file instead.")

_SKIP_BAD_ROWS = cli.define_skip_bad_rows()


def main(argv: list[str]) -> int:
  """Evaluates the run in `--workdir`."""
  cli.no_arguments(argv)
  depths = cli.whole_numbers(_DEPTH.value, "depth")
  folder = RunFolder(_WORKDIR.value)
  experiment = config_lib.read(folder.read_config())
  data = experiment.data
  if _DATA.value:
    # Generated puzzles must avoid those of training; a file stands alone.
    train = data.train if _DATA.value == "generate" else ""
    data = dataclasses.replace(data, train=train, test=_DATA.value)
  if _SKIP_BAD_ROWS.value:
    data = dataclasses.replace(data, skip_bad_rows=True)
  experiment = dataclasses.replace(experiment, data=data)
  step, state, program = fit.restore_for_inference(
    experiment, folder, _CHECKPOINT.value
  )
  puzzles = _PUZZLES.value
  puzzles = experiment.eval.puzzles if puzzles is None else puzzles
  split = report.load_test(experiment, puzzles, cli.say)
  records = report.evaluate_depths(
    experiment, program, state.averaged_params, split, depths
  )
  report.print_depths(records, f"{folder.path}, step {step}")
  if jax.process_index() == 0:
    result = {"checkpoint": step, "data": _DATA.value, "depths": records}
    write_json(folder.result, result)
    picture = folder.plots / "depth.png"
    plots.depth_curve(records, picture, report.title(experiment, step))
    print(f"wrote {folder.result} and {picture}")
  return 0


if __name__ == "__main__":
  cli.run(main)
