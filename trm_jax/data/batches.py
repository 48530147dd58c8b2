"""The order of training examples, as a function of seed and position.

Examples form an endless stream of passes over the data, each a fresh shuffle of
its groups (see `task.Split`). A pass shows one random puzzle (copy) of each
group, with all its examples, as the reference samples. If every group has one
example, this is a shuffle of all rows.

Every position of the stream is computed on its own, so resuming needs only a
`Cursor`, and batches do not depend on how they are split over devices.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from trm_jax.core.hashing import mix
from trm_jax.data.task import Split

_ROUNDS = 8  # of the Feistel network


class Table(struct.PyTreeNode):
  """A training split on the device; see `task.Split`.

  Attributes:
    group_rows: int32 [G], examples of each group in a pass: as many as its
      largest puzzle has. A smaller puzzle repeats its first ones.
    num_rows: examples of a pass, the sum of `group_rows`; static.
    equal_rows: the value of `group_rows` if all are equal, else 0; static.
  """

  inputs: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray
  puzzle_ids: jax.Array | np.ndarray
  first_puzzle: jax.Array | np.ndarray
  first_example: jax.Array | np.ndarray
  num_examples: jax.Array | np.ndarray
  symmetries: jax.Array | np.ndarray | None
  group_rows: jax.Array | np.ndarray
  is_viewed: bool = struct.field(pytree_node=False)
  num_rows: int = struct.field(pytree_node=False)
  equal_rows: int = struct.field(pytree_node=False)

  @classmethod
  def of(cls, split: Split) -> "Table":
    """The table of a split, in host memory."""
    rows = np.maximum.reduceat(split.num_examples, split.first_puzzle[:-1])
    fields = {f.name: getattr(split, f.name) for f in dataclasses.fields(split)}
    del fields["names"]
    return cls(
      **fields,
      group_rows=rows.astype(np.int32),
      num_rows=int(rows.sum(dtype=np.int64)),
      equal_rows=int(rows[0]) if (rows == rows[0]).all() else 0,
    )

  @property
  def num_groups(self) -> int:
    """Groups of the split, G."""
    return self.group_rows.shape[0]


class Cursor(struct.PyTreeNode):
  """A position in the endless stream of examples.

  Attributes:
    epoch: uint32 [], completed passes.
    position: int32 [], completed examples of this pass, < num_rows.
  """

  epoch: jax.Array
  position: jax.Array


class Draw(struct.PyTreeNode):
  """Examples of the stream.

  Attributes:
    rows: int32 [B], examples, as rows of `Table.inputs`.
    puzzles: int32 [B], the puzzles (copies) that they are shown as.
    epochs: uint32 [B], the passes that they belong to.
    anchored: bool [B], true for one random example of each puzzle shown. It is
      exempt from translation on the canvas, as in the reference.
  """

  rows: jax.Array
  puzzles: jax.Array
  epochs: jax.Array
  anchored: jax.Array


def start() -> Cursor:
  """The beginning of the stream."""
  return Cursor(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.int32))


def advance(cursor: Cursor, count: ArrayLike, num_rows: int) -> Cursor:
  """The cursor after integer [...] more examples, of passes of `num_rows`.

  The position wraps, so it never overflows.
  """
  # The sum of two nonnegative int32 numbers fits into uint32.
  total = cursor.position.astype(jnp.uint32) + jnp.asarray(count, jnp.uint32)
  return Cursor(
    epoch=cursor.epoch + total // jnp.uint32(num_rows),
    position=(total % jnp.uint32(num_rows)).astype(jnp.int32),
  )


def take(
  cursor: Cursor, offsets: jax.Array, seed: ArrayLike, table: Table
) -> Draw:
  """Looks up examples ahead of a cursor.

  Args:
    cursor: where the batch starts.
    offsets: integers [B] below B, distances of examples from the cursor.
    seed: uint32 [], the seed of the order.
    table: the split.
  """
  ahead = advance(cursor, offsets, table.num_rows)
  if table.equal_rows:
    rank = ahead.position // table.equal_rows
    place = ahead.position % table.equal_rows
    group = shuffled_row(seed, ahead.epoch, rank, table.num_groups)
  else:
    group, place = _find(cursor, ahead, seed, table)
  # Independent of the shuffle's bits.
  base = mix(jnp.asarray(seed, jnp.uint32) ^ jnp.uint32(0x5BD1E995))
  noise = mix(mix(base ^ ahead.epoch) + group.astype(jnp.uint32))
  first = jnp.asarray(table.first_puzzle)[group]
  copies = jnp.asarray(table.first_puzzle)[group + 1] - first
  puzzle = first + _below(noise, copies)
  count = jnp.asarray(table.num_examples)[puzzle]
  place = place % count
  return Draw(
    rows=jnp.asarray(table.first_example)[puzzle] + place,
    puzzles=puzzle,
    epochs=ahead.epoch,
    anchored=place == _below(mix(noise + jnp.uint32(1)), count),
  )


def _find(cursor, ahead, seed, table):
  """The group of each stream position, and the example's index in the group.

  For groups of different sizes: a pass concatenates its shuffled groups, and
  bisection of the cumulative sizes finds the group. A batch may span passes.
  """
  batch = ahead.position.shape[0]
  passes = -(-batch // table.num_rows) + 1  # that a batch may touch
  epochs = cursor.epoch + jnp.arange(passes, dtype=jnp.uint32)
  groups = jnp.arange(table.num_groups, dtype=jnp.int32)
  order = shuffled_row(
    seed, epochs[:, None], groups[None, :], table.num_groups
  )  # [passes, G]
  ends = jnp.cumsum(jnp.asarray(table.group_rows)[order], axis=1)
  bisect = functools.partial(jnp.searchsorted, side="right")
  ranks = jax.vmap(bisect, in_axes=(0, None))(ends, ahead.position)
  index = (ahead.epoch - cursor.epoch).astype(jnp.int32)
  rank = ranks[index, jnp.arange(batch)]
  group = order[index, rank]
  before = ends[index, rank] - jnp.asarray(table.group_rows)[group]
  return group, ahead.position - before


def _below(bits, bound):
  """Maps uint32 bits to int32 numbers below a bound, almost uniformly."""
  return (bits % bound.astype(jnp.uint32)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="num_rows")
def shuffled_row(
  seed: ArrayLike, epoch: ArrayLike, position: ArrayLike, num_rows: int
) -> jax.Array:
  """The row at a position of a shuffle, int32 [...].

  For each seed and epoch this is a bijection of [0, num_rows), computed
  pointwise: a Feistel network permutes the smallest square that holds the
  rows, and a point outside of them is permuted again until it is inside
  (cycle walking). See Black and Rogaway, "Ciphers with Arbitrary Finite
  Domains", 2002.

  Args:
    seed: uint32 [].
    epoch: uint32, broadcastable with `position`.
    position: integers [...] in [0, num_rows).
    num_rows: rows of the split, at least 1 and below 2**31.
  """
  position, epoch = jnp.broadcast_arrays(
    jnp.asarray(position, jnp.uint32), jnp.asarray(epoch, jnp.uint32)
  )
  key = mix(mix(jnp.asarray(seed, jnp.uint32)) ^ epoch)
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
  for number in range(_ROUNDS):
    # The odd constant gives each round another key.
    round_key = mix(key + jnp.uint32(0x9E3779B9 * number & 0xFFFFFFFF))
    noise = mix(right ^ round_key)
    left, right = right, (left + noise % side) % side
  return left * side + right
