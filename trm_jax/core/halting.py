"""The carry: which puzzle each batch slot holds, how far it is, when it halts.

Training spends one optimizer step per supervision step. A slot keeps its
puzzle until it halts, then takes a new one. Everything starts halted, so the
first step fills every slot.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from trm_jax.core import hashing, network, recursion
from trm_jax.core.model import Latents, ModelConfig, Weights


@dataclasses.dataclass(frozen=True)
class HaltingConfig:
  """How long a puzzle may stay in its slot during training.

  Attributes:
    max_steps: supervision steps after which a slot always halts.
    exploration: probability, per slot and step, that halting is put off until
      a number of steps drawn uniformly from [2, max_steps].
  """

  max_steps: int = 16
  exploration: float = 0.1

  def __post_init__(self):
    if self.max_steps < 1:
      raise ValueError(f"max_steps={self.max_steps}: must be at least 1")
    if self.max_steps > 2**16:
      raise ValueError(f"max_steps={self.max_steps}: must be at most {2**16:,}")
    if not 0 <= self.exploration <= 1:
      raise ValueError(
        f"exploration={self.exploration}: must be a probability in [0, 1]"
      )


class Puzzles(struct.PyTreeNode):
  """A batch of puzzles.

  Attributes:
    inputs: int32 `[B, S]`, tokens of the questions.
    labels: int32 `[B, S]`, tokens of the answers; 0 (PAD) is no label.
    puzzle_ids: int32 `[B]`, rows of the puzzle table.
  """

  inputs: jax.Array
  labels: jax.Array
  puzzle_ids: jax.Array

  @classmethod
  def of(cls, inputs, labels, puzzle_ids) -> "Puzzles":
    """Puzzles of stored uint8 tokens."""
    return cls(
      jnp.asarray(inputs, jnp.int32), jnp.asarray(labels, jnp.int32), puzzle_ids
    )


class Carry(struct.PyTreeNode):
  """What one supervision step hands to the next.

  Attributes:
    latents: `Latents` of the batch.
    steps: int32 `[B]`, supervision steps spent on the slot's puzzle.
    halted: bool `[B]`, whether the slot takes a new puzzle next.
    puzzles: what the slots hold.
  """

  latents: Latents
  steps: jax.Array
  halted: jax.Array
  puzzles: Puzzles


class Outputs(struct.PyTreeNode):
  """What a supervision step predicts.

  Attributes:
    logits: `[B, S, V]` in the model's dtype.
    q_halt: `[B]`, logit of "the answer is right", at least float32.
    q_continue: `[B]`, logit of "going on is better", at least float32.
    target_continue: `[B]`, the probability that `q_continue` should learn,
      without gradient; None unless the family bootstraps, and outside
      training.
  """

  logits: jax.Array
  q_halt: jax.Array
  q_continue: jax.Array
  target_continue: jax.Array | None = None

  def halting_margin(self, config: ModelConfig) -> jax.Array:
    """How much each slot would rather stop than go on, a logit, `[B]`."""
    return config.kind.halting_margin(self.q_halt, self.q_continue)

  def wants_to_halt(self, config: ModelConfig) -> jax.Array:
    """Whether each slot would stop here, bool `[B]`."""
    return self.halting_margin(config) > 0


def initial_carry(batch: int, config: ModelConfig) -> Carry:
  """A carry whose slots are all halted and empty."""
  like = jax.eval_shape(
    lambda: recursion.initial_latents(
      network.init(hashing.base_key(0), config).initial, batch, config
    )
  )
  tokens = jnp.zeros((batch, config.seq_len), jnp.int32)
  zeros = jnp.zeros((batch,), jnp.int32)
  return Carry(
    latents=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
    steps=zeros,
    halted=jnp.ones((batch,), bool),
    puzzles=Puzzles(inputs=tokens, labels=tokens, puzzle_ids=zeros),
  )


def refill(carry: Carry, incoming: Puzzles, initial: Latents) -> Carry:
  """Gives every halted slot its incoming puzzle and the initial latents.

  Args:
    carry: the carry of the last step.
    incoming: one puzzle per slot; those of running slots are ignored.
    initial: latents to start from, as `recursion.initial_latents` gives.

  Returns:
    The carry to take a step from; `halted` still tells who was refilled.
  """
  latents, steps, puzzles = select_rows(
    carry.halted,
    (initial, jnp.zeros_like(carry.steps), incoming),
    (carry.latents, carry.steps, carry.puzzles),
  )
  return carry.replace(latents=latents, steps=steps, puzzles=puzzles)


def select_rows(mask: jax.Array, new: Any, old: Any) -> Any:
  """Rows of `new` where a mask `[B]` is set, else of `old`."""

  def select(new, old):
    rows = mask.reshape((-1,) + (1,) * (old.ndim - 1))
    return jnp.where(rows, new, old)

  return jax.tree.map(select, new, old)


def supervise(
  weights: Weights,
  puzzle_rows: jax.Array,
  latents: Latents,
  inputs: jax.Array,
  config: ModelConfig,
  answers: jax.Array | None = None,
  keys: jax.Array | None = None,
  perturb: recursion.Perturbation | None = None,
) -> tuple[Latents, Outputs]:
  """Embeds, takes one supervision step and reads both heads.

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`, rows of the puzzle table.
    latents: what the last step left, or `recursion.initial_latents`.
    inputs: int32 `[B, S]`.
    config: the model.
    answers: int32 `[B, S]`, the true tokens, which a decoder in training reads
      as it goes; others never look at them. `None` lets it write its own.
    keys: typed PRNG keys `[B]` for the noise of training; `None` for none.
    perturb: changes the latents before each cycle, where there are cycles.

  Returns:
    The refined latents, and what was read from them.
  """
  if config.kind.supervise:
    logits, q = config.kind.supervise(
      weights, puzzle_rows, inputs, answers, config
    )
    return latents, Outputs(logits=logits, q_halt=q, q_continue=-q)
  x = network.embed(weights, puzzle_rows, inputs, config)
  refined = recursion.supervision_step(
    weights, latents, x, config, keys, perturb
  )
  y = refined.y
  q_halt, q_continue = network.read_halting(weights, y, config)
  logits = network.read_answer(weights, y[:, config.prefix :], config)
  outputs = Outputs(logits=logits, q_halt=q_halt, q_continue=q_continue)
  # What does not recur carries nothing on.
  return refined if config.is_recursive else latents, outputs


def bootstrap(
  weights: Weights,
  puzzle_rows: jax.Array,
  latents: Latents,
  inputs: jax.Array,
  last: jax.Array,
  config: ModelConfig,
) -> jax.Array:
  """What going on is worth, by the model's own judgement one step later.

  The target of HRM's `q_continue` (arXiv 2506.21734, "adaptive computation").
  Unlike TRM, which dropped it, it costs one more pass a training step.

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`.
    latents: those behind the step.
    inputs: int32 `[B, S]`.
    last: bool `[B]`, whether the step after this one must halt anyway.
    config: the model.

  Returns:
    Probabilities `[B]`, without gradient.
  """
  weights, puzzle_rows, latents = jax.lax.stop_gradient(
    (weights, puzzle_rows, latents)
  )
  _, ahead = supervise(weights, puzzle_rows, latents, inputs, config)
  best = jnp.maximum(ahead.q_halt, ahead.q_continue)
  return jax.nn.sigmoid(jnp.where(last, ahead.q_halt, best))


def draw_minimum_steps(
  key: jax.Array, batch: int, halting: HaltingConfig
) -> jax.Array:
  """Steps before which a slot may not halt, int32 `[B]`, drawn per slot."""
  explore_key, steps_key = jax.random.split(key)
  explore = jax.random.bernoulli(
    explore_key, jnp.float32(halting.exploration), (batch,)
  )
  longest = max(halting.max_steps, 2)
  steps = jax.random.randint(steps_key, (batch,), 2, longest + 1, jnp.int32)
  return jnp.where(explore, steps, 0)


def finish_step(
  carry: Carry,
  latents: Latents,
  wants_to_halt: jax.Array,
  minimum_steps: jax.Array,
  halting: HaltingConfig,
) -> Carry:
  """Counts the step and decides which slots halt.

  A slot halts at `max_steps`, or when it wants to, but not before its
  minimum. The last step halts whatever the minimum, which never exceeds it.

  Args:
    carry: the refilled carry that the step started from.
    latents: what the step returned; passed on without gradient.
    wants_to_halt: bool `[B]`, see `Outputs`.
    minimum_steps: int32 `[B]`.
    halting: the rule's settings.

  Returns:
    The carry for the next step.
  """
  steps = carry.steps + 1
  halted = (steps >= halting.max_steps) | wants_to_halt
  if halting.max_steps > 1:
    halted &= steps >= minimum_steps
  return carry.replace(
    latents=jax.lax.stop_gradient(latents), steps=steps, halted=halted
  )
