"""What the rest of the project needs to know of a task family."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a dataset, staged in host memory.

  Attributes:
    inputs: uint8 [N, L] question tokens.
    labels: uint8 [N, L] answer tokens; 0 marks a token without a label.
    puzzle_ids: int32 [N], each puzzle's row of the puzzle-embedding table.
  """

  inputs: np.ndarray
  labels: np.ndarray
  puzzle_ids: np.ndarray

  def __len__(self) -> int:
    return len(self.inputs)


@dataclasses.dataclass(frozen=True)
class Task:
  """A task family. Hashable, so that it may be a static argument of `jit`.

  Attributes:
    name: the family's name, as in "sudoku".
    seq_len: tokens a puzzle, L.
    vocab_size: token values, V, the padding token 0 included.
    num_puzzle_ids: rows of the puzzle-embedding table.
    augment: `(key, inputs [L], labels [L]) -> (inputs, labels)`, a random
      symmetry of one puzzle in pure JAX; the caller vmaps it.
    is_solution: `(inputs [..., L], answers [..., L]) -> bool [...]`, whether
      an answer solves its puzzle, judged by the rules and not by a label.
    parse: `str -> uint8 [L]`, a puzzle from one line of text.
    render: `tokens [L] -> str`, the inverse of `parse`.
  """

  name: str
  seq_len: int
  vocab_size: int
  num_puzzle_ids: int
  augment: Callable
  is_solution: Callable
  parse: Callable
  render: Callable
