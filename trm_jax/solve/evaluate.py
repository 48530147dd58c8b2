"""Evaluation: every depth from 1 to D in a single pass.

All puzzles run all D supervision steps and are scored after each, so the whole
curve of accuracy against depth costs no more than its last point. Beside the
fixed depth, each is scored at the first step where the halting head says
"right" (`Outputs.wants_to_halt`), as if it had stopped there. Models that do
not recurse have depth 1 alone.

Where puzzles have augmented copies, as in ARC, each copy votes for its answer,
mapped back to the original, at every depth.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from trm_jax.core import flops, halting, losses, network, recursion
from trm_jax.core.halting import Puzzles
from trm_jax.core.network import ModelConfig, Params
from trm_jax.data.task import Split, Task, show
from trm_jax.run import sharding
from trm_jax.solve import vote

Record = dict[str, float]


class Batch(struct.PyTreeNode):
  """Puzzles to score.

  Attributes:
    puzzles: `[B, S]`, as the model sees them.
    counted: bool `[B]`; False for rows that only fill the batch.
    symmetries: uint8 `[B, K]`, how each differs from its original; None where
      there are no copies.
  """

  puzzles: Puzzles
  counted: jax.Array
  symmetries: jax.Array | None = None


class Votes(struct.PyTreeNode):
  """What the copies of a batch say, mapped back to their originals.

  Attributes:
    fingerprints: uint32 `[D, B, 2]` of the answers after each step.
    q_halt: float32 `[D, B]`.
    answers: uint8 `[B, S]`, after the last step.
  """

  fingerprints: jax.Array
  q_halt: jax.Array
  answers: jax.Array


def score_batch(
  params: Params, batch: Batch, depth: int, model: ModelConfig, task: Task
) -> tuple[dict[str, jax.Array], Votes | None]:
  """Scores a batch after each supervision step.

  Args:
    params: the model.
    batch: the puzzles.
    depth: D, supervision steps.
    model: the model's config.
    task: supplies the verifier, and maps answers back.

  Returns:
    Sums over the counted puzzles with a label, float32 `[D]` each: `count`,
    `cell_accuracy` and its square, `exact`, `valid` where the task has rules,
    `q_right` (the halting head judged the answer rightly), and under halting
    by q `halted_exact` and `halted_steps`. And votes, where there are copies.
  """
  puzzles = batch.puzzles
  size = batch.counted.shape[0]
  counted = batch.counted & jnp.any(losses.is_labelled(puzzles.labels), axis=-1)
  rows = params.puzzle_table[puzzles.puzzle_ids]

  def step(carry, _):
    latents, halted, steps, answer, _ = carry
    latents, outputs = halting.supervise(
      params.weights, rows, latents, puzzles.inputs, model
    )
    predictions = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
    answer = jnp.where(halted[:, None], answer, predictions)
    steps = steps + ~halted
    halted = halted | outputs.wants_to_halt(model)
    fixed = losses.score(predictions, puzzles.labels)
    values = {
      "count": jnp.ones_like(counted),
      "cell_accuracy": fixed["cell_accuracy"],
      "cell_accuracy_squared": fixed["cell_accuracy"] ** 2,
      "exact": fixed["exact"],
      "q_right": (outputs.q_halt >= 0) == fixed["exact"],
      "halted_exact": losses.score(answer, puzzles.labels)["exact"],
      "halted_steps": steps,
    }
    if task.is_solution:
      values["valid"] = task.is_solution(puzzles.inputs, predictions)
    sums = {
      name: jnp.sum(jnp.where(counted, value, 0), dtype=jnp.float32)
      for name, value in values.items()
    }
    original, heard = predictions, None
    if batch.symmetries is not None:
      assert task.copies and task.copies.undo, "a task with copies"
      original = jax.vmap(task.copies.undo)(batch.symmetries, predictions)
      prints = vote.fingerprints(original.astype(jnp.uint8), jnp)
      heard = prints, outputs.q_halt.astype(jnp.float32)
    return (latents, halted, steps, answer, original), (sums, heard)

  nothing = jnp.zeros_like(puzzles.inputs)
  start = (
    recursion.evaluation_latents(params.initial, size, model),
    jnp.zeros((size,), bool),
    jnp.zeros((size,), jnp.int32),
    nothing,
    nothing,
  )
  (*_, original), (sums, heard) = jax.lax.scan(step, start, length=depth)
  if heard is None:
    return sums, None
  return sums, Votes(*heard, answers=original.astype(jnp.uint8))


@functools.cache
def scorer(mesh: Mesh) -> Callable:
  """`score_batch` compiled for a mesh; every device gets all that it returns.

  The votes of all processes thus reach each of them as plain arrays.
  """

  @functools.wraps(score_batch)
  def score(*args, **settings):
    # Kernels, which the compiler cannot divide, are told how the mesh does.
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
    params: the model; usually `TrainState.averaged_params`.
    split: the puzzles.
    model: the model's config.
    task: the task family.
    depth: D, the largest number of supervision steps; 1 is enough for a model
      that does not recurse, and all that it gets.
    batch_size: puzzles at once, over all devices.
    mesh: the devices.
    ballots: where copies vote, the ballots of some depths, that of `depth`
      among them, which alone keeps the answers; votes are added to those that
      are there already. By default every depth has an empty one.
    training_flops: spent on the model so far, for the records.
    on_batch: called with (puzzles done, puzzles in all).

  Returns:
    One record per depth. Accuracies are shares in [0, 1]; names that end in
    `_se` are standard errors of the mean over puzzles. Where nothing has a
    label, there are no accuracies.
  """
  depth = depth if model.is_recursive else 1
  model = network.portable(model, mesh.devices.flat[0].platform)
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
    | _passes((ballots or {}).get(k + 1), pairs)
    | {"flops_per_puzzle": float(flops.inference(model, k + 1))}
    | facts
    for k in range(depth)
  ]


@functools.partial(jax.jit, static_argnames=("depth", "model"))
def refine(
  params: Params, puzzles: Puzzles, depth: int, model: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """The answer to each puzzle after each supervision step.

  Args:
    params: the model.
    puzzles: `[B, S]`; their labels are not read.
    depth: D, supervision steps.
    model: the model's config.

  Returns:
    Answers int32 `[D, B, S]`, and the halting logits `[D, B]`: their sigmoid
    is the probability, as the model sees it, that the answer is right.
  """
  model = network.portable(model)  # the arrays may be on any devices
  rows = params.puzzle_table[puzzles.puzzle_ids]

  def step(latents, _):
    latents, outputs = halting.supervise(
      params.weights, rows, latents, puzzles.inputs, model
    )
    answers = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
    return latents, (answers, outputs.q_halt)

  start = recursion.evaluation_latents(
    params.initial, puzzles.inputs.shape[0], model
  )
  return jax.lax.scan(step, start, length=depth)[1]


def new_ballots(depths: Iterable[int]) -> dict[int, vote.Ballot]:
  """An empty ballot for each depth."""
  return {depth: vote.Ballot() for depth in depths}


def with_mean_embedding(params: Params, known: int) -> Params:
  """Sets row 0 of the puzzle table to the mean of the trained rows.

  Args:
    params: the model.
    known: how many ids were trained, the blank one (row 0) included.

  Returns:
    The model, for puzzles that it has no embedding of: give them id 0.
  """
  table = params.puzzle_table
  if known > 1:
    table = table.at[0].set(jnp.mean(table[1:known], axis=0))
  return params.replace(puzzle_table=table)


def choose_groups(num_groups: int, count: int, seed: int) -> np.ndarray:
  """The groups of a seeded part of a split; all of them if `count` is 0."""
  if not 0 < count < num_groups:
    return np.arange(num_groups)
  chosen = np.random.default_rng(seed).choice(num_groups, count, replace=False)
  return np.sort(chosen)


def _cast(ballots: Mapping[int, vote.Ballot], votes: Votes, questions):
  """Adds the votes of a batch; its filling rows are cut off."""
  size = len(questions)
  keys = vote.as_keys(np.asarray(votes.fingerprints))
  q = vote.confidences(np.asarray(votes.q_halt))
  originals = np.asarray(votes.answers)[:size]
  for depth, ballot in ballots.items():
    answers = originals if depth == len(keys) else None
    ballot.add(questions, keys[depth - 1, :size], q[depth - 1, :size], answers)


def _batches(
  split: Split, task: Task, batch_size: int, mesh: Mesh
) -> Iterator[tuple[Batch, int]]:
  """Equal batches; the last is filled up with row 0, which is not counted."""
  examples, puzzles = split.rows
  by_batch = sharding.by_batch(mesh)
  for first in range(0, len(examples), batch_size):
    rows = np.arange(first, min(first + batch_size, len(examples)))
    padded = np.zeros(batch_size, np.int64)
    padded[: len(rows)] = rows
    example, puzzle = examples[padded], puzzles[padded]
    inputs, labels = show(
      split,
      example,
      puzzle,
      task,
      lambda arrays: sharding.put(arrays, by_batch),
    )
    puzzle_ids, counted = sharding.put(
      (split.puzzle_ids[puzzle], np.arange(batch_size) < len(rows)), by_batch
    )
    symmetries = None
    if split.symmetries is not None:
      symmetries = sharding.put(split.symmetries[puzzle], by_batch)
    shown = Puzzles.of(inputs, labels, puzzle_ids)
    yield Batch(shown, counted, symmetries), len(rows)


def _accuracies(sums: dict[str, float]) -> Record:
  """Turns sums over puzzles into means and their standard errors."""
  count = sums.pop("count")
  if not count:
    return {}
  means = {name: value / count for name, value in sums.items()}
  exact, cells = means["exact"], means["cell_accuracy"]
  spread = max(means["cell_accuracy_squared"] - cells**2, 0.0)
  record = {
    "cell_accuracy": cells,
    "cell_accuracy_se": math.sqrt(spread / count),
    "exact_accuracy": exact,
    "exact_accuracy_se": _share_error(exact, count),
  }
  if "valid" in means:
    record["valid_rate"] = means["valid"]
    record["valid_rate_se"] = _share_error(means["valid"], count)
  return record | {
    "q_accuracy": means["q_right"],
    "halted_exact_accuracy": means["halted_exact"],
    "mean_steps": means["halted_steps"],
  }


def _share_error(share: float, count: float) -> float:
  return math.sqrt(share * (1 - share) / count)


def _passes(ballot: vote.Ballot | None, pairs: list[vote.Pair]) -> Record:
  """Scores of the vote: `pass@k` for each k."""
  if ballot is None:
    return {}
  scores = vote.pass_at_k(ballot, pairs)
  return {f"pass@{k}": share for k, share in scores.items()}
