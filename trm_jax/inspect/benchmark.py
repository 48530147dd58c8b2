"""Times training and inference, and compares a population with single runs."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trm_jax.config import Experiment
from trm_jax.core import flops
from trm_jax.data.task import Split
from trm_jax.inspect import cost
from trm_jax.inspect.estimate import Memory
from trm_jax.inspect.program import evaluation_batch
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
    seconds: length of each measurement.
    depth: supervision steps of inference.
    peak_tflops: of all devices together, for MFU; None omits MFU.

  Returns:
    What was measured -> figures, with the unit in each name.
  """
  program = trainer.build(experiment)
  recipe, batch = program.recipe, experiment.train.batch_size

  dispatch = trainer.prepare_dispatch(program, split)
  training = _figures(
    dispatch.compiled,
    dispatch.compile_seconds,
    _seconds_per_call(dispatch.call, seconds) / dispatch.steps,
    batch,
    recipe.training_flops(dispatch.steps) / dispatch.steps,
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
  shown = evaluation_batch(split, batch, program.mesh)
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
    batch / depth,  # a puzzle takes `depth` steps
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
  """Compares several seeds on all devices with one seed on one device.

  Args:
    experiment: the config.
    split: puzzles.
    members: number of seeds trained together on all devices.
    seconds: length of the measurement; the two programs alternate.

  Returns:
    The figures of a step of each program, and their ratio.
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
  dispatches = [
    trainer.prepare_dispatch(one, split) for one in programs.values()
  ]
  for one in dispatches:
    jax.block_until_ready(one.call())
  taken: list[list[float]] = [[] for _ in dispatches]
  started = time.perf_counter()
  while time.perf_counter() - started < seconds:
    for one, times in zip(dispatches, taken, strict=True):
      since = time.perf_counter()
      jax.block_until_ready(one.call())
      times.append(time.perf_counter() - since)
  columns = {}
  for name, one, times in zip(programs, dispatches, taken, strict=True):
    work = cost.count(one.compiled)
    columns[name] = {
      "step, s": float(np.median(times)) / one.steps,
      "GFLOP a step": work.flops / one.steps / 1e9,
      "memory traffic a step, GB": work.bytes / one.steps / 1e9,
      "memory, MiB": Memory.of(one.compiled).needed / 2**20,
    }
  single, population = columns.values()
  return columns | {
    "ratio": {name: population[name] / single[name] for name in single}
  }


def _compile(function: Any, *arguments: Any) -> tuple[Any, float]:
  """The compiled function, and the seconds of its compilation."""
  started = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  return compiled, time.perf_counter() - started


def _seconds_per_call(call: Callable[[], Any], seconds: float) -> float:
  """The mean over `seconds`, after one warm-up call."""
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
  """Peak memory so far: of the device, or on a CPU of the process."""
  stats = jax.devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
