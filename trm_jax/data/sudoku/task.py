"""The record of Sudoku, and the settings of its datasets."""

import dataclasses
import functools

from trm_jax.data import checks
from trm_jax.data.csv_rows import Rows
from trm_jax.data.prepared import Puzzles, SlowCheck, few_generated
from trm_jax.data.sudoku import board, symmetry
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.rows import csv_format, is_ambiguous
from trm_jax.data.task import Symmetry, Task


@dataclasses.dataclass(frozen=True)
class SudokuData:
  """What a Sudoku dataset is made of.

  Attributes:
    size: cells along one side of the board: 4, 6 or 9.
    train: "hub" (Sudoku-Extreme from the Hugging Face hub), "generate", the
      path of a csv file, or "" for no such split.
    test: the same, for the test split.
    subsample: training rows to keep, chosen by the seed; 0 keeps all.
    min_rating: rows of files rated lower are left out, in both splits.
    seed: the seed of the subsample and of the generator.
    num_train: training puzzles to generate.
    num_test: test puzzles to generate.
    givens: fewest and most givens of generated puzzles.
    rating: fewest and most guesses that a generated puzzle needs of our
      solver, where 0 is solved by singles alone; None for any.
    skip_bad_rows: whether bad rows of a csv file are left out with a warning
      instead of refusing the file.
    cache_dir: where prepared datasets are kept; "" is the default of TFDS
      (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
    path: a folder in the reference's layout, to be used as it is. If given,
      nothing of the above is read but `size`.
  """

  size: int = 9
  train: str = "hub"
  test: str = "hub"
  subsample: int = 1000
  min_rating: int = 0
  seed: int = 0
  num_train: int = 1000
  num_test: int = 500
  givens: tuple[int, int] = (24, 30)
  rating: tuple[int, int] | None = None
  skip_bad_rows: bool = False
  cache_dir: str = ""
  path: str = ""

  def __post_init__(self):
    checks.convert_fields(self)
    board.check_size(self.size)
    checks.require_whole(self, "subsample", "min_rating", "seed", least=0)
    checks.require_whole(self, "num_train", "num_test", least=1)
    checks.require_source(self, hub_size=9)
    # The default fits 9x9 only, and is read only where puzzles are generated.
    generates = "generate" in (self.train, self.test)
    most = self.size**2 if generates else 81
    checks.require_range(self, "givens", least=0, most=most)
    if self.rating is not None:
      checks.require_range(self, "rating", least=0, most=2**31 - 1)

  @property
  def task(self) -> Task:
    """The task that the data belongs to."""
    return sudoku_task(self.size)

  @classmethod
  def few(cls, size=None, split="test", count=1, **settings) -> "SudokuData":
    """A few puzzles to look at; see `task.Settings`."""
    size = size or cls.size
    givens = {4: (5, 8), 6: (9, 12)}.get(size, cls.givens)
    made = few_generated(split, count, settings)
    return cls(size=size, givens=givens, **made)


def _generate(settings: SudokuData, split: str, train: Rows | None, say):
  """Generates a split. Test puzzles avoid the solution grids of training."""
  del say  # was called before
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


PUZZLES = Puzzles(
  name="sudoku",
  version=1,
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
  """The record of one size: 4, 6 or 9 cells along a side.

  Raises:
    UserError: there is no board of this size.
  """
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
    ),
    form="a Sudoku a line: digits, with . or 0 for a blank",
    check=board.check_givens,
    comment="#",
    from_numbers=functools.partial(board.from_numbers, size=size),
    decode=board.render,
    style=board.style,
    boxes=board.BOXES[size],
  )
