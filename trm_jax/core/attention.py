"""Attention: its layer and its implementations.

  blocks  plain JAX, for every platform: a block of queries at a time
  splash  the kernel for TPUs that JAX ships: scores stay in fast memory
  cudnn   NVIDIA's kernel, half precision only

They compute the same up to round-off. Only "blocks" with all queries at once
holds the L x L matrix of scores in memory.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from trm_jax.core import layers

# Implementation -> the platform of its kernel; None for any platform.
PLATFORMS = {"blocks": None, "splash": "tpu", "cudnn": "gpu"}

# Tokens in a lane of a TPU, and the most in one block of splash, whose scores
# (its square) must fit in fast memory.
_LANES, _MOST = 128, 1024


class Attention(nn.Module):
  """Bidirectional multi-head attention, fused qkv, without biases.

  Attributes:
    heads: H.
    param_dtype: dtype the weights are stored in.
    implementation: see `attend`.
    query_block: see `attend`.
  """

  heads: int
  param_dtype: jnp.dtype = jnp.float32
  implementation: str = "blocks"
  query_block: int = 0

  @nn.compact
  def __call__(
    self, h: jax.Array, rotary: tuple[jax.Array, jax.Array] | None
  ) -> jax.Array:
    """Maps `[B, L, D]` to `[B, L, D]`, rotating q and k where asked to."""
    width = h.shape[-1]
    head_dim = width // self.heads
    init = layers.truncated_normal(1.0 / math.sqrt(width))
    qkv = self.param(
      "qkv", init, (width, 3, self.heads, head_dim), self.param_dtype
    )
    out = self.param(
      "out", init, (self.heads, head_dim, width), self.param_dtype
    )
    q, k, v = project(h, qkv, rotary)
    return attend(
      q, k, v, out,
      implementation=self.implementation, query_block=self.query_block,
    )  # fmt: skip


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
    q, k = layers.rotate(q, rotary), layers.rotate(k, rotary)
  return q, k, v


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  out: jax.Array,
  visible: jax.Array | None = None,
  implementation: str = "blocks",
  query_block: int = 0,
) -> jax.Array:
  """Softmax attention and its output projection.

  Args:
    q: `[B, N, H, K]`.
    k: `[B, M, H, K]`.
    v: `[B, M, H, K]`.
    out: weights, `[H, K, D]`.
    visible: bool `[N, M]`, which keys a query sees; `None` for all.
    implementation: one of `PLATFORMS`. A kernel wants N = M and all keys
      visible.
    query_block: for "blocks": queries at a time, whose scores alone are then
      in memory and are not kept for the gradient; 0 for all. The result is
      the same.

  Returns:
    `[B, N, D]`. Scores and their softmax are at least float32.
  """
  if implementation != "blocks":
    assert visible is None and q.shape == k.shape, "kernels see all keys"
    kernel = {"splash": _splash, "cudnn": _cudnn}[implementation]
    mixed = _on_each_device(kernel, q, k, v)
  elif query_block and query_block < q.shape[1]:
    assert visible is None, "blocks of queries see all keys"
    mixed = _mix_in_blocks(q, k, v, query_block)
  else:
    mixed = _mix(q, k, v, visible)
  return jnp.einsum("bqhk,hkd->bqd", mixed, out.astype(q.dtype))


def _mix(q, k, v, visible=None):
  """Values weighted by attention, `[B, N, H, K]`."""
  wide = layers.at_least_float32(q.dtype)
  scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=wide)
  scores = scores / math.sqrt(q.shape[-1])
  if visible is not None:
    scores = jnp.where(visible[None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores).astype(q.dtype)
  return jnp.einsum("bhqs,bshk->bqhk", weights, v)


def _mix_in_blocks(q, k, v, query_block: int):
  """`_mix`, one block of queries at a time."""
  batch, length, heads, head_dim = q.shape
  count = -(-length // query_block)
  size = -(-length // count)  # equal blocks need the least padding
  padding = ((0, 0), (0, count * size - length), (0, 0), (0, 0))
  blocks = jnp.pad(q, padding).reshape(batch, count, size, heads, head_dim)
  mixed = jax.lax.map(
    jax.checkpoint(lambda block: _mix(block, k, v)), jnp.moveaxis(blocks, 1, 0)
  )
  return jnp.moveaxis(mixed, 0, 1).reshape(batch, -1, heads, head_dim)[
    :, :length
  ]


def _on_each_device(
  mix: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  """Runs a kernel on each device's part, which the compiler cannot do.

  Over the axes of the current mesh that no outer `shard_map` has taken: "model"
  shards heads and the others the batch, where they divide them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  left = [name for name, kind in kinds if kind == AxisType.Auto]
  if not left:
    return mix(q, k, v)
  sharing = tuple(name for name in left if name != "model")
  ways = math.prod(mesh.shape[name] for name in sharing)
  batch = sharing if q.shape[0] % ways == 0 else None
  heads = "model" if "model" in left else None
  if heads and q.shape[2] % mesh.shape[heads]:
    heads = None
  part = P(batch, None, heads, None)
  return jax.shard_map(
    mix,
    in_specs=(part, part, part),
    out_specs=part,
    axis_names=set(left),
    check_vma=False,
  )(q, k, v)


def _splash(q, k, v):
  """`_mix` by the TPU's kernel, on one device.

  The kernel does not scale queries, and wants whole lanes of tokens: padding
  tokens are a segment of their own.
  """
  # Imported here: it takes a second, and fails on some platforms.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  _, length, heads, head_dim = q.shape
  count = -(-length // _MOST)
  size = -(-length // (count * _LANES)) * _LANES
  padded = count * size
  padding = ((0, 0), (0, 0), (0, padded - length), (0, 0))
  scaled = q / math.sqrt(head_dim)
  arrays = (jnp.pad(jnp.swapaxes(a, 1, 2), padding) for a in (scaled, k, v))
  queries = size // 2 if size % (2 * _LANES) == 0 else size
  run = kernel.make_splash_mha_single_device(
    masks.MultiHeadMask([masks.FullMask((padded, padded))] * heads),
    block_sizes=kernel.BlockSizes(
      block_q=queries,
      block_kv=size,
      block_q_dkv=queries,
      block_kv_dkv=size,
      # Gradients of queries, keys and values in one pass over the scores.
      use_fused_bwd_kernel=True,
      # Tokens fill the lanes, of which heads of 64 would leave half empty. Of
      # what surrounds a forward kernel, that saves 60% on a TPU v5e by the
      # compiler's count of cycles (mazes of 916 tokens).
      q_layout=kernel.QKVLayout.SEQ_MINOR,
      k_layout=kernel.QKVLayout.SEQ_MINOR,
      v_layout=kernel.QKVLayout.SEQ_MINOR,
    ),
  )
  segments = None
  if padded > length:
    real = (jnp.arange(padded) < length).astype(jnp.int32)
    segments = kernel.SegmentIds(q=real, kv=real)
  mixed: Any = jax.vmap(run, (0, 0, 0, None))(*arrays, segments)
  return jnp.swapaxes(mixed, 1, 2)[:, :length]  # of [B, H, N, K]


def _cudnn(q, k, v):
  """`_mix` by cuDNN, on one device."""
  return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
