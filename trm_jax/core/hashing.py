"""A hash of integers, to the same bits on the host and on devices."""

import numpy as np


def mix(bits):
  """Spreads each bit of uint32 numbers over all: MurmurHash3's finalizer.

  A bijection, of arrays of numpy or of JAX.
  """
  bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
