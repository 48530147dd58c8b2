"""Losses of a supervision step, and the metrics that come with them."""

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import layers
from trm_jax.core.halting import Outputs

NO_LABEL = 0  # PAD
HALTING_WEIGHT = 0.5


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


def token_loss(
  logits: jax.Array,
  labels: jax.Array,
  kind: str,
  smoothing: float = 0.0,
  labelled: jax.Array | None = None,
) -> jax.Array:
  """Mean cross-entropy over the labelled tokens of each puzzle.

  Args:
    logits: `[B, S, V]`.
    labels: int32 `[B, S]`, tokens.
    kind: "stablemax" or "softmax".
    smoothing: the fraction of each target that is spread evenly over all V
      tokens ("Rethinking the Inception Architecture", arXiv 1512.00567).

    labelled: bool `[B, S]`, which labels count; by default those but PAD.

  Returns:
    `[B]` in nats, at least float32; 0 for a puzzle without labels.
  """
  chex.assert_equal_shape_prefix([logits, labels], 2)
  logits = logits.astype(layers.at_least_float32(logits.dtype))
  log_probs = {"stablemax": log_stablemax, "softmax": jax.nn.log_softmax}[kind]
  # A comparison, not a gather: its gradient is then no scatter.
  tokens = jnp.arange(logits.shape[-1])[None, None]
  labelled = is_labelled(labels) if labelled is None else labelled
  picked = (labels[..., None] == tokens) & labelled[..., None]  # [B, S, V]
  log_p = log_probs(logits)
  total = jnp.sum(jnp.where(picked, log_p, 0), axis=(1, 2))
  if smoothing:
    spread = jnp.sum(jnp.where(labelled[..., None], log_p, 0), axis=(1, 2))
    total = (1 - smoothing) * total + smoothing / logits.shape[-1] * spread
  return -total / jnp.maximum(jnp.sum(labelled, axis=-1, dtype=jnp.int32), 1)


def is_labelled(labels: jax.Array) -> jax.Array:
  """Which tokens have a label, bool `[..., S]`."""
  return labels != NO_LABEL


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Elementwise `-t log s(q) - (1 - t) log(1 - s(q))`, from logits."""
  return jnp.logaddexp(0.0, logits) - logits * targets


def score(
  predictions: jax.Array, labels: jax.Array, labelled: jax.Array | None = None
) -> dict[str, jax.Array]:
  """How right answers are, puzzle by puzzle.

  Args:
    predictions: int `[..., S]`, tokens.
    labels: int32 `[..., S]`, tokens.
    labelled: bool `[..., S]`, which labels count; by default those but PAD.

  Returns:
    `cell_accuracy` float32 `[...]`, the fraction of labelled tokens that
    are right, and `exact` bool `[...]`, whether all are.
  """
  labelled = is_labelled(labels) if labelled is None else labelled
  count = jnp.sum(labelled, axis=-1, dtype=jnp.int32)
  right = jnp.sum((predictions == labels) & labelled, axis=-1, dtype=jnp.int32)
  accuracy = right.astype(jnp.float32) / jnp.maximum(count, 1)
  return {"cell_accuracy": accuracy, "exact": right == count}


def step_weights(steps: jax.Array, decay: float, max_steps: int) -> jax.Array:
  """How much the token loss of each supervision step counts.

  "Hierarchical supervision weighting" of CGAR (arXiv 2511.08653, section 3.5):
  step t counts `decay**(t - 1)`, here scaled so that the mean over `max_steps`
  steps is 1, for each is an optimizer step of its own.

  Args:
    steps: int32 `[B]`, t, from 1.
    decay: in (0, 1]; 0.7 in the paper, and 1 counts all steps alike.
    max_steps: the last t.

  Returns:
    Weights, float `[B]`.
  """
  powers = [decay**t for t in range(max_steps)]
  wide = jnp.asarray(decay, layers.at_least_float32(jnp.result_type(float)))
  return wide ** (steps - 1) * (max_steps / sum(powers))


def losses_and_metrics(
  outputs: Outputs,
  labels: jax.Array,
  halted: jax.Array,
  steps: jax.Array,
  kind: str,
  *,
  smoothing: float = 0.0,
  weights: jax.Array | None = None,
  has_halting_head: bool = True,
  labelled: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of one supervision step, summed over the batch, and metrics.

  Args:
    outputs: what the step predicted.
    labels: int32 `[B, S]`.
    halted: bool `[B]`, slots that halted on this step.
    steps: int32 `[B]`, steps spent on each slot's puzzle, this one included.
    kind: token loss, "stablemax" or "softmax".
    smoothing: of the labels, see `token_loss`.
    weights: of each slot's token loss, `[B]`; `None` for 1.
    has_halting_head: whether there are halting heads to train.
    labelled: bool `[B, S]`, which labels count; by default those but PAD.

  Returns:
    The loss, a scalar: divide it by the global batch size. And sums: over all
    slots `lm_loss` (before weighting) and, from heads that there are,
    `q_halt_loss` and `q_continue_loss`; over the slots that halted on this step
    with something labelled `count`, `accuracy`, `exact_accuracy`,
    `q_halt_accuracy` and `steps` (divide these by `count`).
  """
  predictions = jnp.argmax(outputs.logits, axis=-1).astype(jnp.int32)
  labelled = is_labelled(labels) if labelled is None else labelled
  scores = score(predictions, labels, labelled)
  exact = scores["exact"]
  token_losses = token_loss(outputs.logits, labels, kind, smoothing, labelled)
  sums = {"lm_loss": jnp.sum(token_losses)}
  if weights is not None:
    token_losses = weights * token_losses
  loss = jnp.sum(token_losses)
  targets = {}
  if has_halting_head:
    targets["q_halt"] = exact
  if outputs.target_continue is not None:
    targets["q_continue"] = outputs.target_continue
  for name, target in targets.items():
    q = getattr(outputs, name)
    target = jax.lax.stop_gradient(target.astype(q.dtype))
    sums[f"{name}_loss"] = jnp.sum(binary_cross_entropy(q, target))
    loss += HALTING_WEIGHT * sums[f"{name}_loss"]
  counted = halted & jnp.any(labelled, axis=-1)

  def over_counted(values):
    return jnp.sum(jnp.where(counted, values, 0), dtype=jnp.float32)

  metrics = {
    "count": over_counted(1.0),
    "accuracy": over_counted(scores["cell_accuracy"]),
    "exact_accuracy": over_counted(exact),
    "q_halt_accuracy": over_counted((outputs.q_halt >= 0) == exact),
    "steps": over_counted(steps),
  }
  return loss, metrics | sums
