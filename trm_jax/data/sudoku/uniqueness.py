"""Finds puzzles with a second solution, thousands at a time.

A state is a puzzle with candidates struck; one array holds many, with the
states along the last axis so that numpy's inner loops run over them.
"""

import numpy as np

from trm_jax.data.sudoku import geometry

# States advanced together: enough to hide numpy's overhead, few enough for
# the arrays to stay in cache.
_CHUNK = 2048

# Candidates are [digit, band, row in band, stack, column in stack, state].
# Along each of these axes exactly one candidate is true: the digits of a
# cell, and the cells of a row, of a column and of a box for a digit.
_CONSTRAINTS = ((0,), (3, 4), (1, 2), (2, 4))


def has_second_solution(
  inputs: np.ndarray, labels: np.ndarray, *, size: int
) -> np.ndarray:
  """Tells which puzzles have a solution other than their label.

  Args:
    inputs: uint8 [N, L] tokens of the puzzles.
    labels: uint8 [N, L] tokens of one solution of each.
    size: cells along one side of the board.

  Returns:
    bool [N].
  """
  found = np.zeros(len(inputs), bool)
  digits = np.arange(2, size + 2, dtype=np.uint8)[:, None]
  # A stack of (candidates, owners): depth first, so it stays short.
  for begin in range(0, len(inputs), _CHUNK):
    some = inputs[begin : begin + _CHUNK]
    candidates = (digits[..., None] == some.T) | (some.T <= 1)
    states = [(candidates, np.arange(begin, begin + len(some)))]
    while states:
      candidates, owners = _gather(states, found)
      candidates, owners = _propagate(candidates, owners, size)
      counts = candidates.sum(0, dtype=np.uint8)
      is_full = (counts == 1).all(0)
      answers = candidates[..., is_full].argmax(0).T + 2
      differs = (answers != labels[owners[is_full]]).any(-1)
      found[owners[is_full][differs]] = True
      undecided = ~is_full & ~found[owners]
      if undecided.any():
        states.append(
          _branch(
            candidates.compress(undecided, -1),
            counts[:, undecided],
            owners[undecided],
          )
        )
  return found


def _gather(states, found):
  """Takes a chunk of states off the stack, without the decided puzzles."""
  candidates, owners = states.pop()
  while states and len(owners) < _CHUNK:
    more, more_owners = states.pop()
    candidates = np.concatenate([more, candidates], -1)
    owners = np.concatenate([more_owners, owners])
  if len(owners) > _CHUNK:
    states.append((candidates[..., :-_CHUNK], owners[:-_CHUNK]))
    candidates, owners = candidates[..., -_CHUNK:], owners[-_CHUNK:]
  open_ = ~found[owners]
  return candidates.compress(open_, -1), owners[open_]


def _propagate(candidates, owners, size):
  """Follows singles to the fixed point and drops states that contradict."""
  height, width = geometry.BOXES[size]
  board = (size, size // height, height, size // width, width)
  live = np.ascontiguousarray(candidates).reshape(*board, -1)
  dead = np.zeros(len(owners), bool)
  settled, settled_owners = [], []
  while len(owners):
    placed = np.zeros_like(live)
    for axes in _CONSTRAINTS:
      count = live.sum(axes, dtype=np.uint8, keepdims=True)
      dead |= (count == 0).any((0, 1, 2, 3, 4))
      placed |= live & (count == 1)
    after = live.copy()
    for axes in _CONSTRAINTS:
      count = placed.sum(axes, dtype=np.uint8, keepdims=True)
      dead |= (count > 1).any((0, 1, 2, 3, 4))
      after &= placed | (count == 0)
    still = (after == live).all((0, 1, 2, 3, 4))
    live = after
    # Settled states are harmless here, and taking them out is not free.
    if 2 * (still | dead).sum() < len(owners):
      continue
    settled.append(live.compress(still & ~dead, -1))
    settled_owners.append(owners[still & ~dead])
    live = live.compress(~still & ~dead, -1)
    owners = owners[~still & ~dead]
    dead = np.zeros(len(owners), bool)
  shape = (size, size * size)
  if not settled:
    return candidates.reshape(*shape, -1), owners
  settled = np.concatenate(settled, -1)
  return settled.reshape(*shape, -1), np.concatenate(settled_owners)


def _branch(candidates, counts, owners):
  """Splits each state by the candidates of a cell that has fewest."""
  pressed = np.where(counts > 1, counts, 255).argmin(0)
  state = np.arange(len(owners))
  choices = candidates[:, pressed, state]  # [digit, state]
  digit, parent = np.nonzero(choices)
  children = candidates.take(parent, -1)
  child = np.arange(len(parent))
  children[:, pressed[parent], child] = False
  children[digit, pressed[parent], child] = True
  return children, owners[parent]
