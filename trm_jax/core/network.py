"""The network that recursion applies: embedding, blocks and heads.

Notation, here and everywhere in the project:
  B  batch                 P  prefix tokens (from the puzzle embedding)
  V  vocabulary            L  tokens of a sequence, prefix included
  D  width                 S  puzzle tokens, so L = P + S
  H  heads                 E  width of a puzzle's embedding
  T  cycles a step         n  latent steps a cycle

Weights are plain nested dicts of arrays. Source of every rule: the reference
implementation of "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871).
"""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from trm_jax.core import layers

Weights = dict[str, Any]

MIXERS = ("mlp", "attention")
POSITIONS = ("none", "rotary", "learned")
REMATS = ("none", "dots", "full")
DTYPES = ("bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything that fixes the shape and the arithmetic of a model.

  Attributes:
    vocab_size: V, PAD (token 0) included.
    seq_len: S, tokens of a puzzle without the prefix.
    num_puzzle_ids: rows of the puzzle-embedding table; 1 grows to what the
      data needs.
    width: D.
    layers: blocks in the network.
    heads: H, used by the attention mixer only.
    expansion: SwiGLU expansion, before the factor 2/3.
    inner_multiple: SwiGLU inner widths are rounded up to a multiple of this.
    mixer: "mlp" mixes tokens with a SwiGLU over the token axis, "attention"
      with bidirectional attention.
    positions: "none", "rotary" (attention only) or "learned".
    rope_theta: base of the rotary frequencies.
    puzzle_emb_ndim: E; 0 means no puzzle embedding and no prefix.
    puzzle_emb_len: P; 0 means `ceil(E / D)`.
    cycles: T, of which only the last carries gradient.
    latent_steps: n, updates of `z` in a cycle.
    norm_eps: epsilon of `rms_norm`.
    remat: what the backward pass keeps: "none" everything, "dots" only matrix
      products (norms and activations are computed anew: less memory traffic,
      and a third faster on a CPU), "full" only the latents between steps.
    dtype: dtype of the activations.
    param_dtype: dtype of the weights.

  Raises:
    ValueError: naming the field, its value and what was expected.
  """

  vocab_size: int
  seq_len: int
  num_puzzle_ids: int = 1
  width: int = 512
  layers: int = 2
  heads: int = 8
  expansion: float = 4.0
  inner_multiple: int = 256
  mixer: str = "mlp"
  positions: str = "none"
  rope_theta: float = 10000.0
  puzzle_emb_ndim: int = 512
  puzzle_emb_len: int = 16
  cycles: int = 3
  latent_steps: int = 6
  norm_eps: float = 1e-5
  remat: str = "dots"
  dtype: str = "bfloat16"
  param_dtype: str = "float32"

  def __post_init__(self):
    for name, value in vars(self).items():
      if isinstance(value, str):
        continue
      if name.startswith("puzzle_emb"):  # 0 has a meaning there
        if value < 0:
          raise ValueError(f"{name}={value}: must not be negative")
      elif not value > 0:
        raise ValueError(f"{name}={value}: must be positive")
    for name, allowed in (
      ("mixer", MIXERS),
      ("positions", POSITIONS),
      ("remat", REMATS),
      ("dtype", DTYPES),
      ("param_dtype", DTYPES),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}"
        )
    if self.mixer == "attention" and self.width % (2 * self.heads):
      raise ValueError(
        f"width={self.width}: must be a multiple of 2 * heads = "
        f"{2 * self.heads}, so that rotary positions can pair channels"
      )
    if self.mixer == "mlp" and self.positions == "rotary":
      raise ValueError(
        "positions='rotary': rotates attention heads, which mixer='mlp' does "
        "not have; use 'none' or 'learned'"
      )
    if self.puzzle_emb_ndim and self.puzzle_emb_ndim > self.prefix * self.width:
      raise ValueError(
        f"puzzle_emb_ndim={self.puzzle_emb_ndim}: does not fit in "
        f"puzzle_emb_len={self.puzzle_emb_len} tokens of width {self.width}"
      )

  @property
  def prefix(self) -> int:
    """P, the number of prefix tokens."""
    if not self.puzzle_emb_ndim:
      return 0
    return self.puzzle_emb_len or -(-self.puzzle_emb_ndim // self.width)

  @property
  def length(self) -> int:
    """L, the tokens that the blocks see."""
    return self.prefix + self.seq_len

  @property
  def mlp_inner(self) -> int:
    """Inner width of the SwiGLU over channels."""
    return layers.inner_width(self.expansion, self.width, self.inner_multiple)

  @property
  def token_inner(self) -> int:
    """Inner width of the SwiGLU over tokens (mixer "mlp")."""
    return layers.inner_width(self.expansion, self.length, self.inner_multiple)


class Latents(struct.PyTreeNode):
  """What recursion refines: the answer `y` and the scratchpad `z`.

  Both `[B, L, D]` during recursion, and `[D]` each as initial values.
  """

  y: jax.Array
  z: jax.Array


class Params(struct.PyTreeNode):
  """A model's arrays, in three parts because three rules update them.

  Attributes:
    weights: nested dict, trained by the main optimizer and averaged by EMA.
    puzzle_table: `[num_puzzle_ids, E]`, trained by sign-SGD on touched rows.
    initial: `Latents` of shape `[D]`, drawn once and never trained or decayed.
  """

  weights: Weights
  puzzle_table: jax.Array
  initial: Latents


def init(key: jax.Array, config: ModelConfig) -> Params:
  """Draws the parameters of a new model.

  Args:
    key: typed PRNG key.
    config: the model.

  Returns:
    `Params` in `config.param_dtype`.
  """
  dtype = jnp.dtype(config.param_dtype)
  keys = iter(jax.random.split(key, 6 + 2 * config.layers))
  embed_init = layers.truncated_normal(1.0 / math.sqrt(config.width))
  h = jnp.zeros((1, config.length, config.width), dtype)
  embed = {
    "tokens": embed_init(next(keys), (config.vocab_size, config.width), dtype)
  }
  position_key = next(keys)
  if config.positions == "learned":
    shape = (config.length, config.width)
    embed["positions"] = embed_init(position_key, shape, dtype)
  blocks = {}
  for i in range(config.layers):
    mixer_key, mlp_key = next(keys), next(keys)
    if config.mixer == "mlp":
      mixer = _token_mlp(config).init(mixer_key, jnp.swapaxes(h, 1, 2))
    else:
      mixer = _attention(config).init(mixer_key, h, None)
    blocks[f"block_{i}"] = {
      "mixer": mixer["params"],
      "mlp": _mlp(config).init(mlp_key, h)["params"],
    }
  weights = {
    "embed": embed,
    "blocks": blocks,
    "lm_head": _lm_head(config).init(next(keys), h)["params"],
    "q_head": _q_head(config).init(next(keys), h[:, 0])["params"],
  }
  unit = layers.truncated_normal(1.0)
  return Params(
    weights=weights,
    puzzle_table=jnp.zeros(
      (config.num_puzzle_ids, config.puzzle_emb_ndim), dtype
    ),
    initial=Latents(
      y=unit(next(keys), (config.width,), dtype),
      z=unit(next(keys), (config.width,), dtype),
    ),
  )


def shapes(config: ModelConfig) -> Params:
  """What `init` returns, as `jax.ShapeDtypeStruct`s, without the work."""
  return jax.eval_shape(lambda: init(jax.random.key(0), config))


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
    inputs: int `[B, S]`, tokens.
    config: the model.

  Returns:
    `x`, `[B, L, D]` in `config.dtype`.
  """
  batch = inputs.shape[0]
  chex.assert_shape(inputs, (batch, config.seq_len))
  chex.assert_shape(puzzle_rows, (batch, config.puzzle_emb_ndim))
  dtype = jnp.dtype(config.dtype)
  x = weights["embed"]["tokens"].astype(dtype)[inputs]  # [B, S, D]
  if config.prefix:
    room = config.prefix * config.width - config.puzzle_emb_ndim
    rows = jnp.pad(puzzle_rows.astype(dtype), ((0, 0), (0, room)))
    prefix = rows.reshape(batch, config.prefix, config.width)
    x = jnp.concatenate([prefix, x], axis=1)  # [B, L, D]
  if config.positions == "learned":
    positions = weights["embed"]["positions"].astype(dtype)
    x = math.sqrt(0.5) * (x + positions[None])
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
  weights: Weights,
  h: jax.Array,
  table: tuple[jax.Array, jax.Array] | None,
  config: ModelConfig,
) -> jax.Array:
  """The network `net(h)`: post-norm blocks of a mixer and a SwiGLU.

  Args:
    weights: `Params.weights`.
    h: `[B, L, D]`.
    table: what `rotary(config)` gives.
    config: the model.

  Returns:
    `[B, L, D]`.
  """
  chex.assert_shape(h, (None, config.length, config.width))
  for i in range(config.layers):
    block = weights["blocks"][f"block_{i}"]
    if config.mixer == "mlp":
      # Surprising but so in the reference: the norm after token mixing runs
      # over the tokens as well.
      tokens_last = jnp.swapaxes(h, 1, 2)  # [B, D, L]
      mixed = layers.apply(_token_mlp(config), block["mixer"], tokens_last)
      h = layers.rms_norm(tokens_last + mixed, eps=config.norm_eps)
      h = jnp.swapaxes(h, 1, 2)
    else:
      mixed = layers.apply(_attention(config), block["mixer"], h, table)
      h = layers.rms_norm(h + mixed, eps=config.norm_eps)
    out = layers.apply(_mlp(config), block["mlp"], h)
    h = layers.rms_norm(h + out, eps=config.norm_eps)
  return h


def read_answer(
  weights: Weights, y: jax.Array, config: ModelConfig
) -> jax.Array:
  """Logits of every puzzle token, `[B, S, V]` in `config.dtype`."""
  tokens = y[:, config.prefix :]
  return layers.apply(_lm_head(config), weights["lm_head"], tokens)


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
  return layers.SwiGLU(config.token_inner, jnp.dtype(config.param_dtype))


def _attention(config: ModelConfig) -> layers.Attention:
  return layers.Attention(config.heads, jnp.dtype(config.param_dtype))


def _mlp(config: ModelConfig) -> layers.SwiGLU:
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
