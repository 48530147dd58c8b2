"""The record of Sudoku, and the settings of its datasets."""

import dataclasses
import functools
from typing import ClassVar

from trm_jax.data import checks
from trm_jax.data.csv_rows import Rows
from trm_jax.data.prepared import PuzzleData, PuzzleSource, SlowCheck
from trm_jax.data.sudoku import board, symmetry, text
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.rows import csv_format, is_ambiguous
from trm_jax.data.task import Symmetry, Task


@dataclasses.dataclass(frozen=True)
class SudokuData(PuzzleData):
  """Settings of a Sudoku dataset; "hub" is Sudoku-Extreme.

  Attributes, beside those of `PuzzleData`:
    givens: fewest and most givens of generated puzzles.
    rating: fewest and most guesses that `solver.solve` needs for a generated
      puzzle, where 0 is solved by singles only; None for any.
  """

  size: int = 9
  subsample: int = 1000
  num_test: int = 500
  givens: tuple[int, int] = (24, 30)
  rating: tuple[int, int] | None = None
  hub_size: ClassVar[int] = 9

  def __post_init__(self):
    super().__post_init__()
    # The default is for 9x9, and is used only if puzzles are generated.
    generates = "generate" in (self.train, self.test)
    most = self.size**2 if generates else 81
    checks.require_range(self, "givens", least=0, most=most)
    if self.rating is not None:
      checks.require_range(self, "rating", least=0, most=2**31 - 1)

  def check_size(self) -> None:
    """Raises a `UserError` unless boards of this size exist."""
    board.check_size(self.size)

  @property
  def task(self) -> Task:
    """The task of this dataset."""
    return sudoku_task(self.size)

  @classmethod
  def few(cls, *, size=None, copies=0, source="", **settings):
    """A few puzzles to look at; see `task.Settings`."""
    del copies, source
    size = size or cls.size
    givens = {4: (5, 8), 6: (9, 12)}.get(size, cls.givens)
    return super().few(size=size, givens=givens, **settings)


def _generate(settings: SudokuData, split: str, train: Rows | None, say):
  """Generates a split. Test puzzles avoid the solution grids of training."""
  del say  # `prepare` has announced the work
  is_test = split == "test"
  return generate(
    settings.size,
    settings.num_test if is_test else settings.num_train,
    settings.seed,
    settings.givens,
    settings.rating,
    held_out=is_test,
    avoid={label.tobytes() for label in train.labels} if train else set(),
  )


PUZZLES = PuzzleSource(
  name="sudoku",
  version=2,
  repository="sapientinc/sudoku-extreme",
  hub_rows=3_831_994,
  csv_format=csv_format,
  generate=_generate,
  generator_fields=("num_train", "num_test", "givens", "rating"),
  wait="to check that each has one solution can take some minutes",
  slow_check=SlowCheck(
    is_ambiguous,
    "question: the puzzle has more than one solution; expected exactly one",
    most_rows=20_000,
    unchecked=(
      "are too many to look for second solutions; their answers are legal "
      "and keep the givens"
    ),
  ),
)


@functools.cache
def sudoku_task(size: int) -> Task:
  """The record of Sudoku with 4, 6 or 9 cells along one side."""
  board.check_size(size)
  return Task(
    name="sudoku",
    seq_len=size * size,
    vocab_size=size + 2,
    dataset=PUZZLES.dataset,
    parse=functools.partial(board.parse, size=size),
    render=board.render,
    draw=board.draw,
    is_solution=functools.partial(board.is_solution, size=size),
    augmentation=Symmetry(
      sample=functools.partial(symmetry.sample, size=size),
      apply=symmetry.apply,
      undo=symmetry.undo,
      keys=functools.partial(symmetry.keys, size=size),
    ),
    form="a Sudoku a line or a row a line: digits, with . or 0 for a blank",
    check=board.check_givens,
    layout=text.layout(size),
    from_numbers=functools.partial(board.from_numbers, size=size),
    decode=board.render,
    style=board.style,
    boxes=board.BOXES[size],
  )
