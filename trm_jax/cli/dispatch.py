"""A dispatch of training, compiled and ready to be called again and again."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from trm_jax.data.task import Split
from trm_jax.train import loop as fit
from trm_jax.train import population


@dataclasses.dataclass(frozen=True)
class Dispatch:
  """What `prepare` gives.

  Attributes:
    call: trains on, from where the last call ended; returns the metrics.
    compiled: the program, a `jax.stages.Compiled`.
    compile_seconds: that it took.
    steps: optimizer steps of a call.
  """

  call: Callable[[], Any]
  compiled: Any
  compile_seconds: float
  steps: int


def prepare(
  program: fit.Program | population.Program, split: Split
) -> Dispatch:
  """Puts data and a fresh state onto the devices, and compiles."""
  table = fit.stage(split, program.mesh)
  state = program.init()
  steps = program.recipe.train.steps_per_dispatch
  choices = program.recipe.choices(0, steps)
  started = time.perf_counter()
  compiled = program.dispatch.lower(state, table, choices).compile()
  seconds = time.perf_counter() - started

  def call():
    nonlocal state
    state, metrics = compiled(state, table, choices)
    return metrics

  return Dispatch(call, compiled, seconds, steps)
