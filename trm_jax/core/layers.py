"""Leaf layers: each owns its weights and knows nothing of recursion.

Linen modules here are only descriptions of weights. They are used unbound,
`SwiGLU(256).init(key, h)` and `SwiGLU(256).apply(variables, h)`, so that they
may be called inside a raw `jax.lax.scan` without leaking a tracer.
"""

import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

# The standard deviation of a unit normal truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal(std: float) -> nn.initializers.Initializer:
  """Normal truncated at two deviations whose own deviation is `std`.

  `jax.nn.initializers.truncated_normal(std)` truncates a normal of deviation
  `std` and so returns a narrower one; this one corrects for it, as the
  reference does.
  """
  return nn.initializers.truncated_normal(std / _TRUNCATED_STD)


def _fan_in(fan_in: int) -> nn.initializers.Initializer:
  return truncated_normal(1.0 / math.sqrt(fan_in))


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype for norms, rotary tables, halting logits and losses.

  float32 is the least width, not a fixed one: a float64 model stays float64.
  """
  return jnp.promote_types(dtype, jnp.float32)


def rms_norm(h: jax.Array, axis: int = -1, eps: float = 1e-5) -> jax.Array:
  """Root-mean-square normalisation without a weight.

  Args:
    h: activations, any shape and floating dtype.
    axis: the axis to normalise over.
    eps: added to the mean square.

  Returns:
    `h / sqrt(mean(h^2) + eps)` in the dtype of `h`, computed in at least
    float32.
  """
  wide = h.astype(at_least_float32(h.dtype))
  mean_square = jnp.mean(jnp.square(wide), axis=axis, keepdims=True)
  return (wide * jax.lax.rsqrt(mean_square + eps)).astype(h.dtype)


def inner_width(expansion: float, width: int, multiple: int) -> int:
  """Inner width of a SwiGLU over `width` channels (or tokens).

  `round(expansion * width * 2 / 3)` rounded up to a multiple of `multiple`;
  the reference uses 256.
  """
  exact = round(expansion * width * 2 / 3)
  return -(-exact // multiple) * multiple


def apply(module: nn.Module, weights: Any, *inputs: Any) -> jax.Array:
  """Applies a layer of this file to its weights."""
  return cast(jax.Array, module.apply({"params": weights}, *inputs))


class Linear(nn.Module):
  """`h @ kernel (+ bias)` with weights cast to the dtype of `h`.

  Attributes:
    features: output width.
    param_dtype: dtype the weights are stored in.
    use_bias: whether a bias is added.
    kernel_init: initialiser; `None` is truncated normal of std 1/sqrt(fan_in).
    bias_init: initialiser of the bias.
  """

  features: int
  param_dtype: jnp.dtype = jnp.float32
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer | None = None
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """Maps `[..., fan_in]` to `[..., features]`."""
    fan_in = h.shape[-1]
    init = self.kernel_init or _fan_in(fan_in)
    shape = (fan_in, self.features)
    kernel = self.param("kernel", init, shape, self.param_dtype)
    out = h @ kernel.astype(h.dtype)
    if self.use_bias:
      shape = (self.features,)
      bias = self.param("bias", self.bias_init, shape, self.param_dtype)
      out = out + jnp.broadcast_to(bias.astype(h.dtype), out.shape)
    return out


class SwiGLU(nn.Module):
  """`down(silu(gate(h)) * up(h))` over the last axis, without biases.

  Gate and up are one matrix, stored `[width, 2, inner]` so that `inner` can be
  sharded without splitting a gate from its up.
  """

  inner: int
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """Maps `[..., width]` to `[..., width]`."""
    width = h.shape[-1]
    gate_up = self.param(
      "gate_up", _fan_in(width), (width, 2, self.inner), self.param_dtype
    )
    down = self.param(
      "down", _fan_in(self.inner), (self.inner, width), self.param_dtype
    )
    hidden = jnp.einsum("...d,dgf->...gf", h, gate_up.astype(h.dtype))
    # Split, not sliced: its gradient is one concatenation, not padded sums.
    gate, up = jnp.split(hidden, 2, axis=-2)
    inner = jnp.squeeze(jax.nn.silu(gate) * up, -2)
    return inner @ down.astype(h.dtype)


class Attention(nn.Module):
  """Bidirectional multi-head attention, fused qkv, without biases."""

  heads: int
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, h: jax.Array, rotary: tuple[jax.Array, jax.Array] | None
  ) -> jax.Array:
    """Maps `[B, L, D]` to `[B, L, D]`, rotating q and k where asked to."""
    width = h.shape[-1]
    head_dim = width // self.heads
    qkv = self.param(
      "qkv",
      _fan_in(width),
      (width, 3, self.heads, head_dim),
      self.param_dtype,
    )
    out = self.param(
      "out", _fan_in(width), (self.heads, head_dim, width), self.param_dtype
    )
    q, k, v = project(h, qkv, rotary)
    return attend(q, k, v, out, None)


def project(
  h: jax.Array,
  qkv: jax.Array,
  rotary: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries, keys and values of attention.

  Args:
    h: `[B, N, D]`.
    qkv: weights, `[D, 3, H, K]`.
    rotary: tables for the N places of `h`, or `None` to rotate nothing.

  Returns:
    q, k and v, `[B, N, H, K]` each; q and k rotated.
  """
  q, k, v = jnp.moveaxis(
    jnp.einsum("bld,dphk->blphk", h, qkv.astype(h.dtype)), 2, 0
  )
  if rotary is not None:
    q, k = rotate(q, rotary), rotate(k, rotary)
  return q, k, v


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  out: jax.Array,
  visible: jax.Array | None,
) -> jax.Array:
  """Softmax attention and its output projection.

  Args:
    q: `[B, N, H, K]`.
    k: `[B, M, H, K]`.
    v: `[B, M, H, K]`.
    out: weights, `[H, K, D]`.
    visible: bool `[N, M]`, which keys a query sees; `None` for all.

  Returns:
    `[B, N, D]`. Scores and their softmax are at least float32.
  """
  wide = at_least_float32(q.dtype)
  scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=wide)
  scores = scores / math.sqrt(q.shape[-1])
  if visible is not None:
    scores = jnp.where(visible[None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores).astype(q.dtype)
  mixed = jnp.einsum("bhqs,bshk->bqhk", weights, v)
  return jnp.einsum("bqhk,hkd->bqd", mixed, out.astype(q.dtype))


def rotary_table(
  length: int, head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions, each `[length, 1, head_dim]`."""
  dtype = at_least_float32(dtype)
  exponents = jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim
  positions = jnp.arange(length, dtype=dtype)
  angles = jnp.outer(positions, 1.0 / theta**exponents)
  angles = jnp.concatenate([angles, angles], axis=-1)[:, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(heads: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates `[B, L, H, K]` by position, pairing first with second half."""
  cos, sin = rotary
  wide = heads.astype(cos.dtype)
  first, second = jnp.split(wide, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  # [L, 1, K] -> [1, L, 1, K]: rank promotion is never implicit here.
  return (wide * cos[None] + turned * sin[None]).astype(heads.dtype)
