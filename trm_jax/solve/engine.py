"""Continuous batching for recursion: slots, a queue, and halting.

Each of B slots runs one rollout of one puzzle; when it halts, the same program
refills the slot from the queue. A rollout's noise depends only on the puzzle's
content, the rollout's number and its step, so results do not depend on slots.

This code is for one device; `layout` maps it over many. Counts have shape [1],
to become one per device.

  Q  puzzles in the queue        K  rollouts of each (breadth)
  B  slots                       M  marks: depths at which answers are kept
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from trm_jax.core import hashing, network, recursion, rollout
from trm_jax.core.halting import select_rows
from trm_jax.core.model import Latents, ModelConfig, Weights
from trm_jax.data.task import Task
from trm_jax.solve.rules import RULES, SolveConfig, Values

Array = jax.Array | np.ndarray

_NEVER = jnp.iinfo(jnp.int32).max


class EngineSettings(struct.PyTreeNode):
  """How rollouts run, as arrays, so that new values need no new compile."""

  marks: jax.Array  # int32 [M], ascending depths at which answers are kept
  depth: jax.Array  # int32 [], supervision steps after which all halt
  limits: dict[str, jax.Array]  # name of each of `RULES` -> limit []
  first: jax.Array  # bool [], stop a puzzle's rollouts when a rule halts one
  initial_noise: jax.Array  # float32 [], standard deviation
  cycle_noise: jax.Array  # float32 [], standard deviation
  key: jax.Array  # typed PRNG key of the noise and the views

  @classmethod
  def of(
    cls, settings: SolveConfig, marks: Sequence[int], prune: bool
  ) -> "EngineSettings":
    """The settings as arrays; without `prune`, `first` is false."""
    return cls(
      marks=jnp.asarray(marks, jnp.int32),
      depth=jnp.int32(marks[-1]),
      limits={
        rule.name: jnp.asarray(settings.limit(rule), rule.dtype)
        for rule in RULES
      },
      first=jnp.asarray(prune and settings.select == "first"),
      initial_noise=jnp.float32(settings.initial_noise),
      cycle_noise=jnp.float32(settings.cycle_noise),
      key=hashing.base_key(settings.seed),
    )


class Queue(struct.PyTreeNode):
  """Puzzles to solve."""

  inputs: Array  # uint8 [Q, S]
  rows: Array  # [Q, E], puzzle embeddings
  numbers: Array  # uint32 [Q], seeds of the noise: hashes of the content
  count: Array  # int32 [1], number of puzzles; rows beyond are padding


class Slots(struct.PyTreeNode):
  """The running rollouts. An idle slot has rollout Q * K."""

  rollout: jax.Array  # int32 [B], puzzle * K + number of the rollout
  latents: Latents  # [B, ..., L, D]
  inputs: jax.Array  # int32 [B, S], in the rollout's view
  steps: jax.Array  # int32 [B], supervision steps done
  answers: jax.Array  # int32 [B, S], the last answers, in the rollout's view
  unchanged: jax.Array  # int32 [B], steps for which they were the same
  next: jax.Array  # int32 [1], the next rollout of the queue


class Found(struct.PyTreeNode):
  """The results of rollouts at each mark.

  A rollout that halts before a mark has its last results there. Steps are 0
  where there is no result yet, or the rollout was pruned.
  """

  answers: jax.Array  # uint8 [Q * K, M, S], mapped back to the puzzle
  q_halt: jax.Array  # float32 [Q * K, M], the halting margin
  residual: jax.Array  # float32 [Q * K, M]
  steps: jax.Array  # int32 [Q * K, M]
  halted: jax.Array  # bool [Q * K], by a rule rather than the depth
  soonest: jax.Array  # int32 [Q], steps of the first rollout halted by a rule
  finished: jax.Array  # int32 [1], rollouts that have ended
  spent: jax.Array  # int32 [1], supervision steps of all rollouts
  passes: jax.Array  # int32 [1], supervision steps of the batch


class State(struct.PyTreeNode):
  """Running rollouts and results."""

  slots: Slots
  found: Found


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a compiled program depends on besides shapes; hashable."""

  model: ModelConfig
  task: Task
  breadth: int  # K
  noisy: bool  # whether rollouts are perturbed
  views: bool  # whether rollouts see puzzles under symmetries
  checks: bool  # whether answers are checked by the task's rules
  chunk: int  # most supervision steps per call


def start(slots: int, puzzles: int, marks: int, plan: Plan) -> State:
  """Idle slots, and empty results for `puzzles` puzzles; to be traced."""
  model, tokens = plan.model, plan.model.seq_len
  rollouts = puzzles * plan.breadth
  like = jax.eval_shape(
    lambda: recursion.evaluation_latents(
      network.init(hashing.base_key(0), model).initial, slots, model
    )
  )
  zero = jnp.zeros(1, jnp.int32)
  none, grid = jnp.zeros(slots, jnp.int32), jnp.zeros((rollouts, marks))
  boards = jnp.zeros((slots, tokens), jnp.int32)
  return State(
    Slots(
      rollout=jnp.full(slots, rollouts, jnp.int32),
      latents=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like),
      inputs=boards, steps=none, answers=boards, unchanged=none, next=zero,
    ),
    Found(
      answers=jnp.zeros((rollouts, marks, tokens), jnp.uint8),
      q_halt=grid.astype(jnp.float32),
      residual=grid.astype(jnp.float32),
      steps=grid.astype(jnp.int32),
      halted=jnp.zeros(rollouts, bool),
      soonest=jnp.full(puzzles, _NEVER, jnp.int32),
      finished=zero, spent=zero, passes=zero,
    ),
  )  # fmt: skip


def advance(
  weights: Weights,
  initial: Latents,
  queue: Queue,
  settings: EngineSettings,
  shrink_at: jax.Array,
  state: State,
  plan: Plan,
) -> State:
  """Takes up to `plan.chunk` supervision steps of all slots.

  Returns early when the queue is empty and at most `shrink_at` (int32 []) slots
  are busy.
  """

  def is_working(carry):
    taken, state = carry
    waiting = state.slots.next < queue.count * plan.breadth
    busy = jnp.sum(state.slots.rollout < _idle(queue, plan))
    return (taken < plan.chunk) & (waiting[0] | (busy > shrink_at))

  def step(carry):
    taken, state = carry
    slots = refill(state.slots, initial, queue, settings, plan)
    state = _recurse(weights, queue, settings, state.replace(slots=slots), plan)
    return taken + 1, state

  return jax.lax.while_loop(is_working, step, (jnp.int32(0), state))[1]


def left(queue: Queue, state: State, plan: Plan) -> jax.Array:
  """Number of running and queued rollouts, int32 [1]."""
  busy = jnp.sum(state.slots.rollout < _idle(queue, plan), dtype=jnp.int32)
  return busy + jnp.asarray(queue.count) * plan.breadth - state.slots.next


def compact(state: State, slots: int) -> State:
  """Moves the running rollouts into `slots` slots, which must suffice."""
  order = jnp.argsort(state.slots.rollout)[:slots]  # idle slots come last
  moved = jax.tree.map(lambda leaf: leaf[order], state.slots.replace(next=()))
  return state.replace(slots=moved.replace(next=state.slots.next))


def refill(
  slots: Slots,
  initial: Latents,
  queue: Queue,
  settings: EngineSettings,
  plan: Plan,
) -> Slots:
  """Fills idle slots with the next rollouts of the queue."""
  idle = slots.rollout >= _idle(queue, plan)

  def take(slots: Slots) -> Slots:
    ranks = jnp.cumsum(idle, dtype=jnp.int32)
    offered = slots.next + ranks - 1
    fresh = idle & (offered < queue.count * plan.breadth)
    number = jnp.where(fresh, offered, slots.rollout)
    puzzle = jnp.where(fresh, number // plan.breadth, 0)
    keys = _keys(settings, queue, puzzle, number, plan)
    inputs = jnp.asarray(queue.inputs)[puzzle].astype(jnp.int32)
    inputs = _viewed("apply", keys, inputs, number, plan)
    latents, inputs, steps = select_rows(
      fresh,
      (
        _initial(initial, number, keys, settings, plan),
        inputs,
        jnp.zeros_like(slots.steps),
      ),
      (slots.latents, slots.inputs, slots.steps),
    )
    return slots.replace(
      rollout=number,
      latents=latents,
      inputs=inputs,
      steps=steps,
      next=slots.next + jnp.sum(fresh, dtype=jnp.int32),
    )

  return jax.lax.cond(jnp.any(idle), take, lambda slots: slots, slots)


def _recurse(weights, queue, settings, state, plan) -> State:
  """One supervision step of all slots; stores results and frees slots."""
  slots, found = state.slots, state.found
  idle = _idle(queue, plan)
  busy = slots.rollout < idle
  puzzle = jnp.where(busy, slots.rollout // plan.breadth, 0)
  keys = _keys(settings, queue, puzzle, slots.rollout, plan)
  perturb = None
  if plan.noisy:
    # Fold-in 0 was the noise of the initial latents.
    step_keys = jax.vmap(jax.random.fold_in)(keys, slots.steps + 1)
    perturb = _perturbation(
      step_keys, settings.cycle_noise, slots.rollout, plan
    )
  rows = jnp.asarray(queue.rows)[puzzle]
  latents, now = rollout.step(
    weights, rows, slots.latents, slots.inputs, plan.model, perturb=perturb
  )
  answers, steps = now.answers, slots.steps + 1
  same = jnp.all(answers == slots.answers, axis=-1) & (slots.steps > 0)
  unchanged = jnp.where(same, slots.unchanged + 1, 0)
  margin = now.margin.astype(jnp.float32)
  solved = jnp.zeros_like(busy)
  if plan.checks:
    assert plan.task.is_solution, "a task with rules"
    solved = plan.task.is_solution(slots.inputs, answers)
  values = Values(margin, now.residual, unchanged, solved)
  by_rule = jnp.zeros_like(busy)
  for rule in RULES:
    by_rule |= rule.halts(values, settings.limits[rule.name])
  by_rule &= busy
  over = busy & (by_rule | (steps >= settings.depth))
  soonest = found.soonest.at[jnp.where(by_rule, puzzle, _NEVER)].min(
    steps, mode="drop"
  )
  # Another rollout of the puzzle halted first (or ties, and is kept).
  beaten = busy & settings.first & (soonest[puzzle] <= steps) & ~over
  marks = settings.marks[None]
  at, before = steps[:, None] == marks, steps[:, None] < marks
  due = busy[:, None] & (at | (over[:, None] & before))  # [B, M]
  original = _viewed("undo", keys, answers, slots.rollout, plan)

  def store(old, new):  # [Q * K, M, ...], [B, ...]
    there = jnp.where(busy, slots.rollout, idle)
    mask = due.reshape(due.shape + (1,) * (old.ndim - 2))
    mixed = jnp.where(mask, new[:, None].astype(old.dtype), old[there])
    return old.at[there].set(mixed, mode="drop")

  freed = over | beaten
  halted_there = jnp.where(over & by_rule, slots.rollout, idle)
  return State(
    slots.replace(
      rollout=jnp.where(freed, idle, slots.rollout),
      latents=latents,
      steps=steps,
      answers=answers,
      unchanged=unchanged,
    ),
    Found(
      answers=store(found.answers, original),
      q_halt=store(found.q_halt, margin),
      residual=store(found.residual, now.residual),
      steps=store(found.steps, steps),
      halted=found.halted.at[halted_there].set(True, mode="drop"),
      soonest=soonest,
      finished=found.finished + jnp.sum(freed, dtype=jnp.int32),
      spent=found.spent + jnp.sum(busy, dtype=jnp.int32),
      passes=found.passes + 1,
    ),
  )


def _idle(queue: Queue, plan: Plan) -> int:
  """The rollout number of idle slots, one above the largest real number."""
  return queue.inputs.shape[0] * plan.breadth


def _keys(
  settings: EngineSettings, queue: Queue, puzzle, number, plan: Plan
) -> Any:
  """Typed keys `[B]` from each puzzle's content and rollout."""
  fold_in = jax.vmap(jax.random.fold_in, (None, 0))
  contents = fold_in(settings.key, jnp.asarray(queue.numbers)[puzzle])
  return jax.vmap(jax.random.fold_in)(contents, number % plan.breadth)


def _initial(initial, number, keys, settings, plan) -> Latents:
  """Initial latents; those of first rollouts are as in evaluation."""
  model = plan.model
  latents = recursion.evaluation_latents(initial, number.shape[0], model)
  if not plan.noisy:
    return latents
  keys = jax.vmap(jax.random.fold_in)(keys, jnp.zeros_like(number))
  if model.initial_std:
    drawn = jax.vmap(
      lambda key: recursion.initial_latents(initial, 1, model, key)
    )(keys)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], drawn)
    latents = select_rows(number % plan.breadth == 0, latents, drawn)
  perturb = _perturbation(keys, settings.initial_noise, number, plan)
  return perturb(latents, jnp.int32(0))


def _perturbation(keys, deviation, number, plan):
  """`(latents, cycle) -> latents` that adds noise to all but first rollouts."""
  scale = jnp.where(number % plan.breadth == 0, 0.0, deviation)

  fold_in = jax.vmap(jax.random.fold_in, (0, None))

  def perturb(latents: Latents, cycle: jax.Array) -> Latents:
    leaves, structure = jax.tree.flatten(latents)

    def perturbed(i, leaf):
      noise = jax.vmap(
        lambda key: jax.random.normal(key, leaf.shape[1:], leaf.dtype)
      )(fold_in(fold_in(keys, cycle), i))
      scales = scale.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1))
      return leaf + scales * noise

    return structure.unflatten(perturbed(i, x) for i, x in enumerate(leaves))

  return perturb


def _viewed(direction: str, keys, tokens, number, plan: Plan) -> jax.Array:
  """Maps tokens `[B, S]` to the rollouts' views ("apply") or back ("undo")."""
  if not plan.views:
    return tokens
  views = plan.task.views
  assert views, "a task with symmetries"

  def one(key, tokens):
    # Noise folds steps into the same key; they never reach _NEVER.
    key = jax.random.fold_in(key, _NEVER)
    return getattr(views, direction)(views.sample(key, None, None), tokens)

  is_first = number % plan.breadth == 0
  return jnp.where(is_first[:, None], tokens, jax.vmap(one)(keys, tokens))
