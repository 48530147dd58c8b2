"""The record of ARC, and the settings of its datasets."""

import dataclasses
import functools

from trm_jax.data import checks
from trm_jax.data.arc import builder, grids, names, questions, symmetry
from trm_jax.data.arc.files import WANTED
from trm_jax.data.task import Dataset, Task
from trm_jax.errors import UserError

# Puzzle ids of the reference's datasets of ARC-AGI-1 and 2: up to 1001 for each
# task, without equal copies.
_ARC_1, _ARC_2 = 876_407, 1_191_730


@dataclasses.dataclass(frozen=True)
class ArcData:
  """Settings of an ARC dataset.

  A *source* is a folder with one JSON file per task, searched recursively and
  through links, but not in hidden folders; or a JSON file of a task, of a list
  of tasks, or of tasks by name. The solutions of a file whose name ends in
  challenges.json are in the file beside it whose name ends in solutions.json.

  Attributes:
    train: sources, separated by commas, whose training and test pairs are all
      trained on.
    test: sources whose training pairs are trained on and whose test pairs are
      evaluated.
    num_aug: copies of each task beside the original, with colours permuted
      and grids rotated or reflected. Tasks with many symmetries have fewer.
    seed: the seed of the copies.
    size: cells along one side of the canvas; no grid may be larger.
    only: the names of the tasks to use, separated by commas; "" for all.
    refuse_overlap: whether test tasks in the training set are an error instead
      of a note.
    cache_dir: where prepared datasets are kept; "" is the default of TFDS
      (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
    path: a folder in the reference's layout, used instead of all the above but
      `size`.
  """

  train: str = ""
  test: str = ""
  num_aug: int = 1000
  seed: int = 0
  size: int = grids.MAX_SIZE
  only: str = ""
  refuse_overlap: bool = False
  cache_dir: str = ""
  path: str = ""

  def __post_init__(self):
    checks.convert_fields(self)
    checks.require_whole(self, "num_aug", "seed", least=0)
    checks.require_whole(self, "size", most=grids.MAX_SIZE)
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
  def task(self) -> Task:
    """The task of this dataset."""
    return arc_task(self.size)

  @classmethod
  def few(cls, *, size=None, copies=0, source="", seed=0, cache_dir="", **_):
    """A source's tasks with a few copies each; see `task.Settings`."""
    size = size or cls.size
    return cls(
      test=source, size=size, num_aug=copies, seed=seed, cache_dir=cache_dir
    )


def _items(text: str) -> tuple[str, ...]:
  return tuple(item.strip() for item in text.split(",") if item.strip())


def _expected_size(settings: ArcData) -> tuple[int, int, int]:
  copies = settings.num_aug + 1
  if settings.only:
    tasks = len(settings.only_names)
    return tasks, copies, tasks * copies + 1
  is_second = "ARC-AGI-2" in settings.train + settings.test
  ids = _ARC_2 if is_second else _ARC_1
  tasks = ids // 1000
  return tasks, copies, ids if copies == 1001 else tasks * copies + 1


DATASET = Dataset(
  load=builder.load,
  num_groups=builder.num_groups,
  prepare=builder.prepare,
  identifiers=builder.identifiers,
  expected_size=_expected_size,
  selects=("only",),
)


@functools.cache
def arc_task(size: int = grids.MAX_SIZE) -> Task:
  """The record of ARC with `size` cells along one side of the canvas."""
  return Task(
    name="arc",
    seq_len=size * size,
    vocab_size=grids.FIRST_COLOUR + grids.NUM_COLOURS,
    dataset=DATASET,
    parse=functools.partial(grids.parse, size=size),
    render=grids.render,
    draw=grids.draw,
    augmentation=symmetry.TRANSLATION,
    copies=symmetry.COPIES,
    parse_names=names.parse_names,
    form=questions.FORM,
    read=questions.read,
    in_rows=True,
    from_numbers=grids.from_numbers,
    decode=lambda tokens: grids.decode(tokens).tolist(),
    in_place=False,
    style=grids.style,
    best_metric="pass@2",
  )
