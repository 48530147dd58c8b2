"""Evaluation: every depth from 1 to D in a single pass.

All puzzles run all D supervision steps and are scored after each, so the whole
curve of accuracy against depth costs no more than its last point. Beside the
fixed depth, each is scored at the first step where the halting head says
"right" (`q_halt > 0`), as if it had stopped there.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trm_jax import sharding
from trm_jax.core import flops, halting, losses, recursion
from trm_jax.core.halting import Puzzles
from trm_jax.core.network import ModelConfig, Params
from trm_jax.data.task import Split, Task
from trm_jax.train import as_puzzles

Record = dict[str, float]


@functools.partial(jax.jit, static_argnames=("depth", "model", "task"))
def score_batch(
  params: Params,
  puzzles: Puzzles,
  counted: jax.Array,
  depth: int,
  model: ModelConfig,
  task: Task,
) -> dict[str, jax.Array]:
  """Scores a batch after each supervision step.

  Args:
    params: the model.
    puzzles: `[B, S]`.
    counted: bool `[B]`; False for rows that only fill the batch.
    depth: D, supervision steps.
    model: the model's config.
    task: supplies the verifier.

  Returns:
    Sums over the counted puzzles, float32 `[D]` each: `cell_accuracy` and its
    square, `exact`, `legal`, `q_right` (the halting head judged the answer
    rightly), and under halting by q `halted_exact` and `halted_steps`.
  """
  batch = counted.shape[0]
  rows = params.puzzle_table[puzzles.puzzle_ids]

  def step(carry, _):
    latents, halted, steps, answer = carry
    latents, outputs = halting.supervise(
      params.weights, rows, latents, puzzles.inputs, model
    )
    predictions = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
    answer = jnp.where(halted[:, None], answer, predictions)
    steps = steps + ~halted
    halted = halted | (outputs.q_halt > 0)
    fixed = losses.score(predictions, puzzles.labels)
    values = {
      "cell_accuracy": fixed["cell_accuracy"],
      "cell_accuracy_squared": fixed["cell_accuracy"] ** 2,
      "exact": fixed["exact"],
      "legal": task.is_solution(puzzles.inputs, predictions),
      "q_right": (outputs.q_halt >= 0) == fixed["exact"],
      "halted_exact": losses.score(answer, puzzles.labels)["exact"],
      "halted_steps": steps,
    }
    sums = {
      name: jnp.sum(jnp.where(counted, value, 0), dtype=jnp.float32)
      for name, value in values.items()
    }
    return (latents, halted, steps, answer), sums

  start = (
    recursion.initial_latents(params.initial, batch, model),
    jnp.zeros((batch,), bool),
    jnp.zeros((batch,), jnp.int32),
    jnp.zeros_like(puzzles.inputs),
  )
  return jax.lax.scan(step, start, length=depth)[1]


def evaluate(
  params: Params,
  split: Split,
  model: ModelConfig,
  task: Task,
  *,
  depth: int,
  batch_size: int,
  mesh: Mesh,
  on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Record]:
  """Scores a model on a split, at every depth from 1 to `depth`.

  Args:
    params: the model; usually `TrainState.averaged_params`.
    split: the puzzles.
    model: the model's config.
    task: the task family.
    depth: D, the largest number of supervision steps.
    batch_size: puzzles at once, over all devices.
    mesh: the devices.
    on_batch: called with (puzzles done, puzzles in all).

  Returns:
    One record per depth. Accuracies are shares in [0, 1]; names that end in
    `_se` are standard errors of the mean over puzzles.
  """
  sums: dict[str, np.ndarray] = {}
  done = 0
  for puzzles, counted, size in _batches(split, batch_size, mesh):
    batch = score_batch(params, puzzles, counted, depth, model, task)
    for name, value in jax.device_get(batch).items():
      sums[name] = sums.get(name, 0) + value.astype(np.float64)
    done += size
    on_batch(done, len(split))
  return [
    _record({name: values[k] for name, values in sums.items()}, k + 1, done)
    | {"flops_per_puzzle": float(flops.inference(model, k + 1))}
    for k in range(depth)
  ]


def choose_rows(num_rows: int, count: int, seed: int) -> np.ndarray:
  """The rows of a seeded part of a split; all of them if `count` is 0."""
  if not 0 < count < num_rows:
    return np.arange(num_rows)
  chosen = np.random.default_rng(seed).choice(num_rows, count, replace=False)
  return np.sort(chosen)


def _batches(
  split: Split, batch_size: int, mesh: Mesh
) -> Iterator[tuple[Puzzles, jax.Array, int]]:
  """Equal batches; the last is filled up with row 0, which is not counted."""
  for first in range(0, len(split), batch_size):
    rows = np.arange(first, min(first + batch_size, len(split)))
    padded = np.zeros(batch_size, np.int64)
    padded[: len(rows)] = rows
    inputs, labels, puzzle_ids, counted = sharding.put(
      (
        split.inputs[padded],
        split.labels[padded],
        split.puzzle_ids[padded],
        np.arange(batch_size) < len(rows),
      ),
      sharding.by_batch(mesh),
    )
    puzzles = as_puzzles(inputs, labels, puzzle_ids)
    yield puzzles, counted, len(rows)


def _record(sums: dict[str, float], depth: int, count: int) -> Record:
  means = {name: float(value) / count for name, value in sums.items()}
  exact, cells = means["exact"], means["cell_accuracy"]
  spread = max(means["cell_accuracy_squared"] - cells**2, 0.0)
  return {
    "depth": depth,
    "puzzles": count,
    "cell_accuracy": cells,
    "cell_accuracy_se": math.sqrt(spread / count),
    "exact_accuracy": exact,
    "exact_accuracy_se": math.sqrt(exact * (1 - exact) / count),
    "legal_rate": means["legal"],
    "q_accuracy": means["q_right"],
    "halted_exact_accuracy": means["halted_exact"],
    "mean_steps": means["halted_steps"],
  }
