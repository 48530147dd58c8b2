"""What a Sudoku dataset is made of: the `data` section of a config."""

import dataclasses

from trm_jax.data.sudoku import geometry
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

  def __post_init__(self):
    geometry.check_size(self.size)
    for name in ("train", "test", "cache_dir"):
      value = getattr(self, name)
      if not isinstance(value, str):
        raise UserError(f"{name}: {value!r} is not text; expected a path.")
    if not self.train and not self.test:
      raise UserError(
        "train, test: both are empty; give at least one of them a csv path, "
        "'generate' or 'hub'."
      )
    if "hub" in (self.train, self.test) and self.size != 9:
      raise UserError(
        f"size: {self.size}, but the puzzles of the hub are 9x9; use size=9, "
        f"or set train and test to 'generate' or to csv paths."
      )
    for name in ("subsample", "min_rating", "seed"):
      self._check_whole(name, 0)
    for name in ("num_train", "num_test"):
      self._check_whole(name, 1)
    # The default fits 9x9 only, but nobody reads it unless they generate.
    generates = "generate" in (self.train, self.test)
    self._check_range("givens", self.size**2 if generates else 81)
    if self.rating is not None:
      self._check_range("rating", 2**31 - 1)
    if not isinstance(self.skip_bad_rows, bool):
      raise UserError(
        f"skip_bad_rows: {self.skip_bad_rows!r}; expected True or False."
      )

  def _check_whole(self, name, least):
    value = getattr(self, name)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value < 2**31:
      raise UserError(
        f"{name}: {value!r}; expected a whole number of {least} or more."
      )

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
