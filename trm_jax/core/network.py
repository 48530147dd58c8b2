"""Embedding, blocks and heads: what every model family is made of.

`core.model` has the notation. Source of the rules: the reference implementation
of "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871).
"""

import math

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import attention, hashing, layers
from trm_jax.core.model import Latents, ModelConfig, Params, Weights, portable


def init(key: jax.Array, config: ModelConfig) -> Params:
  """Draws the parameters of a new model.

  Args:
    key: typed PRNG key.
    config: the model.

  Returns:
    `Params` in `config.param_dtype`.
  """
  dtype = jnp.dtype(config.param_dtype)
  stacks = config.kind.stacks(config)
  keys = iter(jax.random.split(key, 6 + 2 * sum(stacks.values())))
  embed_init = layers.truncated_normal(1.0 / math.sqrt(config.width))
  h = jnp.zeros((1, config.length, config.width), dtype)
  embed = {
    "tokens": embed_init(next(keys), (config.vocab_size, config.width), dtype)
  }
  position_key = next(keys)
  if config.positions == "learned":
    shape = (config.length, config.width)
    embed["positions"] = embed_init(position_key, shape, dtype)
  if config.registers:
    shape = (config.registers, config.width)
    embed["registers"] = embed_init(
      jax.random.fold_in(position_key, 1), shape, dtype
    )
  weights: Weights = {"embed": embed}
  for stack, count in stacks.items():
    weights[stack] = _init_blocks(keys, h, count, config)
  weights["lm_head"] = _lm_head(config).init(next(keys), h)["params"]
  q_key = next(keys)
  if config.kind.has_halting_head:
    weights["q_head"] = _q_head(config).init(q_key, h[:, 0])["params"]
  return Params(
    weights=weights,
    puzzle_table=jnp.zeros(
      (config.num_puzzle_ids, config.puzzle_emb_ndim), dtype
    ),
    initial=_init_latents(next(keys), next(keys), config),
  )


def _init_blocks(
  keys, h: jax.Array, count: int, config: ModelConfig
) -> Weights:
  blocks = {}
  for i in range(count):
    mixer_key, mlp_key = next(keys), next(keys)
    if config.mixer == "mlp":
      mixer = _token_mlp(config).init(mixer_key, h)
    else:
      mixer = _attention(portable(config)).init(mixer_key, h, None)
    blocks[f"block_{i}"] = {
      "mixer": mixer["params"],
      "mlp": mlp(config).init(mlp_key, h)["params"],
    }
  return blocks


def _init_latents(y_key, z_key, config: ModelConfig) -> Latents:
  unit, dtype = layers.truncated_normal(1.0), jnp.dtype(config.param_dtype)
  keys = {"y": y_key, "z": z_key}
  return Latents(
    **{
      name: unit(keys[name], shape, dtype)
      for name, shape in config.kind.latents(config).items()
    }
  )


def shapes(config: ModelConfig) -> Params:
  """What `init` returns, as `jax.ShapeDtypeStruct`s, not computed."""
  return jax.eval_shape(lambda: init(hashing.base_key(0), config))


def embed(
  weights: Weights,
  puzzle_rows: jax.Array,
  inputs: jax.Array,
  config: ModelConfig,
) -> jax.Array:
  """Embeds puzzles: prefix and tokens, positions, then the scale sqrt(D).

  Args:
    weights: `Params.weights`.
    puzzle_rows: `[B, E]`, the puzzles' rows of the table.
    inputs: int `[B, S]`, tokens; a decoder may read more, or fewer.
    config: the model.

  Returns:
    `x`, `[B, P + S, D]` in `config.dtype`.
  """
  batch = inputs.shape[0]
  chex.assert_shape(puzzle_rows, (batch, config.puzzle_emb_ndim))
  x = embed_tokens(weights, inputs, config)
  if config.prefix:
    if config.registers:
      rows = weights["embed"]["registers"].astype(x.dtype)[None]
      rows = jnp.broadcast_to(rows, (batch, *rows.shape[1:]))
    else:
      missing = config.prefix * config.width - config.puzzle_emb_ndim
      rows = jnp.pad(puzzle_rows.astype(x.dtype), ((0, 0), (0, missing)))
    prefix = rows.reshape(batch, config.prefix, config.width)
    x = jnp.concatenate([prefix, x], axis=1)  # [B, L, D]
  return place(weights, x, 0, config)


def embed_tokens(
  weights: Weights, tokens: jax.Array, config: ModelConfig
) -> jax.Array:
  """Looks tokens up: int `[B, N]` to `[B, N, D]`, unscaled."""
  return weights["embed"]["tokens"].astype(config.dtype)[tokens]


def place(
  weights: Weights, x: jax.Array, first: jax.typing.ArrayLike,
  config: ModelConfig,
) -> jax.Array:  # fmt: skip
  """Adds learned positions, where the model has them, and scales by sqrt(D).

  Args:
    weights: `Params.weights`.
    x: `[B, N, D]`, embedded tokens.
    first: integer [], the position of the first of them.
    config: the model.

  Returns:
    `[B, N, D]`.
  """
  if config.positions == "learned":
    table = weights["embed"]["positions"].astype(x.dtype)
    here = jax.lax.dynamic_slice_in_dim(table, first, x.shape[1])
    x = math.sqrt(0.5) * (x + here[None])
  return math.sqrt(config.width) * x


def rotary(config: ModelConfig) -> tuple[jax.Array, jax.Array] | None:
  """The rotary table of a model, or `None` where it has none."""
  if config.positions != "rotary":
    return None
  return layers.rotary_table(
    config.length, config.width // config.heads, config.rope_theta,
    jnp.dtype(config.dtype),
  )  # fmt: skip


def apply_blocks(
  blocks: Weights,
  h: jax.Array,
  table: tuple[jax.Array, jax.Array] | None,
  config: ModelConfig,
) -> jax.Array:
  """The network `net(h)`: post-norm blocks of a mixer and a SwiGLU.

  Args:
    blocks: one stack of blocks, as `Params.weights["blocks"]`.
    h: `[B, L, D]`.
    table: what `rotary(config)` gives.
    config: the model.

  Returns:
    `[B, L, D]`.
  """
  chex.assert_shape(h, (None, config.length, config.width))
  # Surprising but so in the reference: the norm after token mixing runs over
  # the tokens as well.
  mixed_axis = -2 if config.mixer == "mlp" else -1
  for i in range(len(blocks)):
    block = blocks[f"block_{i}"]
    with jax.named_scope("mixer"):
      if config.mixer == "mlp":
        mixed = layers.apply(_token_mlp(config), block["mixer"], h)
      else:
        mixed = layers.apply(_attention(config), block["mixer"], h, table)
    h = layers.rms_norm(h + mixed, axis=mixed_axis, eps=config.norm_eps)
    with jax.named_scope("mlp"):
      out = layers.apply(mlp(config), block["mlp"], h)
    h = layers.rms_norm(h + out, eps=config.norm_eps)
  return h


def read_answer(
  weights: Weights, y: jax.Array, config: ModelConfig
) -> jax.Array:
  """Logits of the next or of the answer's tokens: `[B, N, D]` to `[B, N, V]`.

  In `config.dtype`. Leave out the prefix first.
  """
  return layers.apply(_lm_head(config), weights["lm_head"], y)


def read_halting(
  weights: Weights, y: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """Logits of (halt, continue), `[B]` each, in at least float32."""
  q = layers.apply(_q_head(config), weights["q_head"], y[:, 0])
  q = q.astype(layers.at_least_float32(q.dtype))
  return q[:, 0], q[:, 1]


def count_weights(params: Params) -> int:
  """Trained weights of the network, without the puzzle table."""
  return sum(math.prod(w.shape) for w in jax.tree.leaves(params.weights))


def _token_mlp(config: ModelConfig) -> layers.SwiGLU:
  return layers.SwiGLU(
    config.token_inner, jnp.dtype(config.param_dtype), axis=-2
  )


def _attention(config: ModelConfig) -> attention.Attention:
  return attention.Attention(
    config.heads,
    jnp.dtype(config.param_dtype),
    config.attention,
    config.query_block,
  )


def mlp(config: ModelConfig) -> layers.SwiGLU:
  """The layer over channels that ends each block."""
  return layers.SwiGLU(config.mlp_inner, jnp.dtype(config.param_dtype))


def _lm_head(config: ModelConfig) -> layers.Linear:
  return layers.Linear(config.vocab_size, jnp.dtype(config.param_dtype))


def _q_head(config: ModelConfig) -> layers.Linear:
  # Starting at sigmoid(-5) keeps an untrained model from halting at once.
  return layers.Linear(
    2,
    jnp.dtype(config.param_dtype),
    use_bias=True,
    kernel_init=jax.nn.initializers.zeros,
    bias_init=jax.nn.initializers.constant(-5.0),
  )
