"""Times training and inference of a config, on synthetic puzzles.

    trm benchmark --config=NAME[:variant] [--seconds=10] [--depth=16]
        [--peak_tflops=989] [--seeds=8] [--json]

Prints the time to compile, steps and puzzles per second, FLOP/s by the analytic
count, and memory, of sampling batches, training and inference to --depth. With
--peak_tflops, the published dense peak of all devices together, also the
fraction of the peak that is reached (MFU). Reads no data: times depend on
shapes alone. ARC is taken to have 1024 tasks of 1000 copies.

--seeds compares that many seeds, trained together on all devices, with one run
on one device: the time of a step, measured in turns, and the FLOPs and memory
of a device in the compiled programs. With one seed per device, the ratios
should be about 1.
"""

import json

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_SECONDS = flags.DEFINE_float(
  "seconds", 10.0, "Time of each measurement.", lower_bound=0.1
)
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "Supervision steps of inference.", 1, 2**16
)
_PEAK = flags.DEFINE_float(
  "peak_tflops", None, "Peak TFLOP/s of all devices together.", lower_bound=0
)
_SEEDS = flags.DEFINE_integer(
  "seeds", 0, "Measure this many seeds trained together.", 0, 2**16
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> int:
  """Benchmarks what `--config` describes."""
  import jax

  from trm_jax import config as config_lib
  from trm_jax.data import synthetic
  from trm_jax.draw import console
  from trm_jax.inspect import benchmark

  app.no_arguments(argv)
  experiment = config_lib.read(app.config_values(_CONFIG))
  split, seconds = synthetic.split(experiment.task), _SECONDS.value
  if _SEEDS.value:
    found = benchmark.compare_members(experiment, split, _SEEDS.value, seconds)
  else:
    found = benchmark.measure(
      experiment, split, seconds, _DEPTH.value, _PEAK.value
    )
  device, count = jax.devices()[0], jax.device_count()
  if _JSON.value:
    print(json.dumps({"device": device.device_kind, **found}))
    return 0
  rows = [
    (name, *(
      f"{row[name]:,.4g}" if name in row else "" for row in found.values()
    ))
    for name in dict.fromkeys(name for row in found.values() for name in row)
  ]  # fmt: skip
  title = f"{count} x {device.device_kind}"
  console.print_table(["", *found], rows, title)
  if _SEEDS.value and device.platform == "cpu" and count > 1:
    app.say("These devices share one processor: compare all but the time.")
  return 0


if __name__ == "__main__":
  app.run(main)
