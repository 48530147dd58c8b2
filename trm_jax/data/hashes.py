"""64-bit hashes of rows of tokens, in numpy."""

import numpy as np

_CHUNK = 1 << 22  # tokens at a time, to bound the memory


def mix(x: np.ndarray) -> np.ndarray:
  """The finalizer of splitmix64: a bijection of uint64 that mixes all bits."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def factors(count: int) -> np.ndarray:
  """Random factors, uint64 [count], equal in every process."""
  return np.random.default_rng(0).integers(1, 2**64, count, np.uint64)


def hash_rows(rows: np.ndarray) -> np.ndarray:
  """Hashes, uint64 [N], of rows of nonnegative integers, [N, S]."""
  found = np.empty(len(rows), np.uint64)
  by, step = factors(rows.shape[1]), max(1, _CHUNK // max(1, rows.shape[1]))
  for begin in range(0, len(rows), step):
    some = slice(begin, begin + step)
    found[some] = mix(rows[some].astype(np.uint64) @ by)
  return found
