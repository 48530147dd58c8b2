"""Generates Sudoku puzzles with exactly one solution.

A full board is drawn at random, then givens are removed in random order for
as long as the solution stays the only one.
"""

import zlib
from collections.abc import Collection, Iterator

import numpy as np

from trm_jax.data.sudoku.board import check_size
from trm_jax.data.sudoku.solver import Bitboard, solve
from trm_jax.errors import UserError

# Draws that may miss the wanted ranges before they count as infeasible.
MAX_DRAWS = 1000

# No puzzle with fewer givens has a single solution.
_FEWEST_GIVENS = {4: 4, 6: 8, 9: 17}

# One solution grid in so many belongs to the held-out puzzles.
_HELD_OUT_FRACTION = 8


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

  Puzzle i depends on the seed and i only (and, should it repeat an earlier
  one, is drawn again), so a larger count extends a smaller one. A fraction of
  the solution grids is held out: training and held-out puzzles never have a
  grid in common, whatever their counts.

  Args:
    size: cells along one side of the board.
    count: puzzles to make.
    seed: the seed, 0 or more.
    givens: fewest and most givens of a puzzle.
    rating: fewest and most guesses that `solver.solve` needs; None for any.
    held_out: whether to draw from the solution grids that are held out.
    avoid: solution grids (the bytes of their uint8 tokens) not to use.

  Returns:
    inputs: uint8 [count, L] tokens of the puzzles.
    labels: uint8 [count, L] tokens of their solutions.
    ratings: int32 [count], guesses that the solver needs.

  Raises:
    UserError: no such puzzle turned up in `MAX_DRAWS` draws.
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
  """Yields (puzzle, solution, rating) of the draws that are in range."""
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
  return zlib.crc32(grid) % _HELD_OUT_FRACTION == 0


def _full_board(board, held_out, rng):
  """Draws a full board, held out or not if relabelling can bring it about."""
  empty = [board.full] * board.size
  (solution,), _ = board.search(empty, limit=1, rng=rng)
  for _ in range(10 * _HELD_OUT_FRACTION):
    if _is_held_out(board.tokens(solution).tobytes()) == held_out:
      break
    rng.shuffle(solution)  # a new name for each digit
  return solution


def _remove_givens(board, solution, wanted, rng):
  """Removes givens until `wanted` are left or none can go."""
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
  """Whether the givens admit no other digit in this cell."""
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
