"""What a maze dataset is made of: the `data` section of a config."""

import dataclasses

from trm_jax.data import checks
from trm_jax.data import task as task_lib
from trm_jax.data.maze import grid
from trm_jax.errors import UserError

# The size of the mazes of the hub.
_HUB_SIZE = 30


@dataclasses.dataclass(frozen=True)
class MazeData:
  """What a maze dataset is made of.

  Attributes:
    size: cells along one side of a maze, 3 or more.
    train: "hub" (maze-30x30-hard-1k from the Hugging Face hub), "generate",
      the path of a csv file, or "" for no such split.
    test: the same, for the test split.
    subsample: training rows to keep, chosen by the seed; 0 keeps all.
    min_rating: rows of files rated lower are left out, in both splits.
    seed: the seed of the subsample and of the generator.
    num_train: training mazes to generate.
    num_test: test mazes to generate.
    wall_density: lowest and highest chance of a cell to be a wall, in
      generated mazes; each maze draws its own.
    min_length: cells on the shortest paths of generated mazes, start and goal
      included, at least; those of the hub have 110 or more.
    unique: whether generated mazes have one shortest path only.
    skip_bad_rows: whether bad rows of a csv file are left out with a warning
      instead of refusing the file.
    cache_dir: where prepared datasets are kept; "" is the default of TFDS
      (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
    path: a folder in the reference's layout, to be used as it is. If given,
      nothing of the above is read but `size`.
  """

  size: int = _HUB_SIZE
  train: str = "hub"
  test: str = "hub"
  subsample: int = 0
  min_rating: int = 0
  seed: int = 0
  num_train: int = 1000
  num_test: int = 1000
  wall_density: tuple[float, float] = (0.3, 0.5)
  min_length: int = 110
  unique: bool = False
  skip_bad_rows: bool = False
  cache_dir: str = ""
  path: str = ""

  def __post_init__(self):
    checks.require_whole(self, "size", least=3)
    checks.require_text(self, "train", "test", "cache_dir", "path")
    checks.require_whole(self, "subsample", "min_rating", "seed", least=0)
    checks.require_whole(self, "num_train", "num_test", least=1)
    checks.require_whole(self, "min_length", least=2)
    checks.require_flag(self, "unique", "skip_bad_rows")
    if not self.path:
      checks.require_source(self, hub_size=_HUB_SIZE)
    self._check_density()

  @property
  def task(self) -> task_lib.Task:
    """The task that the data belongs to."""
    return grid.task(self.size)

  def _check_density(self):
    try:
      low, high = (float(end) for end in self.wall_density)
      is_range = 0 <= low <= high < 1
    except (TypeError, ValueError):
      is_range = False
    if not is_range:
      raise UserError(
        f"wall_density: {self.wall_density!r}; expected two numbers, lowest "
        f"first, from 0 to below 1."
      )
    object.__setattr__(self, "wall_density", (low, high))
