"""Generates Sudoku puzzles with exactly one solution.

Starting from a random full board, givens are removed in random order as long
as the solution stays unique.
"""

import zlib
from collections.abc import Collection, Iterator

import numpy as np

from trm_jax.data.sudoku.board import check_size
from trm_jax.data.sudoku.solver import Bitboard, solve
from trm_jax.errors import UserError

# The settings are infeasible after so many draws outside of the ranges.
MAX_DRAWS = 1000

# No puzzle with fewer givens has a unique solution.
_FEWEST_GIVENS = {4: 4, 6: 8, 9: 17}

_HELD_OUT_EVERY = 8  # one solution grid in 8 is held out


def generate(
  size: int,
  count: int,
  seed: int,
  givens: tuple[int, int],
  rating: tuple[int, int] | None = None,
  held_out: bool = False,
  avoid: Collection[bytes] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Generates different puzzles, each with exactly one solution.

  Puzzle i depends only on the seed and i (a duplicate of an earlier puzzle is
  drawn again), so a larger count extends a smaller one. A fraction of the
  solution grids is held out, so training and held-out puzzles never share a
  solution grid, whatever their counts.

  Args:
    size: cells along one side of the board.
    count: puzzles to make.
    seed: the seed, 0 or more.
    givens: fewest and most givens of a puzzle.
    rating: fewest and most guesses that `solver.solve` needs; None for any.
    held_out: whether to use the held-out solution grids.
    avoid: solution grids (the bytes of their uint8 tokens) not to use.

  Returns:
    inputs: uint8 [count, L] tokens of the puzzles.
    labels: uint8 [count, L] tokens of their solutions.
    ratings: int32 [count], guesses that the solver needs.

  Raises:
    UserError: `MAX_DRAWS` draws gave no new puzzle in these ranges.
  """
  check_size(size)
  if givens[1] < _FEWEST_GIVENS[size]:
    raise UserError(
      f"givens={givens}: a {size}x{size} Sudoku with one solution has at least "
      f"{_FEWEST_GIVENS[size]} givens; raise the upper end."
    )
  puzzles, seen = [], set()
  for index in range(count):
    rng = np.random.default_rng([seed, index, int(held_out)])
    draws = _draws(size, givens, rating, held_out, avoid, rng)
    puzzle = next((p for p in draws if p[0].tobytes() not in seen), None)
    if puzzle is None:
      raise UserError(
        f"givens={givens}, rating={rating}: {MAX_DRAWS} draws gave no further "
        f"{size}x{size} puzzle after {index} of {count}; widen the ranges or "
        f"ask for fewer puzzles."
      )
    seen.add(puzzle[0].tobytes())
    puzzles.append(puzzle)
  inputs, labels, ratings = zip(*puzzles, strict=True)
  return np.stack(inputs), np.stack(labels), np.array(ratings, np.int32)


def _draws(size, givens, rating, held_out, avoid, rng) -> Iterator[tuple]:
  """Yields (puzzle, solution, rating) of the draws in these ranges."""
  board = Bitboard.of(size)
  for _ in range(MAX_DRAWS):
    wanted = int(rng.integers(givens[0], givens[1] + 1))
    solution = _full_board(board, held_out, rng)
    grid = board.tokens(solution).tobytes()
    if _is_held_out(grid) != held_out or grid in avoid:
      continue
    kept = _remove_givens(board, solution, wanted, rng)
    if not givens[0] <= sum(map(int.bit_count, kept)) <= givens[1]:
      continue
    puzzle = np.maximum(board.tokens(kept), 1)
    guesses = solve(puzzle).guesses
    if rating is None or rating[0] <= guesses <= rating[1]:
      yield puzzle, board.tokens(solution), guesses


def _is_held_out(grid: bytes) -> bool:
  return zlib.crc32(grid) % _HELD_OUT_EVERY == 0


def _full_board(board, held_out, rng):
  """Draws a full board, relabelled until it is held out or not as asked."""
  empty = [board.full] * board.size
  (solution,), _ = board.search(empty, limit=1, rng=rng)
  for _ in range(10 * _HELD_OUT_EVERY):
    if _is_held_out(board.tokens(solution).tobytes()) == held_out:
      break
    rng.shuffle(solution)  # relabels the digits
  return solution


def _remove_givens(board, solution, wanted, rng):
  """Removes givens until `wanted` are left or all others are needed."""
  kept = list(solution)
  left = board.size * board.size
  for cell in rng.permutation(left).tolist():
    if left == wanted:
      break
    digit = next(d for d, cells in enumerate(kept) if cells >> cell & 1)
    kept[digit] ^= 1 << cell
    if _is_forced(board, kept, cell, digit):
      left -= 1
    else:
      kept[digit] |= 1 << cell
  return kept


def _is_forced(board, givens, cell, digit):
  """Whether the givens allow no other digit in this cell."""
  others = [
    other
    for other, cells in enumerate(givens)
    if other != digit and not cells & board.peers[cell]
  ]
  if not others:
    return True  # most removals end here, without a search
  boards = board.candidates(givens)
  boards[digit] &= ~(1 << cell)
  found, _ = board.search(boards, limit=1)
  return not found
