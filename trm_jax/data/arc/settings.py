"""What an ARC dataset is made of: the `data` section of a config."""

import dataclasses

from trm_jax.data import checks
from trm_jax.data import task as task_lib
from trm_jax.data.arc import grids
from trm_jax.errors import UserError

# The largest side of a grid, and of the canvas it is placed on.
MAX_SIZE = 30

WANTED = (
  "A source is a folder with one json file a task (data/training and "
  "data/evaluation of github.com/fchollet/ARC-AGI or "
  "github.com/arcprize/ARC-AGI-2, corpus of "
  "github.com/victorvikram/ConceptARC), or a file ..._challenges.json of the "
  "Kaggle competitions, beside its ..._solutions.json."
)


@dataclasses.dataclass(frozen=True)
class ArcData:
  """What an ARC dataset is made of.

  A *source* is a folder with one json file a task, searched with all that is
  in it, or a file whose name ends in challenges.json; its solutions are then
  in the file beside it whose name ends in solutions.json.

  Attributes:
    train: the sources, separated by commas, of which everything is trained
      on: training and test pairs.
    test: the sources whose training pairs are trained on and whose test pairs
      are evaluated.
    num_aug: copies of each task beside the original, with colours permuted
      and grids rotated or reflected. A task that looks the same under many of
      them has fewer.
    seed: the seed of the copies.
    size: cells along one side of the canvas; no grid may be larger.
    only: the names of the tasks to take, separated by commas; "" for all.
    refuse_overlap: whether test tasks in the training set are an error;
      otherwise a note tells of them.
    cache_dir: where prepared datasets are kept; "" is the default of TFDS
      (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
    path: a folder in the reference's layout, to be used as it is. If given,
      nothing of the above is read but `size`.
  """

  train: str = ""
  test: str = ""
  num_aug: int = 1000
  seed: int = 0
  size: int = MAX_SIZE
  only: str = ""
  refuse_overlap: bool = False
  cache_dir: str = ""
  path: str = ""

  def __post_init__(self):
    checks.require_text(self, "train", "test", "only", "cache_dir", "path")
    checks.require_whole(self, "num_aug", "seed", least=0)
    checks.require_whole(self, "size", least=1)
    checks.require_flag(self, "refuse_overlap")
    if self.size > MAX_SIZE:
      raise UserError(
        f"size: {self.size}; expected a whole number from 1 to {MAX_SIZE}."
      )
    if not (self.path or self.train_sources or self.test_sources):
      raise UserError(
        f"train, test: both are empty; give at least one of them a source. "
        f"{WANTED}"
      )

  @property
  def train_sources(self) -> tuple[str, ...]:
    """The sources of `train`."""
    return _items(self.train)

  @property
  def test_sources(self) -> tuple[str, ...]:
    """The sources of `test`."""
    return _items(self.test)

  @property
  def only_names(self) -> tuple[str, ...]:
    """The names of `only`."""
    return _items(self.only)

  @property
  def task(self) -> task_lib.Task:
    """The task that the data belongs to."""
    return grids.task(self.size)


def _items(text: str) -> tuple[str, ...]:
  return tuple(item.strip() for item in text.split(",") if item.strip())
