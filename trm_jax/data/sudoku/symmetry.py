"""Random symmetries of the Sudoku board, in pure JAX; see `task.Symmetry`."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data.sudoku.board import BOXES


@flax.struct.dataclass
class BoardSymmetry:
  """A symmetry of the board.

  Attributes:
    cells: int32 [L]; cell i of the image shows cell `cells[i]`.
    digits: int32 [V]; token t of the original becomes `digits[t]`. Padding
      and blank are kept.
  """

  cells: jax.Array
  digits: jax.Array


def sample(
  key: jax.Array, inputs=None, labels=None, *, size: int
) -> BoardSymmetry:
  """Draws a symmetry of the Sudoku board, uniform over the group.

  Digits are relabelled; bands, rows in a band, stacks and columns in a stack
  are permuted; if a box is square, the board is transposed half the time.
  """
  del inputs, labels
  height, width = BOXES[size]
  bands, stacks = size // height, size // width
  # A single draw compiles and runs far faster than one per choice.
  draws = jax.random.bits(
    key, (1 + size + bands + size + stacks + size,), jnp.uint32
  )
  flip, digits, *axes = jnp.split(
    draws, np.cumsum([1, size, bands, size, stacks])
  )
  rows = _permute_lines(axes[0], axes[1].reshape(bands, height))
  columns = _permute_lines(axes[2], axes[3].reshape(stacks, width))
  cells = rows[:, None] * size + columns[None, :]
  if height == width:
    cells = jnp.where(flip[0] >> 31, cells.T, cells)
  digits = jnp.concatenate([jnp.arange(2), _permutation(digits) + 2])
  return BoardSymmetry(cells.reshape(-1), digits)


def _permute_lines(group_draws, line_draws):
  """The line shown at each place, int32 [lines], from uint32 draws.

  Groups [G] are permuted, and the lines [G, lines per group] in each.
  """
  group = _permutation(group_draws)[:, None]
  line = _permutation(line_draws)
  return (group * line.shape[-1] + line).reshape(-1)


def _permutation(draws):
  """Turns uint32 draws into permutations along the last axis, int32."""
  # The ranks of the draws. For so few, comparing all pairs is far cheaper than
  # sorting. Of equal draws the earlier has the lower rank.
  count = draws.shape[-1]
  first, second = draws[..., :, None], draws[..., None, :]
  is_tied = first == second
  earlier = np.tril(np.ones((count, count), bool), -1)
  is_tied &= np.broadcast_to(earlier, is_tied.shape)
  before = (second < first) | is_tied
  return before.sum(-1, dtype=jnp.int32)


def apply(symmetry: BoardSymmetry, tokens: jax.Array) -> jax.Array:
  """The image of a grid [L], of the dtype of `tokens`."""
  return symmetry.digits[tokens[symmetry.cells]].astype(tokens.dtype)


def undo(symmetry: BoardSymmetry, tokens: jax.Array) -> jax.Array:
  """The inverse of `apply`."""
  cells, digits = _invert(symmetry.cells), _invert(symmetry.digits)
  return apply(BoardSymmetry(cells, digits), tokens)


def _invert(permutation):
  places = jnp.arange(permutation.shape[0], dtype=permutation.dtype)
  return jnp.zeros_like(permutation).at[permutation].set(places)
