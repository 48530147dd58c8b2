"""Rollouts: the recursion of a model on puzzles, step by step.

`step` is one supervision step at inference and all that can be read from it.
Evaluation, the inference engine, the exported solver and the replay of
recordings run this one function and differ in what they keep.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from trm_jax.core import halting, recursion
from trm_jax.core.halting import Outputs
from trm_jax.core.model import Latents, ModelConfig, Params, Weights


class StepResult(struct.PyTreeNode):
  """What one supervision step gives.

  Attributes:
    outputs: what both heads say.
    answers: int32 `[B, S]`, the likeliest tokens.
    margin: `[B]`, the halting margin, see `Outputs.halting_margin`.
    residual: float32 `[B]`, `|y' - y| / |y'|` over the whole of a puzzle's
      `y`; 0 in models that do not recur.
  """

  outputs: Outputs
  answers: jax.Array
  margin: jax.Array
  residual: jax.Array


def step(
  weights: Weights,
  puzzle_rows: jax.Array,
  latents: Latents,
  inputs: jax.Array,
  config: ModelConfig,
  perturb: Callable[[Latents, jax.Array], Latents] | None = None,
) -> tuple[Latents, StepResult]:
  """Takes one supervision step, as at inference.

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`, rows of the puzzle table.
    latents: of the last step, or `recursion.evaluation_latents`.
    inputs: int32 `[B, S]`.
    config: the model.
    perturb: `(latents, cycle) -> latents`, applied before each cycle.

  Returns:
    The refined latents, and what was read from them.
  """
  refined, outputs = halting.supervise(
    weights, puzzle_rows, latents, inputs, config, perturb=perturb
  )
  return refined, StepResult(
    outputs=outputs,
    answers=jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32),
    margin=outputs.halting_margin(config),
    residual=_residual(latents.y, refined.y, inputs.shape[0]),
  )


def scan(
  params: Params,
  inputs: jax.Array,
  puzzle_ids: jax.Array,
  depth: int,
  config: ModelConfig,
  reduce: Callable[[Any, StepResult], tuple[Any, Any]],
  initial: Any = None,
) -> tuple[Any, Any]:
  """Takes `depth` steps from the deterministic start, and reduces each.

  Args:
    params: the model.
    inputs: int32 `[B, S]`.
    puzzle_ids: int32 `[B]`, rows of the puzzle table.
    depth: D, supervision steps.
    config: the model's config.
    reduce: `(state, step) -> (state, kept)`.
    initial: the first state.

  Returns:
    The last state, and what was kept, with a leading axis D.
  """
  rows = params.puzzle_table[puzzle_ids]

  def body(carry, _):
    latents, state = carry
    latents, found = step(params.weights, rows, latents, inputs, config)
    state, kept = reduce(state, found)
    return (latents, state), kept

  start = recursion.evaluation_latents(params.initial, inputs.shape[0], config)
  (_, state), kept = jax.lax.scan(body, (start, initial), length=depth)
  return state, kept


def _residual(old, new, batch: int) -> jax.Array:
  if new is None:  # nothing recurs
    return jnp.zeros((batch,), jnp.float32)
  axes = (1, 2)
  new = new.astype(jnp.float32)
  moved = jnp.sum((new - old.astype(jnp.float32)) ** 2, axes)
  return jnp.sqrt(moved / jnp.maximum(jnp.sum(new**2, axes), 1e-30))
