"""Losses of a supervision step, and the metrics that come with them."""

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import layers
from trm_jax.core.halting import Outputs

IGNORE_LABEL = -100
HALTING_WEIGHT = 0.5
TOKEN_LOSSES = ("stablemax", "softmax")


def log_stablemax(logits: jax.Array) -> jax.Array:
  """Logarithm of stablemax over the last axis.

  Stablemax (arXiv 2501.04697) replaces `exp` in softmax by `s(v) = v + 1` for
  `v >= 0` and `1 / (1 - v)` otherwise. Since `log s(v) = sign(v) log(1+|v|)`,
  it is the softmax of that logarithm, and needs no float64 as the reference
  uses: over logits within +-1000 and a vocabulary of 12 the float32 result is
  within 2e-6 of the float64 one (`tests/test_losses.py`).

  Args:
    logits: `[..., V]`, any floating dtype of at least float32.

  Returns:
    Log-probabilities, `[..., V]`.
  """
  # Both branches are kept finite, so that neither spoils the other's gradient.
  positive = jnp.log1p(jnp.where(logits >= 0, logits, 0))
  negative = -jnp.log1p(jnp.where(logits >= 0, 0, -logits))
  return jax.nn.log_softmax(jnp.where(logits >= 0, positive, negative))


def token_loss(logits: jax.Array, labels: jax.Array, kind: str) -> jax.Array:
  """Mean cross-entropy over the labelled tokens of each puzzle.

  Args:
    logits: `[B, S, V]`.
    labels: int32 `[B, S]`, `IGNORE_LABEL` where unlabelled.
    kind: "stablemax" or "softmax".

  Returns:
    `[B]` in nats, at least float32; 0 for a puzzle without labels.
  """
  chex.assert_equal_shape_prefix([logits, labels], 2)
  logits = logits.astype(layers.at_least_float32(logits.dtype))
  log_probs = {"stablemax": log_stablemax, "softmax": jax.nn.log_softmax}[kind]
  # A comparison, not a gather: its gradient is then no scatter.
  tokens = jnp.arange(logits.shape[-1])[None, None]
  picked = labels[..., None] == tokens  # [B, S, V]
  total = jnp.sum(jnp.where(picked, log_probs(logits), 0), axis=(1, 2))
  return -total / jnp.maximum(count_labels(labels), 1)


def count_labels(labels: jax.Array) -> jax.Array:
  """Labelled tokens of each puzzle, int32 `[B]`."""
  return jnp.sum(labels != IGNORE_LABEL, axis=-1, dtype=jnp.int32)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Elementwise `-t log s(q) - (1 - t) log(1 - s(q))`, from logits."""
  return jnp.logaddexp(0.0, logits) - logits * targets


def score(predictions: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """How right answers are, puzzle by puzzle.

  Args:
    predictions: int `[..., S]`, tokens.
    labels: int32 `[..., S]`, `IGNORE_LABEL` where unlabelled.

  Returns:
    `cell_accuracy` float32 `[...]`, the share of labelled tokens that are
    right, and `exact` bool `[...]`, whether all are.
  """
  labelled = jnp.sum(labels != IGNORE_LABEL, axis=-1, dtype=jnp.int32)
  right = jnp.sum(
    (predictions == labels) & (labels != IGNORE_LABEL), axis=-1, dtype=jnp.int32
  )
  share = right.astype(jnp.float32) / jnp.maximum(labelled, 1)
  return {"cell_accuracy": share, "exact": right == labelled}


def losses_and_metrics(
  outputs: Outputs,
  labels: jax.Array,
  halted: jax.Array,
  steps: jax.Array,
  kind: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of one supervision step, summed over the batch, and metrics.

  Args:
    outputs: what the step predicted.
    labels: int32 `[B, S]`.
    halted: bool `[B]`, slots that halted on this step.
    steps: int32 `[B]`, steps spent on each slot's puzzle, this one included.
    kind: token loss, "stablemax" or "softmax".

  Returns:
    The loss, a scalar: divide it by the global batch size. And sums: over all
    slots `lm_loss` and `q_halt_loss`; over the slots that halted on this step
    with something labelled `count`, `accuracy`, `exact_accuracy`,
    `q_halt_accuracy` and `steps` (divide these by `count`).
  """
  predictions = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
  scores = score(predictions, labels)
  exact = scores["exact"]
  lm_loss = jnp.sum(token_loss(outputs.logits, labels, kind))
  q_halt_loss = jnp.sum(
    binary_cross_entropy(
      outputs.q_halt, jax.lax.stop_gradient(exact.astype(outputs.q_halt.dtype))
    )
  )
  counted = halted & (count_labels(labels) > 0)

  def over_counted(values):
    return jnp.sum(jnp.where(counted, values, 0), dtype=jnp.float32)

  metrics = {
    "count": over_counted(1.0),
    "accuracy": over_counted(scores["cell_accuracy"]),
    "exact_accuracy": over_counted(exact),
    "q_halt_accuracy": over_counted((outputs.q_halt >= 0) == exact),
    "steps": over_counted(steps),
    "lm_loss": lm_loss,
    "q_halt_loss": q_halt_loss,
  }
  return lm_loss + HALTING_WEIGHT * q_halt_loss, metrics
