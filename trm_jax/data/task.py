"""What the rest of the project needs to know of a task family."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a dataset, in host memory.

  Examples are pairs of a question and an answer. A *puzzle* is a set of
  examples that share one row of the puzzle-embedding table, and a *group* is
  a puzzle with its augmented copies, of which a pass over the data shows one.
  In Sudoku all three are the same thing; an ARC task is a group, its copies
  are puzzles, and its pairs of grids are examples.

  Attributes:
    inputs: uint8 [N, S], question tokens of each example.
    labels: uint8 [N, S], answer tokens; 0 marks a token without a label.
    puzzle_ids: int32 [Q], each puzzle's row of the puzzle-embedding table.
    first_puzzle: int32 [G + 1]; group g has puzzles `first_puzzle[g]` to
      `first_puzzle[g + 1] - 1`.
    first_example: int32 [Q], the first example of each puzzle. Copies that
      are made on the device share the examples of their original.
    num_examples: int32 [Q], how many follow it, 1 or more.
    symmetries: uint8 [Q, K], how each puzzle differs from its group's
      original, as `Task.view` takes it; None where there are no copies.
    is_viewed: whether examples are stored as the symmetry of their puzzle
      shows them. Otherwise they are stored as originals, and `Task.view` must
      be applied.
    names: what each group is called, or nothing.
  """

  inputs: np.ndarray
  labels: np.ndarray
  puzzle_ids: np.ndarray
  first_puzzle: np.ndarray
  first_example: np.ndarray
  num_examples: np.ndarray
  symmetries: np.ndarray | None = None
  is_viewed: bool = False
  names: tuple[str, ...] = ()

  @classmethod
  def of_rows(cls, inputs: np.ndarray, labels: np.ndarray) -> "Split":
    """A split in which each row is a puzzle of its own, none has a copy.

    Args:
      inputs: uint8 [N, S].
      labels: uint8 [N, S].

    Returns:
      The split. Every puzzle has id 0.
    """
    count = len(inputs)
    return cls(
      inputs=inputs,
      labels=labels,
      puzzle_ids=np.zeros(count, np.int32),
      first_puzzle=np.arange(count + 1, dtype=np.int32),
      first_example=np.arange(count, dtype=np.int32),
      num_examples=np.ones(count, np.int32),
    )

  def __len__(self) -> int:
    """How many groups there are, G."""
    return len(self.first_puzzle) - 1

  @property
  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """All examples of all puzzles: (example, puzzle), int64 [M] each."""
    counts = self.num_examples.astype(np.int64)
    puzzles = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(puzzles)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    return self.first_example[puzzles] + place, puzzles

  def take(self, groups: np.ndarray, copies: int = 0) -> "Split":
    """Selects groups.

    Args:
      groups: integers [N], numbers of groups.
      copies: how many puzzles to keep of each, the first ones; 0 keeps all.

    Returns:
      A split of these groups. Its examples are shared with this one.
    """
    first, last = self.first_puzzle[groups], self.first_puzzle[groups + 1]
    counts = np.minimum(last - first, copies) if copies else last - first
    ends = np.cumsum(counts)
    puzzles = np.repeat(first - (ends - counts), counts) + np.arange(
      ends[-1] if len(ends) else 0
    )
    return dataclasses.replace(
      self,
      puzzle_ids=self.puzzle_ids[puzzles],
      first_puzzle=np.concatenate([[0], ends]).astype(np.int32),
      first_example=self.first_example[puzzles],
      num_examples=self.num_examples[puzzles],
      symmetries=None if self.symmetries is None else self.symmetries[puzzles],
      names=tuple(self.names[g] for g in groups) if self.names else (),
    )


@dataclasses.dataclass(frozen=True)
class Symmetries:
  """The ways in which a puzzle can be shown without changing what it asks.

  All in pure JAX, one at a time; the caller vmaps them.

  Attributes:
    sample: `key -> symmetry`, any tree of arrays.
    show: `(symmetry, tokens [S]) -> tokens [S]`, a question or an answer.
    undo: `(symmetry, tokens [S]) -> tokens [S]`, the inverse of `show`, for
      tokens of any values.
  """

  sample: Callable
  show: Callable
  undo: Callable


@dataclasses.dataclass(frozen=True)
class Task:
  """A task family. Hashable, so that it may be a static argument of `jit`.

  Attributes:
    name: the family's name, as in "sudoku".
    seq_len: tokens a puzzle, S.
    vocab_size: token values, V, the padding token 0 included.
    augment: `(key, inputs [S], labels [S]) -> (inputs, labels)`, a random
      symmetry of one example in pure JAX; the caller vmaps it. None where
      there is none.
    parse: `str -> uint8 [S]`, a puzzle from text.
    render: `tokens [S] -> str`, the inverse of `parse`.
    draw: `(axes, puzzle, answer=None, label=None)`, onto matplotlib axes;
      with a label, cells where the answer differs from it are marked.
    is_solution: `(inputs [..., S], answers [..., S]) -> bool [...]`, whether
      an answer solves its puzzle, judged by the rules and not by a label.
      None where there are no rules to judge by.
    symmetries: how a puzzle may be shown at inference; None where there are
      no symmetries, or copies take their place.
    view: `(tokens [S], symmetry [K]) -> tokens [S]`, a question or an answer
      as a copy of the puzzle shows it, in pure JAX. None without copies.
    unview: `(tokens [S], symmetry [K]) -> tokens [S]`, any answer to a copy as
      an answer to the original.
    best_metric: the score that chooses the best checkpoint.
  """

  name: str
  seq_len: int
  vocab_size: int
  augment: Callable | None
  parse: Callable
  render: Callable
  draw: Callable
  is_solution: Callable | None = None
  symmetries: Symmetries | None = None
  view: Callable | None = None
  unview: Callable | None = None
  best_metric: str = "exact_accuracy"
