"""Evaluation: every depth from 1 to D in a single pass.

All puzzles run D supervision steps and are scored after each, at fixed depth
and as if halted at the first step where the halting head says "right". Scores
are summed on the devices; the engine would bring every answer to the host.

Augmented copies of puzzles, as in ARC, vote at every depth for their answers,
mapped back to the original.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from trm_jax.core import flops, losses, network, rollout
from trm_jax.core.halting import Puzzles
from trm_jax.core.model import ModelConfig, Params, portable
from trm_jax.data.task import Split, Task, show
from trm_jax.run import sharding
from trm_jax.solve import vote

Record = dict[str, float]


class Batch(struct.PyTreeNode):
  """Puzzles to score."""

  puzzles: Puzzles  # [B, S], as the model sees them
  counted: jax.Array  # bool [B]; False for padding rows
  symmetries: jax.Array | None = None  # uint8 [B, K]; None without copies


class Votes(struct.PyTreeNode):
  """The answers of a batch of copies, mapped back to their originals."""

  fingerprints: jax.Array  # uint32 [D, B, 2], after each step
  q_halt: jax.Array  # float32 [D, B]
  answers: jax.Array  # uint8 [B, S], after the last step


def score_batch(
  params: Params, batch: Batch, depth: int, model: ModelConfig, task: Task
) -> tuple[dict[str, jax.Array], Votes | None]:
  """Scores a batch after each of `depth` supervision steps.

  Returns:
    Sums over the counted puzzles with a label, float32 `[D]` each: `count`,
    `cell_accuracy` and its square, `exact`, `valid` if the task has rules,
    `q_right` (the halting head is right about the answer), and under halting
    by q `halted_exact` and `halted_steps`. Votes, if there are copies.
  """
  puzzles = batch.puzzles
  counted = batch.counted & jnp.any(losses.is_labelled(puzzles.labels), axis=-1)

  def reduce(state, step):
    halted, steps, answer, _ = state
    answer = jnp.where(halted[:, None], answer, step.answers)
    steps = steps + ~halted
    halted = halted | (step.margin > 0)
    fixed = losses.score(step.answers, puzzles.labels)
    values = {
      "count": jnp.ones_like(counted),
      "cell_accuracy": fixed["cell_accuracy"],
      "cell_accuracy_squared": fixed["cell_accuracy"] ** 2,
      "exact": fixed["exact"],
      "q_right": (step.outputs.q_halt >= 0) == fixed["exact"],
      "halted_exact": losses.score(answer, puzzles.labels)["exact"],
      "halted_steps": steps,
    }
    if task.is_solution:
      values["valid"] = task.is_solution(puzzles.inputs, step.answers)
    sums = {
      name: jnp.sum(jnp.where(counted, value, 0), dtype=jnp.float32)
      for name, value in values.items()
    }
    original, votes = step.answers, None
    if batch.symmetries is not None:
      original = vote.originals(step.answers, batch.symmetries, task)
      prints = vote.fingerprints(original.astype(jnp.uint8), jnp)
      votes = prints, step.outputs.q_halt.astype(jnp.float32)
    return (halted, steps, answer, original), (sums, votes)

  blank, halted = jnp.zeros_like(puzzles.inputs), jnp.zeros_like(counted)
  (*_, original), (sums, votes) = rollout.scan(
    params, puzzles.inputs, puzzles.puzzle_ids, depth, model, reduce,
    (halted, halted.astype(jnp.int32), blank, blank),
  )  # fmt: skip
  if votes is None:
    return sums, None
  return sums, Votes(*votes, answers=original.astype(jnp.uint8))


@functools.cache
def scorer(mesh: Mesh) -> Callable:
  """`score_batch` compiled for a mesh, with replicated results."""

  @functools.wraps(score_batch)
  def score(*args, **settings):
    # The compiler cannot partition kernels: they need the mesh.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return score_batch(*args, **settings)

  return jax.jit(
    score,
    static_argnames=("depth", "model", "task"),
    out_shardings=sharding.replicated(mesh),
  )


def evaluate(
  params: Params,
  split: Split,
  model: ModelConfig,
  task: Task,
  *,
  depth: int,
  batch_size: int,
  mesh: Mesh,
  ballots: Mapping[int, vote.Ballot] | None = None,
  training_flops: float | None = None,
  on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Record]:
  """Scores a model on a split, at every depth from 1 to `depth`.

  Args:
    params: usually `TrainState.averaged_params`.
    split: the puzzles.
    model: the model's config.
    task: the task of the puzzles.
    depth: D, supervision steps; taken as 1 if the model is not recursive.
    batch_size: puzzles at once, over all devices.
    mesh: the devices.
    ballots: depth -> ballot to add the votes of copies to. Must include
      `depth`, whose ballot alone keeps the answers. By default a new ballot
      for every depth.
    training_flops: FLOPs of the training so far, for the records.
    on_batch: called with (puzzles done, puzzles in all).

  Returns:
    One record per depth. Accuracies are fractions in [0, 1]; names that end in
    `_se` are standard errors of the mean over puzzles. Without any label there
    are no accuracies.
  """
  depth = depth if model.is_recursive else 1
  model = portable(model, mesh.devices.flat[0].platform)
  facts: Record = {"weights": network.count_weights(params)}
  if training_flops is not None:
    facts["training_flops"] = training_flops
  pairs, questions = [], np.zeros(0, np.int32)
  if split.symmetries is not None:
    questions, pairs = vote.questions_of(split, task)
    ballots = ballots or new_ballots(range(1, depth + 1))
  score = scorer(mesh)
  sums: dict[str, np.ndarray] = {}
  total = len(split.rows[0])
  done = 0
  for batch, size in _batches(split, task, batch_size, mesh):
    found, votes = jax.device_get(score(params, batch, depth, model, task))
    for name, value in found.items():
      sums[name] = sums.get(name, 0) + value.astype(np.float64)
    if votes is not None and ballots:
      _cast(ballots, votes, questions[done : done + size])
    done += size
    on_batch(done, total)
  return [
    {"depth": k + 1, "puzzles": done}
    | _accuracies({name: float(values[k]) for name, values in sums.items()})
    | passes((ballots or {}).get(k + 1), pairs)
    | {"flops_per_puzzle": float(flops.inference(model, k + 1))}
    | facts
    for k in range(depth)
  ]


@functools.partial(jax.jit, static_argnames=("depth", "model"))
def refine(
  params: Params, puzzles: Puzzles, depth: int, model: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """Answers int32 `[D, B, S]` and halting logits `[D, B]` after each step."""
  return rollout.scan(
    params, puzzles.inputs, puzzles.puzzle_ids, depth,
    portable(model),  # the arrays may be on any devices
    lambda state, step: (state, (step.answers, step.outputs.q_halt)),
  )[1]  # fmt: skip


def new_ballots(depths: Iterable[int]) -> dict[int, vote.Ballot]:
  """An empty ballot for each depth."""
  return {depth: vote.Ballot() for depth in depths}


def _cast(ballots: Mapping[int, vote.Ballot], votes: Votes, questions):
  """Adds the votes of a batch, without its padding rows."""
  size = len(questions)
  keys = vote.as_keys(np.asarray(votes.fingerprints))[:, :size]
  q = vote.confidences(np.asarray(votes.q_halt))[:, :size]
  originals = np.asarray(votes.answers)[:size]
  for depth, ballot in ballots.items():
    answers = originals if depth == len(keys) else None
    ballot.add(questions, keys[depth - 1], q[depth - 1], answers)


def _batches(
  split: Split, task: Task, batch_size: int, mesh: Mesh
) -> Iterator[tuple[Batch, int]]:
  """Batches and their numbers of rows; the last is padded with row 0."""
  examples, puzzles = split.rows
  by_batch = sharding.by_batch(mesh)

  def put(arrays):
    return sharding.put(arrays, by_batch)

  for first in range(0, len(examples), batch_size):
    rows = np.arange(first, min(first + batch_size, len(examples)))
    padded = np.zeros(batch_size, np.int64)
    padded[: len(rows)] = rows
    example, puzzle = examples[padded], puzzles[padded]
    inputs, labels = show(split, example, puzzle, task, put)
    puzzle_ids, counted = put(
      (split.puzzle_ids[puzzle], np.arange(batch_size) < len(rows))
    )
    symmetries = None
    if split.symmetries is not None:
      symmetries = put(split.symmetries[puzzle])
    shown = Puzzles.of(inputs, labels, puzzle_ids)
    yield Batch(shown, counted, symmetries), len(rows)


def as_shown(split: Split, task: Task) -> tuple[np.ndarray, ...]:
  """Inputs, labels and puzzle ids of all rows of a split, as shown."""
  examples, puzzles = split.rows
  inputs, labels = map(np.asarray, show(split, examples, puzzles, task))
  return inputs, labels, split.puzzle_ids[puzzles]


def _accuracies(sums: dict[str, float]) -> Record:
  """Means and standard errors from sums over puzzles."""
  count = sums.pop("count")
  if not count:
    return {}
  means = {name: value / count for name, value in sums.items()}
  exact, cells = means["exact"], means["cell_accuracy"]
  variance = max(means["cell_accuracy_squared"] - cells**2, 0.0)
  record = {
    "cell_accuracy": cells,
    "cell_accuracy_se": math.sqrt(variance / count),
    "exact_accuracy": exact,
    "exact_accuracy_se": standard_error(exact, count),
  }
  if "valid" in means:
    record["valid_rate"] = means["valid"]
    record["valid_rate_se"] = standard_error(means["valid"], count)
  return record | {
    "q_accuracy": means["q_right"],
    "halted_exact_accuracy": means["halted_exact"],
    "mean_steps": means["halted_steps"],
  }


def standard_error(mean: float, count: float) -> float:
  """Standard error of the mean of `count` values that are 0 or 1."""
  return math.sqrt(mean * (1 - mean) / max(count, 1))


def passes(ballot: vote.Ballot | None, pairs: list[vote.Pair]) -> Record:
  """{`pass@k`: score} of a vote; empty without a ballot."""
  scores = {} if ballot is None else vote.pass_at_k(ballot, pairs)
  return {f"pass@{k}": fraction for k, fraction in scores.items()}
