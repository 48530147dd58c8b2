"""Losses against formulas written anew in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_jax.core import losses
from trm_jax.core.halting import Outputs

IGNORE = losses.IGNORE_LABEL


def _log_stablemax64(logits):
  v = np.asarray(logits, np.float64)
  s = np.where(v >= 0, v + 1, 1 / (1 - np.minimum(v, 0)))
  return np.log(s / s.sum(-1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_float32_stablemax_is_within_its_stated_error(seed, scale):
  random = np.random.default_rng(seed)
  logits = random.uniform(-scale, scale, (64, 12)).astype(np.float32)
  ours = losses.log_stablemax(jnp.asarray(logits))
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, _log_stablemax64(logits), rtol=0, atol=2e-6)


def test_stablemax_gradient_is_right_and_finite_everywhere():
  logits = jnp.array([0.0, -0.0, 1e4, -1e4, 3.0, -3.0])
  ours = jax.jacobian(losses.log_stablemax)(logits)
  v = np.asarray(logits, np.float64)
  s = np.where(v >= 0, v + 1, 1 / (1 - np.minimum(v, 0)))
  ds = np.where(v >= 0, 1.0, 1 / (1 - np.minimum(v, 0)) ** 2)
  expected = np.diag(ds / s) - (ds / s.sum())[None, :]
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_token_loss_is_a_mean_over_labelled_tokens():
  logits = jax.random.normal(jax.random.key(0), (3, 5, 7))
  labels = jnp.array([[1, 2, 3, 4, 5], [6, IGNORE, IGNORE, 0, 2], [IGNORE] * 5])
  for kind, log_probs in (
    ("stablemax", _log_stablemax64(logits)),
    ("softmax", np.asarray(jax.nn.log_softmax(logits), np.float64)),
  ):
    expected = [
      -np.mean([log_probs[0, t, k] for t, k in enumerate([1, 2, 3, 4, 5])]),
      -np.mean([log_probs[1, 0, 6], log_probs[1, 3, 0], log_probs[1, 4, 2]]),
      0.0,
    ]
    ours = losses.token_loss(logits, labels, kind)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_metrics_count_only_slots_that_halted_with_labels():
  labels = jnp.array([[1, 2], [1, IGNORE], [2, 2], [IGNORE, IGNORE]])
  predictions = jnp.array([[1, 2], [1, 0], [2, 1], [0, 0]])
  logits = jax.nn.one_hot(predictions, 3) * 5
  outputs = Outputs(
    logits=logits,
    q_halt=jnp.array([2.0, -1.0, 3.0, 1.0]),
    q_continue=jnp.zeros(4),
  )
  halted = jnp.array([True, True, False, True])
  loss, metrics = losses.losses_and_metrics(
    outputs, labels, halted, jnp.array([3, 5, 7, 9]), "softmax"
  )
  assert metrics["count"] == 2
  assert metrics["accuracy"] == 2
  assert metrics["exact_accuracy"] == 2
  assert metrics["q_halt_accuracy"] == 1  # the second is right, q said no
  assert metrics["steps"] == 8
  # The halting loss sees every slot; a puzzle without labels counts as right.
  right = np.array([1, 1, 0, 1])
  q = np.array([2.0, -1.0, 3.0, 1.0])
  p = 1 / (1 + np.exp(-q))
  bce = -np.sum(right * np.log(p) + (1 - right) * np.log(1 - p))
  np.testing.assert_allclose(metrics["q_halt_loss"], bce, rtol=1e-6)
  np.testing.assert_allclose(
    loss, metrics["lm_loss"] + 0.5 * metrics["q_halt_loss"], rtol=1e-6
  )


def test_binary_cross_entropy_never_overflows():
  q = jnp.array([-1e4, 1e4, 0.0])
  ours = losses.binary_cross_entropy(q, jnp.array([1.0, 0.0, 1.0]))
  np.testing.assert_allclose(ours, [1e4, 1e4, np.log(2)], rtol=1e-6)
