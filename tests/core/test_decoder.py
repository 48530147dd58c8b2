"""The decoder: what it may see, and that it writes what it predicts."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import network
from trm_jax.core.families import autoregressive as decoder

LENGTH = 5
_TINY = dict(
  family="autoregressive", mixer="attention", seq_len=LENGTH,
  dtype="float64", param_dtype="float64",
)  # fmt: skip
MODELS = {
  "learned": tiny_model(
    positions="learned", puzzle_emb_ndim=24, puzzle_emb_len=2, layers=2, **_TINY
  ),
  "rotary": tiny_model(
    positions="rotary", puzzle_emb_ndim=0, registers=3, **_TINY
  ),
}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _arrays(config, batch=3):
  """Weights, puzzle embeddings, questions and answers, all drawn."""
  random = np.random.default_rng(0)
  weights = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(scale=0.25, size=leaf.shape)),
    network.shapes(config).weights,
  )
  rows = jnp.asarray(random.normal(size=(batch, config.puzzle_emb_ndim)))
  tokens = random.integers(config.vocab_size, size=(2, batch, config.seq_len))
  return weights, rows, *jnp.asarray(tokens, jnp.int32)


@functools.cache
def _compiled(config):
  predict = jax.jit(functools.partial(decoder.predict, config=config))
  write = jax.jit(functools.partial(decoder.write, config=config))
  return predict, write


def _assert_equal(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_depends_on_what_lies_before_and_on_nothing_else(name):
  """By gradients: every place holds a token, and so an embedding, of its own.

  Embeddings are tied to nothing, the head being another matrix.
  """
  places = 2 * LENGTH
  config = dataclasses.replace(MODELS[name], vocab_size=places)
  weights, rows, *_ = _arrays(config, batch=1)
  inputs, answers = jnp.arange(places, dtype=jnp.int32).reshape(2, 1, LENGTH)
  mixture = jnp.linspace(-1, 1, config.vocab_size)

  def predictions(table, rows):
    embed = weights["embed"] | {"tokens": table}
    logits = decoder.predict(
      weights | {"embed": embed}, rows, inputs, answers, config
    )
    return logits[0] @ mixture  # [S]

  of_tokens, of_rows = jax.jit(jax.jacrev(predictions, argnums=(0, 1)))(
    weights["embed"]["tokens"], rows
  )
  sees = np.any(of_tokens, axis=-1)  # prediction i, place j
  i, j = np.indices((LENGTH, places))
  np.testing.assert_array_equal(sees, j < LENGTH + i)
  if config.puzzle_emb_ndim:
    assert np.all(np.any(of_rows, axis=(1, 2)))


@pytest.mark.parametrize("name", MODELS)
def test_writing_with_a_cache_equals_reading_everything_anew(name):
  config = MODELS[name]
  weights, rows, inputs, answers = _arrays(config)
  predict, write = _compiled(config)
  tokens, logits = write(weights, rows, inputs)
  expected = []
  for i in range(LENGTH):  # what `answers` hold from i on is overwritten
    at_i = predict(weights, rows, inputs, answers)[:, i]
    answers = answers.at[:, i].set(jnp.argmax(at_i, axis=-1).astype(jnp.int32))
    expected.append(at_i)
  np.testing.assert_array_equal(tokens, answers)
  assert tokens.dtype == jnp.int32
  _assert_equal(logits, jnp.stack(expected, axis=1))
  # Read at once, the written answer gives what it was chosen from.
  _assert_equal(predict(weights, rows, inputs, tokens), logits)


def test_reading_in_two_parts_equals_reading_at_once():
  config = MODELS["rotary"]
  weights, rows, inputs, answers = _arrays(config)
  tokens = jnp.concatenate([inputs, answers[:, :-1]], axis=1)

  def read(cut):
    x = network.embed(weights, rows, tokens, config)
    cache = decoder.empty_cache(len(x), config)
    first, cache = decoder.extend(weights, cache, x[:, :cut], config)
    second, cache = decoder.extend(weights, cache, x[:, cut:], config)
    return jnp.concatenate([first, second], axis=1), cache

  (at_once, filled), (parts, filled_too) = jax.jit(
    lambda: (read(0), read(config.prefix + 3))
  )()
  assert filled.length == filled_too.length == config.length
  jax.tree.map(_assert_equal, (parts, filled_too), (at_once, filled))


def test_samples_are_a_function_of_the_key():
  config = MODELS["learned"]
  weights, rows, inputs, _ = _arrays(config)
  predict, write = _compiled(config)
  sample = functools.partial(write, weights, rows, inputs)
  tokens, logits = sample(key=jax.random.key(0), temperature=1.0)
  again, _ = sample(key=jax.random.key(0), temperature=1.0)
  np.testing.assert_array_equal(tokens, again)
  others, _ = sample(key=jax.random.key(1), temperature=1.0)
  assert np.any(tokens != others)
  # Logits are of the model, whatever the temperature, and of what was drawn.
  _assert_equal(predict(weights, rows, inputs, tokens), logits)
  hot, logits = sample(key=jax.random.key(0), temperature=9.0)
  assert np.any(hot != tokens)
  _assert_equal(predict(weights, rows, inputs, hot), logits)


def test_a_cold_sample_is_greedy():
  config = MODELS["learned"]
  weights, rows, inputs, _ = _arrays(config)
  _, write = _compiled(config)
  greedy, _ = write(weights, rows, inputs)
  cold, _ = write(
    weights, rows, inputs, key=jax.random.key(0), temperature=1e-9
  )
  np.testing.assert_array_equal(cold, greedy)


def test_samples_are_as_frequent_as_they_are_likely():
  """Both tokens of an answer of two, the second given the first."""
  temperature, batch = 0.7, 20_000
  config = dataclasses.replace(MODELS["rotary"], seq_len=2)
  weights, rows, inputs, _ = _arrays(config, batch=1)
  rows, inputs = (jnp.repeat(a, batch, axis=0) for a in (rows, inputs))
  write = jax.jit(functools.partial(decoder.write, config=config))
  tokens, logits = jax.device_get(
    write(weights, rows, inputs, key=jax.random.key(0), temperature=temperature)
  )
  likely = np.exp(logits / temperature)
  likely /= likely.sum(axis=-1, keepdims=True)
  drawn = np.eye(config.vocab_size)[tokens]  # [B, S, V]
  first = np.ones(batch, bool)
  for i, groups in ((0, [first]), (1, drawn[:, 0].T > 0)):
    for group in groups:
      p = likely[group, i]
      assert np.ptp(p, axis=0).max() < 1e-9  # the same before the same token
      error = np.sqrt(p[0] * (1 - p[0]) / group.sum())
      mean = drawn[group, i].mean(axis=0)
      assert np.all(np.abs(mean - p[0]) < 4.5 * error)


def test_confidence_is_the_probability_of_the_whole_answer():
  """Brute force: over all answers there are, of which one is written."""
  config = dataclasses.replace(
    MODELS["rotary"], seq_len=3, vocab_size=4, registers=0
  )
  weights, rows, inputs, _ = _arrays(config, batch=1)
  every = jnp.asarray(
    list(itertools.product(range(4), repeat=3)), dtype=jnp.int32
  )
  predict, write = _compiled(config)
  written, logits = write(weights, rows, inputs)
  log_p = jax.nn.log_softmax(
    predict(weights, jnp.repeat(rows, 64, 0), jnp.repeat(inputs, 64, 0), every)
  )
  picked = np.take_along_axis(log_p, every[..., None], axis=-1)
  probability = np.exp(picked.sum(axis=(1, 2)))
  assert probability.sum() == pytest.approx(1, abs=1e-12)
  (mine,) = np.flatnonzero(np.all(every == written, axis=1))
  sure = decoder.confidence(logits)
  assert sure.shape == (1,)
  assert jax.nn.sigmoid(sure[0]) == pytest.approx(probability[mine], rel=1e-9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_confidence_is_finite_ordered_and_at_least_float32(dtype):
  """From an answer of 900 tokens, all alike, to one beyond doubt."""
  gaps = jnp.asarray([0.0, 1.0, 9.0, 1e2, 1e4, 1e30], dtype)
  answer = jax.nn.one_hot(np.arange(900) % 12, 12, dtype=dtype)
  logits = gaps[:, None, None] * answer[None]
  sure = decoder.confidence(logits)
  assert sure.dtype == jnp.promote_types(dtype, jnp.float32)
  assert np.all(np.isfinite(sure))
  assert np.all(np.diff(sure) >= 0)
  assert sure[0] < 0 < sure[-1]
  assert not np.any(jax.grad(lambda a: decoder.confidence(a).sum())(logits))
