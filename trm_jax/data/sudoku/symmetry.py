"""Symmetries of the Sudoku board; see `task.Symmetry`."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data.hashes import factors, hash_rows, mix
from trm_jax.data.sudoku.board import BLANK, BOXES


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


_ROUNDS = 5  # of `keys`; four tell all cells of nearly all puzzles apart
_KEYED = 4096  # puzzles at a time, to stay in the cache


def keys(puzzles: np.ndarray, size: int) -> np.ndarray:
  """Hashes, uint64 [N], of puzzles [N, L]; see `task.Symmetry.keys`.

  Colour refinement: each cell starts with whether it is given, and in each
  round hashes the cells in its row, column and box and those with its digit. If
  all cells of a puzzle differ before the last round, that round describes the
  puzzle up to its symmetries, and so does the hash of its cells. The few other
  puzzles, such as an empty board, get a hash of their tokens.
  """
  found, _ = _refined(puzzles, size, rounds=1)  # tells most puzzles apart
  _, group, count = np.unique(found, return_inverse=True, return_counts=True)
  alike = count[group] > 1
  refined, is_exact = _refined(puzzles[alike], size, _ROUNDS)
  found[alike] = np.where(is_exact, refined, hash_rows(puzzles[alike]))
  return found


def _refined(puzzles, size, rounds):
  """Hashes after some rounds, and whether all cells differed before the last.

  uint64 [N] and bool [N].
  """
  found, is_exact = (
    np.empty(len(puzzles), np.uint64),
    np.empty(len(puzzles), bool),
  )
  for begin in range(0, len(puzzles), _KEYED):
    some = slice(begin, begin + _KEYED)
    tokens = puzzles[some]
    colours = (tokens > BLANK).astype(np.uint64)
    for number in range(rounds):
      if number == rounds - 1:
        ordered = np.sort(colours, axis=1)
        is_exact[some] = (ordered[:, 1:] != ordered[:, :-1]).all(1)
      colours = _refine(colours, tokens, size)
    found[some] = mix(colours).sum(1, dtype=np.uint64)
  return found, is_exact


def _refine(colours, tokens, size):
  """The colours of cells after one more round, uint64 [N, L]."""
  count, height, width = len(colours), *BOXES[size]
  own, row, column, box, digit = factors(5)
  if height == width:
    column = row  # as the board may be transposed
  mixed = mix(colours + np.uint64(1))
  shape = (count, size // height, height, size // width, width)
  boxes = mixed.reshape(shape)
  sums = (
    mix(boxes.sum((2, 4), keepdims=True) ^ box)
    + mix(boxes.sum((3, 4), keepdims=True) ^ row)
    + mix(boxes.sum((1, 2), keepdims=True) ^ column)
  ).reshape(mixed.shape)
  # Sums of both halves are exact in float64.
  places = tokens + np.arange(count)[:, None] * (size + 2)
  halves = [
    np.bincount(places.ravel(), half.ravel().astype(float), count * (size + 2))
    for half in (mixed >> np.uint64(32), mixed & np.uint64(2**32 - 1))
  ]
  high, low = (half.astype(np.uint64) for half in halves)
  of_digit = mix(((high << np.uint64(32)) + low) ^ digit)
  return mix(sums + of_digit[places] + mixed * own)
