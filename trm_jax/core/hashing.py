"""Hashes of integers: the same bits on the host, devices and everywhere."""

import jax
import numpy as np
from jax.typing import ArrayLike


def base_key(seed: ArrayLike) -> jax.Array:
  """A PRNG key of a seed, integer [], whatever the environment's default is."""
  return jax.random.key(seed, impl="threefry2x32")


def mix(bits):
  """Spreads each bit of uint32 numbers over all: MurmurHash3's finalizer.

  A bijection, of arrays of numpy or of JAX.
  """
  bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
