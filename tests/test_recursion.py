"""Laws 1 and 2: scans equal loops; only the last cycle carries gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import layers, network, recursion
from trm_jax.core.network import Latents

_WIDE = dict(dtype="float64", param_dtype="float64")
MODELS = {
  "mlp": tiny_model(cycles=3, latent_steps=3, layers=2, **_WIDE),
  "attention": tiny_model(
    cycles=3, latent_steps=2, mixer="attention", positions="rotary", **_WIDE
  ),
}


@pytest.fixture(autouse=True)
def _float64():
  """Recursion amplifies round-off: laws are held where there is little."""
  with jax.enable_x64(True):
    yield


def _assert_equal(ours, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
    ours,
    expected,
  )


def _arrays(config, batch=3):
  params = network.init(jax.random.key(0), config)
  shape = (batch, config.length, config.width)
  keys = jax.random.split(jax.random.key(1), 3)
  y, z, x = (jax.random.normal(key, shape) for key in keys)
  return params.weights, Latents(y=y, z=z), x


def _plain_loop(weights, latents, x, config):
  """The recursion in words: no scan, no cut."""
  table = network.rotary(config)
  y, z = latents.y, latents.z
  for _ in range(config.cycles):
    for _ in range(config.latent_steps):
      z = network.apply_blocks(weights, z + (y + x), table, config)
    y = network.apply_blocks(weights, y + z, table, config)
  return y, z


def _weigh(y, z):
  """A scalar that sees every element of both with another weight."""
  ramp = jnp.linspace(-1, 1, y.size).reshape(y.shape)
  return jnp.sum(ramp * y) + jnp.sum(jnp.cos(3 * ramp) * z)


@pytest.mark.parametrize("name", MODELS)
def test_scan_equals_loop_in_value(name):
  config = MODELS[name]
  weights, latents, x = _arrays(config)
  ours = recursion.supervision_step(weights, latents, x, config)
  y, z = _plain_loop(weights, latents, x, config)
  _assert_equal((ours.y, ours.z), (y, z))


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_last_cycle_alone(name):
  """The first T-1 cycles may as well have been done by somebody else."""
  config = MODELS[name]
  weights, latents, x = _arrays(config)

  def whole(weights, latents, x):
    out = recursion.supervision_step(weights, latents, x, config)
    return _weigh(out.y, out.z)

  def only_last(weights, x, y, z):
    table = network.rotary(config)
    for _ in range(config.latent_steps):
      z = network.apply_blocks(weights, z + (y + x), table, config)
    y = network.apply_blocks(weights, y + z, table, config)
    return _weigh(y, z)

  first = tiny_model(**{**vars(config), "cycles": config.cycles - 1})
  y, z = _plain_loop(weights, latents, x, first)
  expected = jax.grad(only_last, argnums=(0, 1))(weights, x, y, z)
  ours = jax.grad(whole, argnums=(0, 2))(weights, latents, x)
  _assert_equal(ours, expected)


def test_incoming_latents_get_exactly_zero_gradient():
  for cycles in (1, 2):
    config = tiny_model(cycles=cycles, **_WIDE)
    weights, latents, x = _arrays(config)

    def loss(latents, weights=weights, x=x, config=config):
      out = recursion.supervision_step(weights, latents, x, config)
      return _weigh(out.y, out.z)

    gradient = jax.grad(loss)(latents)
    assert not np.any(gradient.y)
    assert not np.any(gradient.z)


def test_the_silent_cycles_are_not_differentiated_at_all():
  """More silent cycles must not add a single saved residual."""

  def residuals(cycles):
    config = tiny_model(cycles=cycles, **_WIDE)
    weights, latents, x = _arrays(config)
    _, pullback = jax.vjp(
      lambda w: recursion.supervision_step(w, latents, x, config).y, weights
    )
    return sum(leaf.size for leaf in jax.tree.leaves(pullback))

  assert residuals(2) == residuals(5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialised_equals_plain(remat):
  plain = tiny_model(remat="none", **_WIDE)
  weights, latents, x = _arrays(plain)

  def gradient(config):
    def loss(weights):
      out = recursion.supervision_step(weights, latents, x, config)
      return _weigh(out.y, out.z)

    return jax.jit(jax.value_and_grad(loss))(weights)

  rematerialised = gradient(tiny_model(remat=remat, **_WIDE))
  _assert_equal(rematerialised, gradient(plain))


def test_token_mlp_normalises_over_tokens():
  """After the token mixer, every channel has unit mean square over tokens."""
  config = tiny_model(**_WIDE)
  weights, latents, _ = _arrays(config)
  silenced = jax.tree.map(jnp.zeros_like, weights["blocks"]["block_0"]["mlp"])
  weights["blocks"]["block_0"]["mlp"] = silenced
  out = network.apply_blocks(weights, latents.y, None, config)
  # The second norm, over channels, only rescales each token: undo it.
  mixed = out / jnp.linalg.norm(out, axis=-1, keepdims=True)
  token_norm = jnp.swapaxes(latents.y, 1, 2)
  mixer = weights["blocks"]["block_0"]["mixer"]
  swiglu = layers.SwiGLU(config.token_inner)
  token_out = layers.apply(swiglu, mixer, token_norm)
  expected = jnp.swapaxes(layers.rms_norm(token_norm + token_out), 1, 2)
  expected /= jnp.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(mixed, expected, atol=1e-9)
  mean_square = jnp.mean(
    jnp.square(layers.rms_norm(token_norm + token_out)), axis=-1
  )
  np.testing.assert_allclose(mean_square, 1.0, atol=1e-3)


def test_initial_weights_have_the_stated_deviation():
  config = tiny_model(width=256, puzzle_emb_ndim=256, vocab_size=64)
  params = network.init(jax.random.key(0), config)
  weights = params.weights
  assert np.std(weights["embed"]["tokens"]) == pytest.approx(1 / 16, rel=0.03)
  mlp = weights["blocks"]["block_0"]["mlp"]
  assert np.std(mlp["gate_up"]) == pytest.approx(1 / 16, rel=0.03)
  inner = config.mlp_inner
  assert np.std(mlp["down"]) == pytest.approx(inner**-0.5, rel=0.03)
  for vector in (params.initial.y, params.initial.z):
    assert np.std(vector) == pytest.approx(1, rel=0.15)
    assert np.max(np.abs(vector)) < 2.3  # truncated
  assert not np.any(params.puzzle_table)
  assert not np.any(weights["q_head"]["kernel"])
  np.testing.assert_array_equal(weights["q_head"]["bias"], -5.0)
