"""Profiles a config's compiled step: time by operation and part of the model.

    trm profile --config=NAME[:variant] [--what=train|evaluate|solve]
        [--steps=20] [--out=runs/profile] [--top=10] [--json]

Runs the program of training, evaluation or solving on synthetic puzzles after a
warm-up, and writes a trace for Perfetto and XProf to a new folder in --out.
Prints the --top costliest operations, with their source lines and their
fraction of the busy time of the devices, and the fraction of each part of the
model. GFLOP/s count matrix products, GB/s the bytes read and written. While not
busy, a device waits for the host.

Evaluation and solving go to config.eval.depth without halting earlier, with
config.eval.batch_size puzzles at once.
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
_OUT = flags.DEFINE_string("out", "runs/profile", "Folder of the traces.")
_TOP = flags.DEFINE_integer("top", 10, "Operations to print.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> int:
  """Profiles what `--config` describes."""
  from trm_jax import config
  from trm_jax.inspect import profile, program

  app.no_arguments(argv)
  experiment = config.read(app.config_values(_CONFIG))
  out = profile.writable(_OUT.value)
  dispatch = program.dispatch(_WHAT.value, experiment, _STEPS.value)
  times = -(-_STEPS.value // dispatch.steps)
  file = profile.record(dispatch.call, times, _WHAT.value, out)
  report = {"what": _WHAT.value} | profile.report(file, times * dispatch.steps)
  report["operations"] = report["operations"][: _TOP.value]
  if _JSON.value:
    print(json.dumps(report))
  else:
    profile.show(report, _WHAT.value, out)
  return 0


if __name__ == "__main__":
  app.run(main)
