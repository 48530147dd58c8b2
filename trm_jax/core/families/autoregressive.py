"""Autoregressive: a causal decoder that writes its answer, to compare with.

It reads the prefix and the question, then the answer's tokens one after
another: place P + S - 1 + i of the sequence predicts token i of the answer.
Blocks, embedding and head are those of the other families; attention sees only
what lies before. There is one way through the network, `extend`, which reads
any number of tokens after those that a cache remembers: training extends an
empty cache by everything, writing by one token at a time.
"""

import math

import chex
import jax
import jax.numpy as jnp
from flax import struct

from trm_jax.core import attention, flops, layers, network
from trm_jax.core.family import Family, Passes, Style
from trm_jax.core.model import ModelConfig, Weights


class Cache(struct.PyTreeNode):
  """Keys and values of the tokens read so far.

  Attributes:
    keys: one `[B, L, H, K]` a block.
    values: the same.
    length: int32 [], how many places are filled.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  length: jax.Array


def empty_cache(batch: int, config: ModelConfig) -> Cache:
  """A cache with room for a whole sequence."""
  head_dim = config.width // config.heads
  shape = (batch, config.length, config.heads, head_dim)
  zeros = (jnp.zeros(shape, jnp.dtype(config.dtype)),) * config.layers
  return Cache(keys=zeros, values=zeros, length=jnp.zeros((), jnp.int32))


def extend(
  weights: Weights, cache: Cache, x: jax.Array, config: ModelConfig
) -> tuple[jax.Array, Cache]:
  """Reads tokens that follow those in the cache.

  Args:
    weights: `Params.weights`.
    cache: what was read before.
    x: `[B, N, D]`, the next N tokens, embedded and placed.
    config: the model.

  Returns:
    `h`, `[B, N, D]`, and the cache behind them.
  """
  count = x.shape[1]
  chex.assert_shape(x, (None, None, config.width))
  here = cache.length + jnp.arange(count)
  visible = jnp.arange(config.length)[None, :] <= here[:, None]  # [N, L]
  table = network.rotary(config)
  if table is not None:
    table = jax.tree.map(
      lambda t: jax.lax.dynamic_slice_in_dim(t, cache.length, count), table
    )

  def block(h, weights, keys, values):
    q, k, v = attention.project(h, weights["mixer"]["qkv"], table)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)
      for old, new in ((keys, k), (values, v))
    )
    mixed = attention.attend(q, keys, values, weights["mixer"]["out"], visible)
    h = layers.rms_norm(h + mixed, eps=config.norm_eps)
    out = layers.apply(network.mlp(config), weights["mlp"], h)
    return layers.rms_norm(h + out, eps=config.norm_eps), keys, values

  h, keys, values = x, list(cache.keys), list(cache.values)
  for i in range(config.layers):
    h, keys[i], values[i] = block(
      h, weights["blocks"][f"block_{i}"], keys[i], values[i]
    )
  return h, Cache(tuple(keys), tuple(values), cache.length + count)


def predict(
  weights: Weights,
  puzzle_rows: jax.Array,
  inputs: jax.Array,
  answers: jax.Array,
  config: ModelConfig,
) -> jax.Array:
  """Predicts each token of an answer from the question and the true ones.

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`.
    inputs: int `[B, S]`, the questions.
    answers: int `[B, S]`; token i is read by the predictions after it only.
    config: the model.

  Returns:
    Logits `[B, S, V]` in `config.dtype`.
  """
  batch = inputs.shape[0]
  tokens = jnp.concatenate([inputs, answers[:, :-1]], axis=1)
  x = network.embed(weights, puzzle_rows, tokens, config)
  h, _ = extend(weights, empty_cache(batch, config), x, config)
  first = config.prefix + config.seq_len - 1
  return network.read_answer(weights, h[:, first:], config)


def write(
  weights: Weights,
  puzzle_rows: jax.Array,
  inputs: jax.Array,
  config: ModelConfig,
  key: jax.Array | None = None,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Writes answers token by token.

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`.
    inputs: int `[B, S]`, the questions.
    config: the model.
    key: typed PRNG key to sample with; `None` takes the likeliest token.
    temperature: of the samples, positive.

  Returns:
    The answers, int32 `[B, S]`, and the logits that each token was chosen
    from, `[B, S, V]`.
  """
  batch = inputs.shape[0]
  x = network.embed(weights, puzzle_rows, inputs, config)
  h, cache = extend(weights, empty_cache(batch, config), x, config)
  logits = network.read_answer(weights, h[:, -1:], config)[:, 0]  # [B, V]

  def choose(logits, i):
    if key is None:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    wide = logits.astype(layers.at_least_float32(logits.dtype))
    drawn = jax.random.categorical(
      jax.random.fold_in(key, i), wide / temperature
    )
    return drawn.astype(jnp.int32)

  def step(carry, i):
    cache, logits = carry
    token = choose(logits, i)
    x = network.embed_tokens(weights, token[:, None], config)
    x = network.place(weights, x, cache.length, config)
    h, cache = extend(weights, cache, x, config)
    following = network.read_answer(weights, h, config)[:, 0]
    return (cache, following), (token, logits)

  last = config.seq_len - 1
  (_, final), (tokens, seen) = jax.lax.scan(
    step, (cache, logits), jnp.arange(last)
  )
  tokens = jnp.concatenate([tokens, choose(final, last)[None]])
  seen = jnp.concatenate([seen, final[None]])
  return jnp.swapaxes(tokens, 0, 1), jnp.swapaxes(seen, 0, 1)


def confidence(logits: jax.Array) -> jax.Array:
  """The decoder's probability of a whole answer, as a logit.

  The probability of an answer is the product of those of its likeliest tokens.

  Args:
    logits: `[B, S, V]`.

  Returns:
    `[B]`, at least float32, without gradient; positive where the answer is
    likelier right than wrong.
  """
  wide = jax.lax.stop_gradient(
    logits.astype(layers.at_least_float32(logits.dtype))
  )
  log_p = jnp.sum(jnp.max(jax.nn.log_softmax(wide), axis=-1), axis=-1)
  log_p = jnp.clip(log_p, -math.log(1e30), -1e-6)  # its logit stays finite
  return log_p - jnp.log(-jnp.expm1(log_p))


def _supervise(weights, puzzle_rows, inputs, answers, config: ModelConfig):
  """Writes the answers, or in training predicts each token of given ones."""
  if answers is None:
    _, logits = write(weights, puzzle_rows, inputs, config)
  else:
    logits = predict(weights, puzzle_rows, inputs, answers, config)
  return logits, confidence(logits)


def _check(config: ModelConfig):
  if config.mixer != "attention" or config.positions == "none":
    raise ValueError(
      "family='autoregressive': reads in order, so it needs "
      "mixer='attention' and positions='rotary' or 'learned'"
    )


def _inference_flops(config: ModelConfig) -> int:
  question = flops.block(config, config.prefix + config.seq_len)
  written = (config.seq_len - 1) * flops.block(config, 1)
  return config.layers * (question + written) + flops.heads(config)


FAMILY = Family(
  name="autoregressive",
  title="decoder",
  phrase="the decoder",
  summary="nothing recurs: a causal decoder writes the answer token by token",
  source="a baseline of this project",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {},
  passes=lambda config: {"blocks": Passes(1, 1)},
  supervise=_supervise,
  is_recursive=False,
  unread=("answer_layers", "cycles", "latent_steps"),
  check=_check,
  # The last token of an answer is written and never read.
  length=lambda config: config.prefix + 2 * config.seq_len - 1,
  has_halting_head=False,
  learns_padding=True,
  losses=("softmax",),  # whose probabilities it writes by
  inference_flops=_inference_flops,
  style=Style("#000000", "X", (0, (5, 1.5, 1, 1.5))),
)
