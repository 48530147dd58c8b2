"""A model's config and its arrays.

Notation, here and everywhere in the project:
  B  batch                 P  prefix tokens (from the puzzle embedding)
  V  vocabulary            L  tokens of a sequence, prefix included
  D  width                 S  puzzle tokens, so L = P + S
  H  heads                 E  width of a puzzle's embedding
  T  cycles a step         n  latent steps a cycle

Weights are plain nested dicts of arrays.
"""

import dataclasses
from typing import Any

import jax
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
# Refuse what would take days to compile, or any memory; others have `_MOST`.
_MOST = 2**16
_MOST_OF = {
  "layers": 1024, "answer_layers": 1024, "cycles": 1024, "latent_steps": 1024,
  "expansion": 1024, "inner_multiple": 2**20, "num_puzzle_ids": 2**31 - 1,
  "rope_theta": 1e12,
}  # fmt: skip


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
      if value > (most := _MOST_OF.get(name, _MOST)):
        raise ValueError(f"{name}={value}: must be at most {most:,}")
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
