"""Update rules against loops written anew in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trm_jax import optim
from trm_jax.optim import OptimConfig


def test_adam_atan2_equals_the_formula():
  config = OptimConfig(lr=0.1, weight_decay=0.2, warmup_steps=0)
  optimizer = optim.adam_atan2(config, total_steps=10)
  params = {"w": jnp.array([1.0, -2.0, 0.5])}
  state = optimizer.init(params)
  p = np.array([1.0, -2.0, 0.5])
  m = v = np.zeros(3)
  for t in range(1, 6):
    g = np.array([np.sin(t), 0.0, 1e-12 * t])
    updates, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
    params = optax.apply_updates(params, updates)
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g**2
    p = p * (1 - 0.1 * 0.2)
    p -= 0.1 / (1 - 0.9**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - 0.95**t))
    np.testing.assert_allclose(params["w"], p, rtol=2e-5, atol=1e-6)


def test_sign_sgd_touches_only_rows_of_the_batch():
  table = jax.random.normal(jax.random.key(0), (10, 4))
  ids = jnp.array([7, 2, 7, 7, 0])
  gradients = jax.random.normal(jax.random.key(1), (5, 4))
  gradients = gradients.at[:, 3].set(0.0)  # sign(0) is 0: only decay
  ours = jax.jit(optim.sign_sgd_rows)(table, ids, gradients, 0.1, 0.5)
  expected = np.array(table)
  for row in (0, 2, 7):
    summed = np.sum(np.asarray(gradients)[np.asarray(ids) == row], axis=0)
    expected[row] = expected[row] * (1 - 0.1 * 0.5) - 0.1 * np.sign(summed)
  np.testing.assert_allclose(ours, expected, rtol=1e-6)
  untouched = [1, 3, 4, 5, 6, 8, 9]
  np.testing.assert_array_equal(ours[untouched, :], table[untouched, :])


def test_sign_sgd_of_a_model_without_puzzle_embeddings():
  table = jnp.zeros((3, 0))
  ours = optim.sign_sgd_rows(
    table, jnp.zeros(4, jnp.int32), jnp.zeros((4, 0)), 0.1, 0.1
  )
  assert ours.shape == (3, 0)


def test_warmup_counts_as_the_reference_does():
  schedule = optim.warmup_schedule(2.0, OptimConfig(warmup_steps=4), 100)
  rates = [float(schedule(jnp.int32(t))) for t in (0, 1, 3, 4, 50)]
  np.testing.assert_allclose(rates, [0.5, 1.0, 2.0, 2.0, 2.0])


def test_cosine_ends_at_its_ratio():
  config = OptimConfig(warmup_steps=10, schedule="cosine", lr_min_ratio=0.1)
  schedule = optim.warmup_schedule(1.0, config, 110)
  assert schedule(jnp.int32(9)) == pytest.approx(1.0)
  assert schedule(jnp.int32(59)) == pytest.approx(0.55, abs=1e-3)
  assert schedule(jnp.int32(109)) == pytest.approx(0.1)
  assert schedule(jnp.int32(500)) == pytest.approx(0.1)


@pytest.mark.parametrize(
  ("field", "value"),
  [("lr", -1.0), ("beta1", 1.0), ("ema", -0.1), ("schedule", "linear")],
)
def test_impossible_settings_are_named(field, value):
  with pytest.raises(ValueError, match=f"{field}="):
    OptimConfig(**{field: value})
