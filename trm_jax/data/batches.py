"""The order of training puzzles, as a function of seed and place.

The puzzles form an endless stream: epoch after epoch, each a fresh shuffle of
all rows. Any place of the stream is computed on its own, so that resuming
needs only a `Cursor`, and any split of a batch over devices sees the same
puzzles.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

_ROUNDS = 8


class Cursor(struct.PyTreeNode):
  """A place in the endless stream of puzzles.

  Attributes:
    epoch: uint32 [], passes over the rows that lie behind.
    position: int32 [], puzzles of this epoch that lie behind, < num_rows.
  """

  epoch: jax.Array
  position: jax.Array


def start() -> Cursor:
  """Returns the beginning of the stream."""
  return Cursor(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.int32))


def advance(cursor: Cursor, count: ArrayLike, num_rows: int) -> Cursor:
  """Moves a cursor forward. The position wraps, so it never overflows.

  Args:
    cursor: where to start.
    count: integer [...], puzzles to pass, 0 or more.
    num_rows: rows of the split.

  Returns:
    The cursor `count` puzzles later, each leaf of the shape of `count`.
  """
  # Two int32 numbers that are not negative add up without overflow in uint32.
  total = cursor.position.astype(jnp.uint32) + jnp.asarray(count, jnp.uint32)
  return Cursor(
    epoch=cursor.epoch + total // jnp.uint32(num_rows),
    position=(total % jnp.uint32(num_rows)).astype(jnp.int32),
  )


def take(
  cursor: Cursor,
  offsets: ArrayLike,
  seed: ArrayLike,
  num_rows: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Looks up puzzles ahead of a cursor.

  Args:
    cursor: where the batch starts.
    offsets: integers [...], how far past the cursor each puzzle lies.
    seed: uint32 [], the seed of the order.
    num_rows: rows of the split.

  Returns:
    rows: int32 [...], the puzzles' rows in the split.
    epochs: uint32 [...], the epoch each of them is taken from.
    positions: int32 [...], its place within that epoch.
  """
  ahead = advance(cursor, offsets, num_rows)
  rows = shuffled_row(seed, ahead.epoch, ahead.position, num_rows)
  return rows, ahead.epoch, ahead.position


@functools.partial(jax.jit, static_argnames="num_rows")
def shuffled_row(
  seed: ArrayLike,
  epoch: ArrayLike,
  position: ArrayLike,
  num_rows: int,
) -> jax.Array:
  """Says which row an epoch shows at a position.

  For each seed and epoch this is a bijection of [0, num_rows), computed
  pointwise: a Feistel network permutes the smallest square that holds the
  rows, and a point that lands outside them is sent round again until it is
  back (cycle walking, which keeps a bijection one). Black and Rogaway,
  "Ciphers with Arbitrary Finite Domains", 2002, describe both.

  Args:
    seed: uint32 [].
    epoch: uint32, broadcastable with `position`.
    position: integers [...] in [0, num_rows).
    num_rows: rows of the split, at least 1 and below 2**31.

  Returns:
    int32 [...], rows in [0, num_rows).
  """
  position, epoch = jnp.broadcast_arrays(
    jnp.asarray(position, jnp.uint32), jnp.asarray(epoch, jnp.uint32)
  )
  key = _mix(_mix(jnp.asarray(seed, jnp.uint32)) ^ epoch)
  side = math.isqrt(num_rows - 1) + 1
  permute = functools.partial(_permute_square, key=key, side=side)
  row = jax.lax.while_loop(
    lambda row: (row >= num_rows).any(),
    lambda row: jnp.where(row >= num_rows, permute(row), row),
    permute(position),
  )
  return row.astype(jnp.int32)


def _permute_square(point, key, side):
  """A keyed bijection of [0, side * side): uint32 in, uint32 out."""
  side = jnp.uint32(side)
  left, right = point // side, point % side
  for turn in range(_ROUNDS):
    # The key enters anew each round; the odd constant keeps rounds apart.
    noise = _mix(right ^ _mix(key + jnp.uint32(0x9E3779B9 * turn & 0xFFFFFFFF)))
    left, right = right, (left + noise % side) % side
  return left * side + right


def _mix(bits):
  """Scatters the bits of a uint32: the finaliser of MurmurHash3."""
  bits ^= bits >> 16
  bits *= jnp.uint32(0x85EBCA6B)
  bits ^= bits >> 13
  bits *= jnp.uint32(0xC2B2AE35)
  return bits ^ bits >> 16
