"""Profiles a config's compiled step: what the devices spend their time on.

    trm profile --config=NAME[:variant] [--what=train|evaluate|solve]
        [--steps=20] [--out=runs/profile] [--top=10] [--json]

Runs the very program that training, evaluation or solving runs, on synthetic
puzzles, compiled and warmed up before, and keeps a trace in a new folder below
--out, for Perfetto and XProf. Prints the costliest operations and the fraction
of each part of the model: the time in an operation itself, of all that the
devices did, and the lines that it comes from. GFLOP/s are those of matrix
products, GB/s what an operation reads and writes. A device that is not busy
waits for the host.

Evaluation goes to config.eval.depth, with config.eval.batch_size puzzles; so
does solving, with as many slots, and halts no earlier.
"""

import json

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_WHAT = flags.DEFINE_enum(
  "what", "train", ["train", "evaluate", "solve"], "What to profile."
)
_STEPS = flags.DEFINE_integer(
  "steps", 20, "Supervision steps to trace, rounded up to whole dispatches.",
  lower_bound=1,
)  # fmt: skip
_OUT = flags.DEFINE_string("out", "runs/profile", "A folder for traces.")
_TOP = flags.DEFINE_integer("top", 10, "Operations to print.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")


def main(argv: list[str]) -> int:
  """Profiles what `--config` describes."""
  from trm_jax import config
  from trm_jax.inspect import profile, program

  app.no_arguments(argv)
  experiment = config.read(app.config_values(_CONFIG))
  out = profile.writable(_OUT.value)
  made = program.dispatch(_WHAT.value, experiment, _STEPS.value)
  times = -(-_STEPS.value // made.steps)
  file = profile.record(made.call, times, _WHAT.value, out)
  report = {"what": _WHAT.value} | profile.report(file, times * made.steps)
  report["operations"] = report["operations"][: _TOP.value]
  if _JSON.value:
    print(json.dumps(report))
  else:
    profile.show(report, _WHAT.value, out)
  return 0


if __name__ == "__main__":
  app.run(main)
