"""Times training and inference of a config, and what a member costs."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trm_jax.config import Experiment
from trm_jax.core import flops
from trm_jax.core.halting import Puzzles
from trm_jax.data.task import Split
from trm_jax.inspect import cost
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.train import program as trainer
from trm_jax.train import step as train

Figures = dict[str, float]


def measure(
  experiment: Experiment,
  split: Split,
  seconds: float,
  depth: int,
  peak_tflops: float | None = None,
) -> dict[str, Figures]:
  """Times drawing puzzles, training and inference.

  Args:
    experiment: the config.
    split: puzzles.
    seconds: to measure each for.
    depth: supervision steps of inference.
    peak_tflops: of all devices together, for MFU; None leaves that out.

  Returns:
    What was measured -> figures with their units in the name.
  """
  program = trainer.build(experiment)
  recipe, batch = program.recipe, experiment.train.batch_size

  made = trainer.prepare_dispatch(program, split)
  training = _figures(
    made.compiled,
    made.compile_seconds,
    _seconds_per_call(made.call, seconds) / made.steps,
    batch,
    recipe.training_flops(made.steps) / made.steps,
    peak_tflops,
  )
  state, table = program.init(), trainer.stage(split, program.mesh)
  drawing, compile_seconds = _compile(
    jax.jit(lambda state, table: train.draw_puzzles(state, table, recipe)),
    state,
    table,
  )
  draw_seconds = _seconds_per_call(lambda: drawing(state, table), seconds)

  batch = experiment.eval.batch_size
  rows = np.arange(batch) % len(split)
  by_batch = sharding.by_batch(program.mesh)
  inputs, labels, ids, counted = sharding.put(
    (
      split.inputs[rows],
      split.labels[rows],
      split.puzzle_ids[rows],
      np.ones(batch, bool),
    ),
    by_batch,
  )
  shown = evaluate.Batch(Puzzles.of(inputs, labels, ids), counted)
  params = state.averaged_params
  scorer, scorer_seconds = _compile(
    evaluate.scorer(program.mesh),
    params,
    shown,
    depth,
    experiment.model,
    experiment.task,
  )
  inference = _figures(
    scorer,
    scorer_seconds,
    _seconds_per_call(lambda: scorer(params, shown), seconds) / depth,
    batch / depth,  # a puzzle is done after `depth` steps
    batch / depth * flops.inference(experiment.model, depth),
    peak_tflops,
  )
  data_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(table))
  return {
    "drawing puzzles": {
      "compile, s": compile_seconds,
      "puzzles/s": experiment.train.batch_size / draw_seconds,
      "data on the device, MiB": data_bytes / 2**20,
    },
    "training": training,
    "inference": inference,
  }


def compare_members(
  experiment: Experiment, split: Split, members: int, seconds: float
) -> dict[str, Figures]:
  """Sets what a device does for several seeds beside one seed on one device.

  Args:
    experiment: the config.
    split: puzzles.
    members: how many seeds are trained together on all devices.
    seconds: to measure for; the two take turns.

  Returns:
    The figures of a step of either, and their ratio.
  """
  devices = jax.devices()
  programs = {
    "1 run, 1 device": trainer.lay_out(
      experiment, sharding.make_mesh(1, 1, devices=devices[:1])
    ),
    f"{members} members, {len(devices)} devices": trainer.build(
      experiment, range(members)
    ),
  }
  made = [trainer.prepare_dispatch(one, split) for one in programs.values()]
  for one in made:
    jax.block_until_ready(one.call())
  taken: list[list[float]] = [[] for _ in made]
  started = time.perf_counter()
  while time.perf_counter() - started < seconds:
    for one, times in zip(made, taken, strict=True):
      since = time.perf_counter()
      jax.block_until_ready(one.call())
      times.append(time.perf_counter() - since)
  columns = {}
  for name, one, times in zip(programs, made, taken, strict=True):
    work = cost.count(one.compiled)
    memory = one.compiled.memory_analysis()
    held = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes
    )
    columns[name] = {
      "step, s": float(np.median(times)) / one.steps,
      "GFLOP a step": work.flops / one.steps / 1e9,
      "memory traffic a step, GB": work.bytes / one.steps / 1e9,
      "memory, MiB": held / 2**20,
    }
  alone, together = columns.values()
  return columns | {
    "ratio": {name: together[name] / alone[name] for name in alone}
  }


def _compile(function: Any, *arguments: Any) -> tuple[Any, float]:
  """A compiled function, and the seconds that it took."""
  started = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  return compiled, time.perf_counter() - started


def _seconds_per_call(call: Callable[[], Any], seconds: float) -> float:
  """The mean over some seconds, after one call to warm up."""
  jax.block_until_ready(call())
  started, calls = time.perf_counter(), 0
  while time.perf_counter() - started < seconds:
    jax.block_until_ready(call())
    calls += 1
  return (time.perf_counter() - started) / calls


def _figures(
  compiled: Any,
  compile_seconds: float,
  step_seconds: float,
  puzzles_per_step: float,
  flops_per_step: float,
  peak_tflops: float | None,
) -> Figures:
  memory = compiled.memory_analysis()
  figures = {
    "compile, s": compile_seconds,
    "supervision steps/s": 1 / step_seconds,
    "puzzles/s": puzzles_per_step / step_seconds,
    "achieved TFLOP/s": flops_per_step / step_seconds / 1e12,
    "program's temporaries, GiB": (
      memory.temp_size_in_bytes / 2**30 if memory else float("nan")
    ),
    "peak memory, GiB": _peak_bytes() / 2**30,
  }
  if peak_tflops:
    figures["MFU, %"] = 100 * figures["achieved TFLOP/s"] / peak_tflops
  return figures


def _peak_bytes() -> float:
  """Peak memory so far: the device's, or on a CPU the process's."""
  stats = jax.devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
