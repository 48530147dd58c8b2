"""Laws 1 and 2: scans equal loops; only the last cycle carries gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import layers, network, recursion
from trm_jax.core.family import FAMILIES

_WIDE = dict(dtype="float64", param_dtype="float64")
_ATTENTION = dict(mixer="attention", positions="rotary")
MODELS = {
  "mlp": tiny_model(cycles=2, latent_steps=3, layers=2, **_WIDE),
  "attention": tiny_model(cycles=3, latent_steps=2, **_ATTENTION, **_WIDE),
  "hrm": tiny_model(
    family="hrm", cycles=2, latent_steps=3, **_ATTENTION, **_WIDE
  ),
  "hrm_unequal": tiny_model(
    family="hrm", answer_layers=2, cycles=2, latent_steps=3, **_WIDE
  ),
  "single_latent": tiny_model(family="single_latent", cycles=3, **_WIDE),
  "multi_latent": tiny_model(
    family="multi_latent", cycles=2, latent_steps=3, **_WIDE
  ),
  "transformer": tiny_model(family="transformer", **_WIDE),
  "feedforward": tiny_model(family="feedforward", **_WIDE),
}
# How many of the last passes through a network carry gradient.
LEARNT = {
  "mlp": 4, "attention": 3, "hrm": 2, "hrm_unequal": 2, "single_latent": 3,
  "multi_latent": 4, "transformer": 1, "feedforward": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float64():
  """Recursion amplifies round-off: laws are held where there is little."""
  with jax.enable_x64(True):
    yield


BUILT_IN = tuple(FAMILIES)  # before tests register others


def _assert_equal(ours, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
    ours,
    expected,
  )


def _arrays(config, batch=3):
  """Weights, latents and an embedded question, all drawn."""
  random = np.random.default_rng(0)
  params, latents = jax.eval_shape(
    lambda params: (
      params,
      recursion.initial_latents(params.initial, batch, config),
    ),
    network.shapes(config),
  )
  x = jax.ShapeDtypeStruct((batch, config.length, config.width), "float64")
  weights = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(scale=0.25, size=leaf.shape)),
    params.weights,
  )
  latents, x = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), (latents, x)
  )
  return weights, latents, x


def _passes(config):
  """Which latent each pass writes, in words: no scan, no cut."""
  if config.family in ("transformer", "feedforward"):
    return ["y"]
  return [*range(config.latent_steps), "y"] * config.cycles


def _plain_loop(weights, latents, x, config, passes):
  """The module's table of families, one pass after another."""
  table = network.rotary(config)
  family, y, z = config.family, latents.y, latents.z

  def net(h, stack="blocks"):
    return network.apply_blocks(weights[stack], h, table, config)

  for which in passes:
    if family == "feedforward":
      y = net(x)
    elif family == "transformer":
      y = net(y + x)
    elif family == "single_latent":
      y = net(y) if which == "y" else net(y + x)
    elif family == "multi_latent":
      total = sum(z[:, i] for i in range(config.latent_steps))
      if which == "y":
        y = net(y + total)
      else:
        z = z.at[:, which].set(net(total + y + x))
    elif which == "y":
      y = net(y + z, "answer_blocks" if family == "hrm" else "blocks")
    else:
      z = net(z + y + x)
  return latents.replace(y=y, z=z)


def _weigh(latents):
  """A scalar that sees every element with another weight."""
  total = 0.0
  for k, leaf in enumerate(jax.tree.leaves(latents)):
    ramp = jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape)
    total += jnp.sum(jnp.cos((3 + k) * ramp) * leaf)
  return total


@functools.cache
def _ours(name):
  """A supervision step: its value, and its gradient for all that enters."""
  config = MODELS[name]

  def loss(weights, latents, x):
    out = recursion.supervision_step(weights, latents, x, config)
    return _weigh(out), out

  learn = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  return learn(*_arrays(config))


@functools.cache
def _plain(name):
  """The same of the plain loop, in which only the last passes are learnt."""
  config, learnt = MODELS[name], LEARNT[name]
  silent, last = _passes(config)[:-learnt], _passes(config)[-learnt:]

  def step(weights, latents, x):
    between = _plain_loop(weights, latents, x, config, silent)

    def loss(weights, x):
      out = _plain_loop(weights, between, x, config, last)
      return _weigh(out), out

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)

  return jax.jit(step)(*_arrays(config))


def test_every_family_but_the_decoder_is_here():
  here = {config.family for config in MODELS.values()}
  assert here == {*BUILT_IN} - {"autoregressive"}


@pytest.mark.parametrize("name", MODELS)
def test_scan_equals_loop_in_value(name):
  _assert_equal(_ours(name)[1], _plain(name)[1])


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_last_passes_alone(name):
  """All passes before may as well have been done by somebody else."""
  (weights, _, x), _ = _ours(name)
  _assert_equal((weights, x), _plain(name)[0])


@pytest.mark.parametrize("name", MODELS)
def test_incoming_latents_get_exactly_zero_gradient(name):
  (_, latents, _), _ = _ours(name)
  for leaf in jax.tree.leaves(latents):
    assert not np.any(leaf)


def _residuals(config):
  """Numbers that are kept for the backward pass."""
  weights, latents, x = _arrays(config)

  def pullback(weights, latents, x):
    def step(weights, latents, x):
      return recursion.supervision_step(weights, latents, x, config)

    return jax.vjp(step, weights, latents, x)[1]

  kept = jax.eval_shape(pullback, weights, latents, x)
  return sum(leaf.size for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize(
  "family", ["trm", "hrm", "single_latent", "multi_latent"]
)
def test_the_silent_cycles_are_not_differentiated_at_all(family):
  """More silent cycles must not add a single saved residual."""

  def residuals(**depth):
    return _residuals(tiny_model(family=family, **depth, **_WIDE))

  assert residuals(cycles=2) == residuals(cycles=5)
  if family == "hrm":  # all latent steps but the last are silent too
    assert residuals(latent_steps=2) == residuals(latent_steps=5)
  else:
    assert residuals(latent_steps=2) < residuals(latent_steps=5)


@functools.cache
def _rematerialised(remat):
  config = tiny_model(remat=remat, **_WIDE)

  def loss(weights, latents, x):
    return _weigh(recursion.supervision_step(weights, latents, x, config))

  return jax.jit(jax.value_and_grad(loss))(*_arrays(config))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialised_equals_plain(remat):
  _assert_equal(_rematerialised(remat), _rematerialised("none"))


def test_token_mlp_normalises_over_tokens():
  """After the token mixer, every channel has unit mean square over tokens."""
  config = tiny_model(**_WIDE)
  weights, latents, _ = _arrays(config)
  silenced = jax.tree.map(jnp.zeros_like, weights["blocks"]["block_0"]["mlp"])
  weights["blocks"]["block_0"]["mlp"] = silenced
  out = network.apply_blocks(weights["blocks"], latents.y, None, config)
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
  params = jax.jit(lambda key: network.init(key, config))(jax.random.key(0))
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
