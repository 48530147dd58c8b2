"""Continuous batching for recursion: slots, a queue, and halting.

A device holds B slots. Each runs one rollout of one puzzle; when that halts,
the slot takes the next rollout from the queue within the same program, so the
batch stays full until the queue is empty and the host is never asked. What a
rollout computes does not depend on what is in other slots: its noise is drawn
by its puzzle's content, its own number and its step.

`advance` is pure and knows one device; `solver` lays it out over many.

  Q  puzzles in the queue        K  rollouts of each (breadth)
  B  slots                       M  marks: depths at which answers are kept
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from trm_jax.core import halting, network, recursion
from trm_jax.core.network import Latents, ModelConfig, Weights
from trm_jax.data.task import Task

Array = jax.Array | np.ndarray


class Rules(struct.PyTreeNode):
  """When a rollout halts, as numbers, so that no rule is compiled anew.

  Attributes:
    depth: int32 [], supervision steps after which it halts anyway.
    threshold: float32 [], it halts above this margin; inf for never.
    patience: int32 [], it halts when its answer has stood for so many steps.
    tolerance: float32 [], it halts below this residual; 0 for never.
    solved: bool [], it halts when its answer is a solution.
    first: bool [], its siblings stop when one has halted by a rule.
  """

  depth: jax.Array
  threshold: jax.Array
  patience: jax.Array
  tolerance: jax.Array
  solved: jax.Array
  first: jax.Array


class Noise(struct.PyTreeNode):
  """What makes rollouts differ.

  Attributes:
    initial: float32 [], deviation added to initial latents.
    cycle: float32 [], deviation added before each cycle.
    key: typed PRNG key.
  """

  initial: jax.Array
  cycle: jax.Array
  key: jax.Array


class Queue(struct.PyTreeNode):
  """Puzzles to solve. Rollouts share what is here.

  Attributes:
    inputs: uint8 `[Q, S]`.
    rows: `[Q, E]`, their puzzle embeddings.
    numbers: uint32 `[Q]`, what their noise is drawn by.
    count: int32 [], how many are there; the rest is room.
  """

  inputs: Array
  rows: Array
  numbers: Array
  count: Array


class Slots(struct.PyTreeNode):
  """What a device works on. An idle slot has rollout Q * K.

  Attributes:
    rollout: int32 `[B]`, puzzle * K + rollout.
    latents: `[B, ..., L, D]`.
    inputs: int32 `[B, S]`, as the rollout sees them.
    steps: int32 `[B]`, supervision steps spent.
    answers: int32 `[B, S]`, the last answers, as seen.
    unchanged: int32 `[B]`, for how many steps they have stood.
    next: int32 [], the first rollout that is still waiting.
  """

  rollout: jax.Array
  latents: Latents
  inputs: jax.Array
  steps: jax.Array
  answers: jax.Array
  unchanged: jax.Array
  next: jax.Array


class Found(struct.PyTreeNode):
  """What rollouts came to, at each mark.

  A rollout that halts before a mark is there as it halted. Steps are 0 where
  there is nothing: it did not get there, or was cancelled.

  Attributes:
    answers: uint8 `[Q * K, M, S]`, mapped back to the puzzle.
    q_halt: float32 `[Q * K, M]`, the halting margin.
    residual: float32 `[Q * K, M]`.
    steps: int32 `[Q * K, M]`.
    halted: bool `[Q * K]`, whether a rule halted it, and not its depth.
    soonest: int32 `[Q]`, steps of the puzzle's first rollout to be halted so.
    finished: int32 [], rollouts that are over.
    spent: int32 [], supervision steps of all rollouts.
    passes: int32 [], supervision steps of the batch.
  """

  answers: jax.Array
  q_halt: jax.Array
  residual: jax.Array
  steps: jax.Array
  halted: jax.Array
  soonest: jax.Array
  finished: jax.Array
  spent: jax.Array
  passes: jax.Array


class State(struct.PyTreeNode):
  """Slots, and what was found."""

  slots: Slots
  found: Found


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that a compiled program depends on besides shapes; hashable.

  Attributes:
    model: the model.
    task: its task.
    breadth: K.
    noisy: whether rollouts are disturbed.
    views: whether rollouts see puzzles under symmetries.
    checks: whether answers are checked after each step.
    chunk: supervision steps that one call takes at most.
  """

  model: ModelConfig
  task: Task
  breadth: int
  noisy: bool
  views: bool
  checks: bool
  chunk: int


_NEVER = jnp.iinfo(jnp.int32).max


def start(slots: int, puzzles: int, marks: int, plan: Plan) -> State:
  """Idle slots, and room for what will be found; zeros, to be traced."""
  model, tokens = plan.model, plan.model.seq_len
  rollouts = puzzles * plan.breadth
  like = jax.eval_shape(
    lambda: recursion.evaluation_latents(
      network.init(jax.random.key(0), model).initial, slots, model
    )
  )
  none = jnp.zeros((slots,), jnp.int32)
  grid = jnp.zeros((rollouts, marks), jnp.float32)
  zero = jnp.int32(0)
  return State(
    Slots(
      rollout=jnp.full((slots,), rollouts, jnp.int32),
      latents=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like),
      inputs=jnp.zeros((slots, tokens), jnp.int32),
      steps=none,
      answers=jnp.zeros((slots, tokens), jnp.int32),
      unchanged=none,
      next=zero,
    ),
    Found(
      answers=jnp.zeros((rollouts, marks, tokens), jnp.uint8),
      q_halt=grid,
      residual=grid,
      steps=grid.astype(jnp.int32),
      halted=jnp.zeros((rollouts,), bool),
      soonest=jnp.full((puzzles,), _NEVER, jnp.int32),
      finished=zero,
      spent=zero,
      passes=zero,
    ),
  )


def advance(
  weights: Weights,
  initial: Latents,
  queue: Queue,
  rules: Rules,
  noise: Noise,
  marks: jax.Array,
  few: jax.Array,
  state: State,
  plan: Plan,
) -> State:
  """Takes up to `plan.chunk` supervision steps, or until little is left to do.

  Args:
    weights: `Params.weights`.
    initial: `Params.initial`.
    queue: the puzzles.
    rules: when to halt.
    noise: what makes rollouts differ.
    marks: int32 `[M]`, ascending depths at which answers are kept.
    few: int32 [], it returns when nothing waits and so many slots are busy, or
      fewer.
    state: where things stand.
    plan: what is static.

  Returns:
    Where things stand then. `found.finished` tells how many are over.
  """

  def is_working(carry):
    taken, state = carry
    waiting = state.slots.next < queue.count * plan.breadth
    busy = jnp.sum(state.slots.rollout < _rollouts(queue, plan))
    return (taken < plan.chunk) & (waiting | (busy > few))

  def step(carry):
    taken, state = carry
    slots = refill(state.slots, initial, queue, noise, plan)
    state = _recurse(
      weights, queue, rules, noise, marks, state.replace(slots=slots), plan
    )
    return taken + 1, state

  return jax.lax.while_loop(is_working, step, (jnp.int32(0), state))[1]


def left(queue: Queue, state: State, plan: Plan) -> jax.Array:
  """Rollouts that are not over, int32 []."""
  busy = jnp.sum(state.slots.rollout < _rollouts(queue, plan), dtype=jnp.int32)
  waiting = jnp.asarray(queue.count) * plan.breadth - state.slots.next
  return busy + waiting


def compact(state: State, slots: int) -> State:
  """Moves what is running into fewer slots, which must have room for it."""
  # Idle slots have the largest number of all.
  order = jnp.argsort(state.slots.rollout)[:slots]
  moved = jax.tree.map(
    lambda leaf: leaf[order] if leaf.ndim else leaf, state.slots
  )
  return state.replace(slots=moved)


def refill(
  slots: Slots, initial: Latents, queue: Queue, noise: Noise, plan: Plan
) -> Slots:
  """Gives every idle slot the next rollout of the queue, while they last."""
  idle = slots.rollout >= _rollouts(queue, plan)

  def take(slots: Slots) -> Slots:
    ranks = jnp.cumsum(idle, dtype=jnp.int32)
    offered = slots.next + ranks - 1
    fresh = idle & (offered < queue.count * plan.breadth)
    rollout = jnp.where(fresh, offered, slots.rollout)
    puzzle = jnp.where(fresh, rollout // plan.breadth, 0)
    keys = _keys(noise, queue, puzzle, rollout, plan)
    inputs = jnp.asarray(queue.inputs)[puzzle].astype(jnp.int32)
    if plan.views:
      shown = jax.vmap(lambda key, x: _shown(key, x, plan))(keys, inputs)
      plain = rollout % plan.breadth == 0
      inputs = jnp.where(plain[:, None], inputs, shown)
    latents = _initial(initial, rollout, keys, noise, plan)

    def where_fresh(new, old):
      mask = fresh.reshape((-1,) + (1,) * (old.ndim - 1))
      return jnp.where(mask, new, old)

    return Slots(
      rollout=rollout,
      latents=jax.tree.map(where_fresh, latents, slots.latents),
      inputs=where_fresh(inputs, slots.inputs),
      steps=where_fresh(jnp.zeros_like(slots.steps), slots.steps),
      answers=slots.answers,
      unchanged=slots.unchanged,
      next=slots.next + jnp.sum(fresh, dtype=jnp.int32),
    )

  return jax.lax.cond(jnp.any(idle), take, lambda slots: slots, slots)


def _recurse(weights, queue, rules, noise, marks, state, plan) -> State:
  """One supervision step of all slots; keeps what is due and frees slots."""
  slots, found, model = state.slots, state.found, plan.model
  rollouts = _rollouts(queue, plan)
  busy = slots.rollout < rollouts
  puzzle = jnp.where(busy, slots.rollout // plan.breadth, 0)
  keys = _keys(noise, queue, puzzle, slots.rollout, plan)
  disturb = None
  if plan.noisy:
    # Steps count from 0, and 0 was the start's.
    stepped = jax.vmap(jax.random.fold_in)(keys, slots.steps + 1)
    disturb = _disturbance(stepped, noise.cycle, slots.rollout, plan)
  rows = jnp.asarray(queue.rows)[puzzle]
  latents, outputs = halting.supervise(
    weights, rows, slots.latents, slots.inputs, model, perturb=disturb
  )
  answers = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
  same = jnp.all(answers == slots.answers, axis=-1) & (slots.steps > 0)
  unchanged = jnp.where(same, slots.unchanged + 1, 0)
  steps = slots.steps + 1
  margin = outputs.halting_margin(model).astype(jnp.float32)
  residual = _residual(slots.latents.y, latents.y, busy.shape[0])
  by_rule = (
    (margin > rules.threshold)
    | (unchanged >= rules.patience)
    | (residual < rules.tolerance)
  )
  if plan.checks:
    assert plan.task.is_solution, "a task with rules"
    by_rule |= rules.solved & plan.task.is_solution(slots.inputs, answers)
  by_rule &= busy
  over = busy & (by_rule | (steps >= rules.depth))
  soonest = found.soonest.at[jnp.where(by_rule, puzzle, _NEVER)].min(
    steps, mode="drop"
  )
  # No sibling can come first any more; one that halts now ties.
  beaten = busy & rules.first & (soonest[puzzle] <= steps) & ~over
  at, before = steps[:, None] == marks[None], steps[:, None] < marks[None]
  due = busy[:, None] & (at | (over[:, None] & before))  # [B, M]
  original = answers
  if plan.views:
    undone = jax.vmap(lambda key, a: _undone(key, a, plan))(keys, answers)
    plain = slots.rollout % plan.breadth == 0
    original = jnp.where(plain[:, None], answers, undone)

  def keep(old, new):  # [Q * K, M, ...], [B, ...]
    there = jnp.where(busy, slots.rollout, rollouts)
    mask = due.reshape(due.shape + (1,) * (old.ndim - 2))
    mixed = jnp.where(mask, new[:, None].astype(old.dtype), old[there])
    return old.at[there].set(mixed, mode="drop")

  freed = over | beaten
  halted_there = jnp.where(over & by_rule, slots.rollout, rollouts)
  return State(
    slots.replace(
      rollout=jnp.where(freed, rollouts, slots.rollout),
      latents=latents,
      steps=steps,
      answers=answers,
      unchanged=unchanged,
    ),
    Found(
      answers=keep(found.answers, original),
      q_halt=keep(found.q_halt, margin),
      residual=keep(found.residual, residual),
      steps=keep(found.steps, steps),
      halted=found.halted.at[halted_there].set(True, mode="drop"),
      soonest=soonest,
      finished=found.finished + jnp.sum(freed, dtype=jnp.int32),
      spent=found.spent + jnp.sum(busy, dtype=jnp.int32),
      passes=found.passes + 1,
    ),
  )


def _rollouts(queue: Queue, plan: Plan) -> int:
  """Room for rollouts; the number that an idle slot has."""
  return queue.inputs.shape[0] * plan.breadth


def _keys(noise: Noise, queue: Queue, puzzle, rollout, plan: Plan) -> Any:
  """A key a slot, by its puzzle's number and its rollout; typed keys `[B]`."""
  which = rollout % plan.breadth

  def key(number, which):
    return jax.random.fold_in(jax.random.fold_in(noise.key, number), which)

  return jax.vmap(key)(jnp.asarray(queue.numbers)[puzzle], which)


def _initial(initial, rollout, keys, noise, plan) -> Latents:
  """Where rollouts start: the first of each puzzle as evaluation does."""
  model, slots = plan.model, rollout.shape[0]
  plain = recursion.evaluation_latents(initial, slots, model)
  if not plan.noisy:
    return plain
  firsts = jax.vmap(jax.random.fold_in)(keys, jnp.zeros_like(rollout))
  if model.initial_std:
    drawn = jax.vmap(
      lambda key: recursion.initial_latents(initial, 1, model, key)
    )(firsts)
    first = rollout % plan.breadth == 0

    def choose(plain, drawn):
      mask = first.reshape((-1,) + (1,) * (plain.ndim - 1))
      return jnp.where(mask, plain, drawn[:, 0])

    plain = jax.tree.map(choose, plain, drawn)
  disturb = _disturbance(firsts, noise.initial, rollout, plan)
  return disturb(plain, jnp.int32(0))


def _disturbance(keys, deviation, rollout, plan) -> recursion.Perturbation:
  """Noise of its own for every rollout but a puzzle's first."""
  scale = jnp.where(rollout % plan.breadth == 0, 0.0, deviation)

  def disturb(latents: Latents, cycle: jax.Array) -> Latents:
    cycled = jax.vmap(jax.random.fold_in, (0, None))(keys, cycle)
    leaves, structure = jax.tree.flatten(latents)

    def disturbed(i, leaf):
      own = jax.vmap(jax.random.fold_in, (0, None))(cycled, i)
      drawn = jax.vmap(
        lambda key: jax.random.normal(key, leaf.shape[1:], leaf.dtype)
      )(own)
      sized = scale.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1))
      return leaf + sized * drawn

    return structure.unflatten(disturbed(i, x) for i, x in enumerate(leaves))

  return disturb


def _residual(old, new, slots: int) -> jax.Array:
  """How far `y` moved, relative to its norm: float32 `[B]`."""
  if new is None:  # nothing recurs
    return jnp.zeros((slots,), jnp.float32)
  axes = (1, 2)
  new = new.astype(jnp.float32)
  moved = jnp.sum((new - old.astype(jnp.float32)) ** 2, axes)
  return jnp.sqrt(moved / jnp.maximum(jnp.sum(new**2, axes), 1e-30))


def _shown(key, tokens, plan: Plan):
  views, symmetry = _view(key, plan)
  return views.apply(symmetry, tokens)


def _undone(key, tokens, plan: Plan):
  views, symmetry = _view(key, plan)
  assert views.undo
  return views.undo(symmetry, tokens)


def _view(key, plan: Plan):
  """How a rollout sees its puzzle, the same whenever it is asked."""
  views = plan.task.views
  assert views, "a task with symmetries"
  # Noise folds steps into the same key, which never come so far.
  return views, views.sample(jax.random.fold_in(key, _NEVER), None, None)
