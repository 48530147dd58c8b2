"""Times training and inference of a config, on puzzles made up on the spot.

    python -m experiments.benchmark --config=FILE.py[:variant] [--seconds=10]
        [--depth=16] [--peak_tflops=989] [--seeds=8] [--json]

Prints, for drawing puzzles (and augmenting them), for training and for
inference, the time to compile, steps and puzzles a second, achieved FLOP/s by
the analytic count, and memory; with --peak_tflops (the published dense peak of
all devices together) the share of it that is used, MFU. Reads no data: the
time depends on shapes alone. ARC is taken to have 1024 tasks of 1000 copies.

With --seeds, a population of so many seeds over all devices is put beside one
run on one device: the time of a step, the two taking turns, and what a device
works in a step and holds, as their compiled programs say. A device with one
member should do what a device with one run does: then the ratios are about 1.
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from trm_jax import config as config_lib
from trm_jax.cli import app, dispatch
from trm_jax.config import Experiment
from trm_jax.core import flops
from trm_jax.core.halting import Puzzles
from trm_jax.data import synthetic
from trm_jax.data.task import Split
from trm_jax.inspect import hlo
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.train import loop as fit
from trm_jax.train import population
from trm_jax.train import step as train

_CONFIG = app.define_config()
_SECONDS = flags.DEFINE_float(
  "seconds", 10.0, "Time to measure each for.", lower_bound=0.1
)
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "Supervision steps of inference.", lower_bound=1
)
_PEAK = flags.DEFINE_float(
  "peak_tflops", None, "Peak TFLOP/s of all devices together.", lower_bound=0
)
_SEEDS = flags.DEFINE_integer(
  "seeds", 0, "Measure a population of so many members instead.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")


def main(argv: list[str]) -> int:
  """Benchmarks what `--config` describes."""
  app.no_arguments(argv)
  experiment = config_lib.read(app.config_values(_CONFIG))
  split = synthetic.split(experiment.task)
  if _SEEDS.value:
    return _compare_population(experiment, split)
  program = fit.build(experiment)
  measured = {
    "drawing puzzles": _measure_drawing(experiment, program, split),
    "training": _measure_training(experiment, program, split),
    "inference": _measure_inference(experiment, program, split),
  }
  device = jax.devices()[0].device_kind
  if _JSON.value:
    print(json.dumps({"device": device, **measured}))
    return 0
  _print_table(measured, device)
  return 0


def _print_table(measured: dict[str, dict[str, float]], device: str):
  names = dict.fromkeys(name for row in measured.values() for name in row)
  table = Table("", *measured, title=f"{jax.device_count()} x {device}")
  for name in names:
    cells = [
      f"{row[name]:,.4g}" if name in row else "" for row in measured.values()
    ]
    table.add_row(name, *cells)
  Console().print(table)


def _measure_drawing(
  experiment: Experiment, program: fit.Program, split: Split
) -> dict[str, float]:
  """Looking up and augmenting a batch whose slots are all halted."""
  table = fit.stage(split, program.mesh)
  state = program.init()
  started = time.perf_counter()
  draw = jax.jit(
    lambda state, table: train.draw_puzzles(state, table, program.recipe)
  )
  compiled = draw.lower(state, table).compile()
  compile_seconds = time.perf_counter() - started
  seconds = _seconds_a_call(lambda: compiled(state, table))
  return {
    "compile, s": compile_seconds,
    "puzzles/s": experiment.train.batch_size / seconds,
    "data on the device, MiB": sum(
      leaf.nbytes for leaf in jax.tree.leaves(table)
    )
    / 2**20,
  }


def _measure_training(
  experiment: Experiment, program: fit.Program, split: Split
) -> dict[str, float]:
  made = dispatch.prepare(program, split)
  recipe, steps = program.recipe, made.steps
  return _figures(
    made.compile_seconds,
    _seconds_a_call(made.call) / steps,
    experiment.train.batch_size,
    recipe.training_flops(steps) / steps / experiment.train.batch_size,
    made.compiled,
  )


def _measure_inference(
  experiment: Experiment, program: fit.Program, split: Split
) -> dict[str, float]:
  batch, depth = experiment.eval.batch_size, _DEPTH.value
  rows = np.arange(batch) % len(split)
  by_batch = sharding.by_batch(program.mesh)
  puzzles = Puzzles.of(
    *sharding.put(
      (split.inputs[rows], split.labels[rows], split.puzzle_ids[rows]), by_batch
    )
  )
  counted = sharding.put(np.ones(batch, bool), by_batch)
  shown = evaluate.Batch(puzzles, counted)
  params = program.init().averaged_params
  started = time.perf_counter()
  scorer = evaluate.scorer(program.mesh)
  compiled = scorer.lower(
    params, shown, depth, experiment.model, experiment.task
  ).compile()
  compile_seconds = time.perf_counter() - started
  return _figures(
    compile_seconds,
    _seconds_a_call(lambda: compiled(params, shown)) / depth,
    batch / depth,  # a puzzle is done after `depth` steps
    flops.inference(experiment.model, depth),
    compiled,
  )


def _compare_population(experiment: Experiment, split: Split) -> int:
  """Prints what a member costs its device, and one run alone its own."""
  count, devices = _SEEDS.value, jax.devices()
  one_device = sharding.make_mesh(1, 1, devices=devices[:1])
  programs = {
    "1 run, 1 device": fit.lay_out(experiment, one_device),
    f"{count} members, {len(devices)} devices": population.build(
      experiment, range(count)
    ),
  }
  ready = {name: _prepare(program, split) for name, program in programs.items()}
  seconds = _seconds_in_turn([call for call, _ in ready.values()])
  steps = experiment.train.steps_per_dispatch
  columns = {
    name: {"step, s": mean / steps} | figures
    for (name, (_, figures)), mean in zip(ready.items(), seconds, strict=True)
  }
  alone, together = columns.values()
  ratios = {name: together[name] / alone[name] for name in alone}
  measured = columns | {"ratio": ratios}
  device = devices[0].device_kind
  if _JSON.value:
    print(json.dumps({"device": device, **measured}))
    return 0
  _print_table(measured, device)
  if devices[0].platform == "cpu" and len(devices) > 1:
    app.say(
      "These devices share the processor: what a device works and holds is "
      "the measure here, and not the time."
    )
  return 0


def _prepare(
  program: fit.Program | population.Program, split: Split
) -> tuple[Callable[[], Any], dict[str, float]]:
  """A dispatch of training to call, and what it costs each device a step."""
  made = dispatch.prepare(program, split)
  work = hlo.Module(made.compiled.as_text()).count()
  memory = made.compiled.memory_analysis()
  steps = made.steps
  return made.call, {
    "GFLOP a step": work.flops / steps / 1e9,
    "memory traffic a step, GB": work.bytes / steps / 1e9,
    "memory, MiB": (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes
    )
    / 2**20,
  }


def _seconds_in_turn(calls: Sequence[Callable[[], Any]]) -> list[float]:
  """Median seconds of each call, over `--seconds` for all of them."""
  for call in calls:
    jax.block_until_ready(call())
  taken: list[list[float]] = [[] for _ in calls]
  started = time.perf_counter()
  while time.perf_counter() - started < _SECONDS.value:
    for call, times in zip(calls, taken, strict=True):
      since = time.perf_counter()
      jax.block_until_ready(call())
      times.append(time.perf_counter() - since)
  return [float(np.median(times)) for times in taken]


def _seconds_a_call(call: Callable[[], Any]) -> float:
  """Mean seconds of a call, over `--seconds`, after one to warm up."""
  jax.block_until_ready(call())
  started, calls = time.perf_counter(), 0
  while time.perf_counter() - started < _SECONDS.value:
    jax.block_until_ready(call())
    calls += 1
  return (time.perf_counter() - started) / calls


def _figures(
  compile_seconds: float,
  step_seconds: float,
  puzzles_a_step: float,
  flops_a_puzzle: float,
  compiled: Any,
) -> dict[str, float]:
  puzzles = puzzles_a_step / step_seconds
  figures = {
    "compile, s": compile_seconds,
    "supervision steps/s": 1 / step_seconds,
    "puzzles/s": puzzles,
    "achieved TFLOP/s": puzzles * flops_a_puzzle / 1e12,
    "program's temporaries, GiB": _temporaries(compiled) / 2**30,
    "peak memory, GiB": _peak_bytes() / 2**30,
  }
  if _PEAK.value:
    figures["MFU, %"] = 100 * figures["achieved TFLOP/s"] / _PEAK.value
  return figures


def _temporaries(compiled: Any) -> float:
  analysis = compiled.memory_analysis()
  return analysis.temp_size_in_bytes if analysis else float("nan")


def _peak_bytes() -> float:
  """Peak memory so far: the device's, or on a CPU the process's."""
  stats = jax.devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
  app.run(main)
