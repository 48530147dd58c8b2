"""A Sudoku solver in pure Python, with bit sets.

A search state has one integer per digit, whose bits are the cells where that
digit is still possible. Operations on all cells (such as "which cells have a
single candidate?") then take a few integer operations.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable

import numpy as np

from trm_jax.data.sudoku.board import units


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a search.

  Attributes:
    solutions: solutions found, at most the limit.
    guesses: states in which singles did not help, so the candidates of a cell
      were tried. For a puzzle with one solution (and a limit of 2) the number
      does not depend on the order of trying.
    answer: uint8 [L] tokens of the first solution, or None.
  """

  solutions: int
  guesses: int
  answer: np.ndarray | None


def solve(puzzle: np.ndarray, limit: int = 2) -> Result:
  """Searches a puzzle, tokens [L], for up to `limit` solutions.

  Propagates naked and hidden singles, then branches on a cell with the fewest
  candidates.
  """
  board = Bitboard.of(round(len(puzzle) ** 0.5))
  givens = [0] * board.size
  for cell, token in enumerate(puzzle):
    if token > 1:
      givens[token - 2] |= 1 << cell
  found, guesses = board.search(board.candidates(givens), limit)
  answer = board.tokens(found[0]) if found else None
  return Result(len(found), guesses, answer)


@dataclasses.dataclass(frozen=True)
class Bitboard:
  """Bit sets of one board size, and the search over them.

  Attributes:
    size: cells along one side of the board.
    full: every cell.
    units: each row, column and box.
    peers: for each cell, the other cells of its units.
  """

  size: int
  full: int
  units: tuple[int, ...]
  peers: tuple[int, ...]

  @classmethod
  @functools.cache
  def of(cls, size: int) -> "Bitboard":
    """The bit sets of a size, cached."""
    masks = tuple(
      sum(1 << cell for cell in unit) for unit in units(size).tolist()
    )
    peers = tuple(
      _union(unit for unit in masks if unit >> cell & 1) & ~(1 << cell)
      for cell in range(size * size)
    )
    return cls(size, (1 << size * size) - 1, masks, peers)

  def candidates(self, givens: list[int]) -> list[int]:
    """The possible cells of each digit, from its given cells."""
    empty = self.full & ~_union(givens)
    return [
      (empty | cells) & ~_union(self.peers[cell] for cell in bits(cells))
      for cells in givens
    ]

  def search(
    self, boards: list[int], limit: int, rng: np.random.Generator | None = None
  ) -> tuple[list[list[int]], int]:
    """Finds up to `limit` solutions, as boards, and counts the guesses.

    Boards are the possible cells of each digit; `rng` shuffles the order in
    which digits are tried.
    """
    found, guesses, states = [], 0, [(boards, 0)]
    while states and len(found) < limit:
      boards, settled = states.pop()
      settled = self._propagate(boards, settled)
      if settled is None:
        continue
      if settled == self.full:
        found.append(boards)
        continue
      guesses += 1
      cell = self._most_constrained(boards)
      digits = [digit for digit, board in enumerate(boards) if board & cell]
      if rng is not None:
        rng.shuffle(digits)
      for digit in digits:
        tried = [board & ~cell for board in boards]
        tried[digit] |= cell
        states.append((tried, settled))
    return found, guesses

  def _propagate(self, boards: list[int], settled: int) -> int | None:
    """Propagates naked and hidden singles in place, to the fixed point.

    Takes and returns the settled cells, whose digits are already removed from
    their peers; returns None on a contradiction.
    """
    while True:
      once = twice = 0
      for board in boards:
        twice |= once & board
        once |= board
      if once != self.full:
        return None  # a cell has no candidate
      naked = once & ~twice & ~settled
      if naked:
        for digit, board in enumerate(boards):
          for cell in bits(board & naked):
            board &= ~self.peers[cell]
          boards[digit] = board
        settled |= naked
      elif settled == self.full:
        return settled
      else:
        hidden = self._reduce_hidden_singles(boards, settled)
        if hidden is None:
          return None
        if not hidden:
          return settled

  def _reduce_hidden_singles(self, boards, settled):
    """Removes other digits from a cell if it is a digit's last place in a unit.

    Returns whether there was such a cell, or None if a digit has no place.
    """
    found = False
    for digit in range(self.size):
      board = boards[digit]
      for unit in self.units:
        places = board & unit
        if places & (places - 1):
          continue
        if not places:
          return None
        if places & settled:
          continue
        found = True
        for other in range(self.size):
          if other != digit:
            boards[other] &= ~places
        settled |= places
    return found

  def _most_constrained(self, boards):
    """The first cell with the fewest candidates, of unsettled cells."""
    at_least = [self.full] + [0] * self.size
    for board in boards:
      for count in range(self.size, 0, -1):
        at_least[count] |= at_least[count - 1] & board
    for count in range(2, self.size + 1):
      cells = at_least[count]
      if count < self.size:
        cells &= ~at_least[count + 1]
      if cells:
        return cells & -cells
    raise AssertionError("every cell is settled")

  def tokens(self, boards: list[int]) -> np.ndarray:
    """Converts full boards to uint8 [L] tokens."""
    tokens = np.zeros(self.size * self.size, np.uint8)
    for digit, board in enumerate(boards):
      for cell in bits(board):
        tokens[cell] = digit + 2
    return tokens


def _union(sets: Iterable[int]) -> int:
  return functools.reduce(operator.or_, sets, 0)


def bits(number: int):
  """Yields the indices of the set bits, lowest first."""
  while number:
    lowest = number & -number
    yield lowest.bit_length() - 1
    number ^= lowest
