"""The order of training examples, as a function of seed and place.

Examples form an endless stream: pass after pass over the data, each a fresh
shuffle of its groups (see `task.Split`). A pass shows one puzzle of each group,
drawn at random among its copies, with all examples of that puzzle, as the
reference samples. Where every group has one example, this is simply a shuffle
of all rows.

Any place of the stream is computed on its own, so that resuming needs only a
`Cursor`, and any split of a batch over devices sees the same examples.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from trm_jax.core.hashing import mix
from trm_jax.data.task import Split

_ROUNDS = 8


class Table(struct.PyTreeNode):
  """A training split as the device holds it; see `task.Split`.

  Attributes:
    group_rows: int32 [G], examples that each group gives to a pass: as many
      as its largest puzzle has. A smaller one shows its first ones again.
    num_rows: examples of a pass, the sum of `group_rows`; static.
    equal_rows: what every group gives, or 0 if they differ; static.
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
    """The table of a split, still in host memory."""
    rows = np.maximum.reduceat(split.num_examples, split.first_puzzle[:-1])
    return cls(
      inputs=split.inputs,
      labels=split.labels,
      puzzle_ids=split.puzzle_ids,
      first_puzzle=split.first_puzzle,
      first_example=split.first_example,
      num_examples=split.num_examples,
      symmetries=split.symmetries,
      group_rows=rows.astype(np.int32),
      is_viewed=split.is_viewed,
      num_rows=int(rows.sum(dtype=np.int64)),
      equal_rows=int(rows[0]) if (rows == rows[0]).all() else 0,
    )

  @property
  def num_groups(self) -> int:
    """G."""
    return self.group_rows.shape[0]


class Cursor(struct.PyTreeNode):
  """A place in the endless stream of examples.

  Attributes:
    epoch: uint32 [], passes that lie behind.
    position: int32 [], examples of this pass that lie behind, < num_rows.
  """

  epoch: jax.Array
  position: jax.Array


class Draw(struct.PyTreeNode):
  """Examples of the stream.

  Attributes:
    rows: int32 [B], examples, as rows of `Table.inputs`.
    puzzles: int32 [B], the puzzles (copies) that they are shown as.
    epochs: uint32 [B], the passes that they are taken from.
    anchored: bool [B], true for one example of each puzzle shown, drawn anew
      every pass: the reference leaves one of a puzzle's examples where it is
      when it moves grids about on their canvas.
  """

  rows: jax.Array
  puzzles: jax.Array
  epochs: jax.Array
  anchored: jax.Array


def start() -> Cursor:
  """Returns the beginning of the stream."""
  return Cursor(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.int32))


def advance(cursor: Cursor, count: ArrayLike, num_rows: int) -> Cursor:
  """The cursor after integer [...] more examples, of passes of `num_rows`.

  The position wraps, so it never overflows.
  """
  # Two int32 numbers that are not negative add up without overflow in uint32.
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
    offsets: integers [B], how far past the cursor each example lies, below B.
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
  # Three draws that share no bits with the shuffle, nor with each other.
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
  """The group of each place of the stream, and which of its examples.

  Where groups differ in size: a pass lays its shuffled groups end to end, so
  the group is found by bisection in their running total. A batch may reach
  over several passes.
  """
  batch = ahead.position.shape[0]
  passes = -(-batch // table.num_rows) + 1
  epochs = cursor.epoch + jnp.arange(passes, dtype=jnp.uint32)
  groups = jnp.arange(table.num_groups, dtype=jnp.int32)
  order = shuffled_row(
    seed, epochs[:, None], groups[None, :], table.num_groups
  )  # [passes, G]
  ends = jnp.cumsum(jnp.asarray(table.group_rows)[order], axis=1)
  bisect = functools.partial(jnp.searchsorted, side="right")
  ranks = jax.vmap(bisect, in_axes=(0, None))(ends, ahead.position)
  mine = (ahead.epoch - cursor.epoch).astype(jnp.int32)
  rank = ranks[mine, jnp.arange(batch)]
  group = order[mine, rank]
  before = ends[mine, rank] - jnp.asarray(table.group_rows)[group]
  return group, ahead.position - before


def _below(bits, bound):
  """Turns uint32 bits into int32 numbers below a bound, all but uniformly."""
  return (bits % bound.astype(jnp.uint32)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="num_rows")
def shuffled_row(
  seed: ArrayLike,
  epoch: ArrayLike,
  position: ArrayLike,
  num_rows: int,
) -> jax.Array:
  """The row at a position of a shuffle, int32 [...].

  For each seed and epoch this is a bijection of [0, num_rows), computed
  pointwise: a Feistel network permutes the smallest square that holds the
  rows, and a point that lands outside them is permuted again until it is
  back (cycle walking). See Black and Rogaway, "Ciphers with Arbitrary Finite
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
  for turn in range(_ROUNDS):
    # The key enters anew each round; the odd constant keeps rounds apart.
    noise = mix(right ^ mix(key + jnp.uint32(0x9E3779B9 * turn & 0xFFFFFFFF)))
    left, right = right, (left + noise % side) % side
  return left * side + right
