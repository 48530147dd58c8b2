"""Losses against formulas written anew in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_jax.core import losses
from trm_jax.core.family import TOKEN_LOSSES
from trm_jax.core.halting import Outputs

IGNORE = losses.NO_LABEL


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
  labels = jnp.array([[1, 2, 3, 4, 5], [6, IGNORE, IGNORE, 3, 2], [IGNORE] * 5])
  for kind, log_probs in (
    ("stablemax", _log_stablemax64(logits)),
    ("softmax", np.asarray(jax.nn.log_softmax(logits), np.float64)),
  ):
    expected = [
      -np.mean([log_probs[0, t, k] for t, k in enumerate([1, 2, 3, 4, 5])]),
      -np.mean([log_probs[1, 0, 6], log_probs[1, 3, 3], log_probs[1, 4, 2]]),
      0.0,
    ]
    ours = losses.token_loss(logits, labels, kind)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", TOKEN_LOSSES)
@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothing_is_cross_entropy_with_soft_targets(kind, smoothing):
  with jax.enable_x64(True):
    logits = np.random.default_rng(0).normal(scale=3, size=(3, 4, 7))
    labels = np.array(
      [[1, 2, 3, 4], [6, IGNORE, IGNORE, 0], [IGNORE] * 4], np.int32
    )
    if kind == "stablemax":
      log_probs = _log_stablemax64(logits)
    else:
      log_probs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = np.zeros(3)
    for b, row in enumerate(labels):
      labelled = [t for t, label in enumerate(row) if label != IGNORE]
      for t in labelled:
        target = np.full(7, smoothing / 7)
        target[row[t]] += 1 - smoothing
        expected[b] -= target @ log_probs[b, t] / len(labelled)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    ours = losses.token_loss(logits, labels, kind, smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    # What has no label is not learnt.
    gradient = jax.grad(
      lambda logits: losses.token_loss(logits, labels, kind, smoothing).sum()
    )(logits)
    np.testing.assert_array_equal(
      np.any(gradient, axis=-1), np.asarray(labels) != IGNORE
    )


@pytest.mark.parametrize(
  ("decay", "max_steps"), [(0.7, 16), (0.5, 3), (1.0, 4), (0.3, 1)]
)
def test_step_weights_decay_about_a_mean_of_one(decay, max_steps):
  steps = jnp.arange(max_steps, dtype=jnp.int32) + 1
  weights = losses.step_weights(steps, decay, max_steps)
  assert weights.shape == (max_steps,)
  np.testing.assert_allclose(np.mean(weights), 1, rtol=1e-5)
  np.testing.assert_allclose(weights[1:] / weights[:-1], decay, rtol=1e-5)


def _drawn_outputs(target_continue=None):
  random = np.random.default_rng(0)
  logits = random.normal(size=(4, 5, 7)).astype(np.float32)
  labels = np.argmax(logits, axis=-1).astype(np.int32)
  labels[1:3, 2] = (labels[1:3, 2] + 1) % 7  # the others are right
  labels[3, 4] = IGNORE
  q_halt, q_continue = random.normal(size=(2, 4)).astype(np.float32)
  outputs = Outputs(
    logits=jnp.asarray(logits),
    q_halt=jnp.asarray(q_halt),
    q_continue=jnp.asarray(q_continue),
    target_continue=target_continue,
  )
  return outputs, jnp.asarray(labels)


def _loss(outputs, labels, **options):
  steps = jnp.arange(1, 5)
  return losses.losses_and_metrics(
    outputs, labels, steps > 0, steps, "softmax", **options
  )


def test_step_weights_count_for_tokens_alone():
  outputs, labels = _drawn_outputs()
  weights = jnp.array([4.0, 0.0, 1.0, 0.5])
  loss, metrics = _loss(outputs, labels, weights=weights, smoothing=0.1)
  tokens = losses.token_loss(outputs.logits, labels, "softmax", 0.1)
  expected = np.dot(weights, tokens) + 0.5 * metrics["q_halt_loss"]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics["lm_loss"], tokens.sum(), rtol=1e-6)
  unweighted, plain = _loss(outputs, labels, smoothing=0.1)
  assert plain == metrics
  np.testing.assert_allclose(
    unweighted, metrics["lm_loss"] + 0.5 * metrics["q_halt_loss"], rtol=1e-6
  )


def test_without_heads_halting_heads_learn_nothing():
  outputs, labels = _drawn_outputs()
  gradient, metrics = jax.grad(_loss, has_aux=True)(
    outputs, labels, has_halting_head=False
  )
  assert not np.any(gradient.q_halt)
  assert not np.any(gradient.q_continue)
  assert np.any(gradient.logits)
  assert "q_halt_loss" not in metrics
  with_heads, _ = jax.grad(_loss, has_aux=True)(outputs, labels)
  assert np.all(with_heads.q_halt)
  assert not np.any(with_heads.q_continue)  # there is no target
  np.testing.assert_array_equal(with_heads.logits, gradient.logits)


def test_going_on_is_learnt_from_its_target():
  target = jnp.array([0.0, 0.25, 0.9, 1.0])
  outputs, labels = _drawn_outputs(target_continue=target)
  gradient, metrics = jax.grad(_loss, has_aux=True)(outputs, labels)
  q = np.asarray(outputs.q_continue, np.float64)
  p, t = 1 / (1 + np.exp(-q)), np.asarray(target, np.float64)
  entropy = -np.sum(t * np.log(p) + (1 - t) * np.log(1 - p))
  np.testing.assert_allclose(metrics["q_continue_loss"], entropy, rtol=1e-6)
  np.testing.assert_allclose(gradient.q_continue, 0.5 * (p - t), rtol=1e-5)
  assert not np.any(gradient.target_continue)
  loss, _ = _loss(outputs, labels)
  parts = metrics["q_halt_loss"] + metrics["q_continue_loss"]
  np.testing.assert_allclose(loss, metrics["lm_loss"] + 0.5 * parts, rtol=1e-6)


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
