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
  """`down(silu(gate(h)) * up(h))` over one axis, without biases.

  Gate and up are one array, stored `[width, 2, inner]` so that `inner` can be
  sharded without splitting a gate from its up. They are two products: then the
  compiler joins gate, up and their product in fast memory, where one product
  would be written out and read back (on a TPU v5e, half of the time).

  Attributes:
    inner: inner width.
    param_dtype: dtype the weights are stored in.
    axis: what is mapped: -1 the channels, -2 the tokens. No activation is
      ever transposed.
  """

  inner: int
  param_dtype: jnp.dtype = jnp.float32
  axis: int = -1

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """Maps `[..., L, D]` to the same shape."""
    width = h.shape[self.axis]
    gate_up = self.param(
      "gate_up", _fan_in(width), (width, 2, self.inner), self.param_dtype
    )
    down = self.param(
      "down", _fan_in(self.inner), (self.inner, width), self.param_dtype
    )
    into, back = {
      -1: ("...d,df->...f", "...f,fd->...d"),
      -2: ("...ld,lf->...fd", "...fd,fl->...ld"),
    }[self.axis]
    # Split, not sliced: its gradient is one concatenation, not padded sums.
    gate, up = (
      jnp.einsum(into, h, jnp.squeeze(part, 1))
      for part in jnp.split(gate_up.astype(h.dtype), 2, axis=1)
    )
    return jnp.einsum(back, jax.nn.silu(gate) * up, down.astype(h.dtype))


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
