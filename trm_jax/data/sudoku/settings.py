"""What a Sudoku dataset is made of: the `data` section of a config."""

import dataclasses

from trm_jax.data import checks
from trm_jax.data import task as task_lib
from trm_jax.data.sudoku import board, geometry
from trm_jax.errors import UserError


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
    geometry.check_size(self.size)
    checks.require_text(self, "train", "test", "cache_dir", "path")
    checks.require_whole(self, "subsample", "min_rating", "seed", least=0)
    checks.require_whole(self, "num_train", "num_test", least=1)
    checks.require_flag(self, "skip_bad_rows")
    if not self.path:
      checks.require_source(self, hub_size=9)
    # The default fits 9x9 only, but nobody reads it unless they generate.
    generates = "generate" in (self.train, self.test)
    self._check_range("givens", self.size**2 if generates else 81)
    if self.rating is not None:
      self._check_range("rating", 2**31 - 1)

  @property
  def task(self) -> task_lib.Task:
    """The task that the data belongs to."""
    return board.task(self.size)

  def _check_range(self, name, most):
    value = getattr(self, name)
    try:
      low, high = value
      is_range = 0 <= low <= high <= most
    except (TypeError, ValueError):
      is_range = False
    if not is_range or not all(isinstance(end, int) for end in value):
      raise UserError(
        f"{name}: {value!r}; expected two whole numbers, lowest first, from 0 "
        f"to {most}."
      )
    object.__setattr__(self, name, (low, high))  # a list would not be hashable
