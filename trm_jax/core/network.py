"""Embedding, blocks and heads: what every model family is made of.

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

from trm_jax.core import attention, family, layers
from trm_jax.core.family import Family

Weights = dict[str, Any]

MIXERS = ("mlp", "attention")
POSITIONS = ("none", "rotary", "learned")
REMATS = ("none", "dots", "full")
_MAY_BE_ZERO = (
  "puzzle_emb_ndim", "puzzle_emb_len", "registers", "initial_std",
  "path_noise", "query_block", "answer_layers",
)  # fmt: skip
DTYPES = ("bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything that fixes the shape and the arithmetic of a model.

  Attributes:
    vocab_size: V, PAD (token 0) included.
    seq_len: S, tokens of a puzzle without the prefix.
    num_puzzle_ids: rows of the puzzle-embedding table; 1 grows to what the
      data needs.
    family: which model, one of `core.family.FAMILIES`.
    width: D.
    layers: blocks in the network.
    answer_layers: in "hrm", blocks in the network that updates `y`; 0 for as
      many as `layers`, which then counts those of the other.
    heads: H, used by the attention mixer only.
    expansion: SwiGLU expansion, before the factor 2/3.
    inner_multiple: SwiGLU inner widths are rounded up to a multiple of this.
    mixer: "mlp" mixes tokens with a SwiGLU over the token axis, "attention"
      with bidirectional attention.
    positions: "none", "rotary" (attention only) or "learned".
    rope_theta: base of the rotary frequencies.
    puzzle_emb_ndim: E; 0 means no puzzle embedding and no prefix.
    puzzle_emb_len: P; 0 means `ceil(E / D)`.
    registers: P learned prefix tokens for a model without puzzle embeddings
      ("Vision Transformers Need Registers", arXiv 2309.16588).
    cycles: T, of which only the last carries gradient; read by families that
      have cycles.
    latent_steps: n, updates of `z` in a cycle; read by the same families.
    initial_std: deviation of a `y` and `z` drawn anew for each puzzle; 0
      starts from the two fixed vectors. 1 in "Equilibrium Reasoners"
      (arXiv 2605.21488, section 4).
    path_noise: deviation of the noise added, in training, to whatever the
      network returns; 0.01 there.
    norm_eps: epsilon of `rms_norm`.
    attention: implementation of attention, one of `attention.PLATFORMS`:
      "blocks" anywhere, "splash" on TPUs, "cudnn" on NVIDIA's GPUs in bfloat16.
      It decides speed and memory; results are the same up to round-off. A
      decoder always takes "blocks".
    query_block: for "blocks": queries at a time, so that the L x L matrix of
      scores is never whole in memory; 0 for all. A decoder ignores it.
    remat: what the backward pass keeps: "full" only the input of each pass
      (least memory, and as fast as the others), "dots" also the matrix
      products, "none" everything.
    dtype: dtype of the activations.
    param_dtype: dtype of the weights.

  Raises:
    ValueError: naming the field, its value and what was expected.
  """

  vocab_size: int
  seq_len: int
  num_puzzle_ids: int = 1
  family: str = "trm"
  width: int = 512
  layers: int = 2
  answer_layers: int = 0
  heads: int = 8
  expansion: float = 4.0
  inner_multiple: int = 256
  mixer: str = "mlp"
  positions: str = "none"
  rope_theta: float = 10000.0
  puzzle_emb_ndim: int = 512
  puzzle_emb_len: int = 16
  registers: int = 0
  cycles: int = 3
  latent_steps: int = 6
  initial_std: float = 0.0
  path_noise: float = 0.0
  norm_eps: float = 1e-5
  attention: str = "blocks"
  query_block: int = 0
  remat: str = "full"
  dtype: str = "bfloat16"
  param_dtype: str = "float32"

  def __post_init__(self):
    for name, value in vars(self).items():
      if isinstance(value, str):
        continue
      if name in _MAY_BE_ZERO:
        if not value >= 0:
          raise ValueError(f"{name}={value}: must not be negative")
      elif not value > 0:
        raise ValueError(f"{name}={value}: must be positive")
    for name, allowed in (
      ("family", family.FAMILIES),
      ("mixer", MIXERS),
      ("positions", POSITIONS),
      ("attention", attention.PLATFORMS),
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
    if self.kernel_platform:
      self._check_kernel()
    if self.mixer == "mlp" and self.positions == "rotary":
      raise ValueError(
        "positions='rotary': rotates attention heads, which mixer='mlp' does "
        "not have; use 'none' or 'learned'"
      )
    self.kind.check(self)
    if self.answer_layers and "answer_layers" in self.kind.unread:
      raise ValueError(
        f"answer_layers={self.answer_layers}: must be 0, for "
        f"family={self.family!r} has one network"
      )
    if not self.is_recursive and (self.initial_std or self.path_noise):
      raise ValueError(
        f"initial_std={self.initial_std}, path_noise={self.path_noise}: must "
        f"be 0, for family={self.family!r} has no latents to perturb"
      )
    if self.registers and self.puzzle_emb_ndim:
      raise ValueError(
        f"registers={self.registers}: they take the place of the puzzle "
        f"embedding; set puzzle_emb_ndim={self.puzzle_emb_ndim} to 0"
      )
    if self.puzzle_emb_ndim and self.puzzle_emb_ndim > self.prefix * self.width:
      raise ValueError(
        f"puzzle_emb_ndim={self.puzzle_emb_ndim}: does not fit in "
        f"puzzle_emb_len={self.puzzle_emb_len} tokens of width {self.width}"
      )

  def _check_kernel(self):
    """Refuses what the kernel that the model runs cannot compute."""
    allowed = {"splash": ("bfloat16", "float32"), "cudnn": ("bfloat16",)}
    if self.dtype not in allowed[self.attention]:
      raise ValueError(
        f"attention={self.attention!r}: needs dtype="
        f"{' or '.join(allowed[self.attention])}, not {self.dtype}; set that, "
        "or attention='blocks'"
      )
    head_dim = self.width // self.heads
    if self.attention == "cudnn" and (head_dim % 8 or head_dim > 128):
      raise ValueError(
        "attention='cudnn': needs heads whose width is a multiple of 8, and "
        f"128 at most; width / heads = {self.width} / {self.heads} = "
        f"{head_dim}. Set attention='blocks', or other heads"
      )

  @property
  def kind(self) -> Family:
    """The record of its family."""
    return family.get(self.family)

  @property
  def kernel_platform(self) -> str | None:
    """The only platform that its attention runs on; None for any."""
    if self.mixer == "mlp" or self.kind.supervise:
      return None
    return attention.PLATFORMS[self.attention]

  @property
  def is_recursive(self) -> bool:
    """Whether more supervision steps can change an answer."""
    return self.kind.is_recursive

  @property
  def prefix(self) -> int:
    """P, the number of prefix tokens."""
    if not self.puzzle_emb_ndim:
      return self.registers
    return self.puzzle_emb_len or -(-self.puzzle_emb_ndim // self.width)

  @property
  def length(self) -> int:
    """L, the tokens that the blocks see."""
    return self.kind.length(self)

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

  Both `[B, L, D]` during recursion, and `[D]` each as initial values. `z` is
  `[B, n, L, D]`, from `[n, D]`, where each latent step has a scratchpad. What a
  family does not have is None.
  """

  y: Any = None
  z: Any = None


class Params(struct.PyTreeNode):
  """A model's arrays, in three parts because three rules update them.

  Attributes:
    weights: nested dict, trained by the main optimizer and averaged by EMA.
    puzzle_table: `[num_puzzle_ids, E]`, trained by sign-SGD on touched rows.
    initial: `Latents` to start from, drawn once, never trained or decayed.
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


def portable(config: ModelConfig, platform: str | None = None) -> ModelConfig:
  """The same model for a platform that may lack its attention kernel.

  Args:
    config: the model.
    platform: where it will run, such as "cpu", "gpu" or "tpu"; None for
      anywhere, and where the compiler divides the work between devices.

  Returns:
    The config, with attention "blocks" if the platform has no such kernel.
  """
  if config.kernel_platform in (None, platform):
    return config
  return dataclasses.replace(config, attention="blocks")


def shapes(config: ModelConfig) -> Params:
  """What `init` returns, as `jax.ShapeDtypeStruct`s, not computed."""
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
