"""The record of mazes, and the settings of their datasets."""

import dataclasses
import functools

from trm_jax.data import checks, dihedral
from trm_jax.data.csv_rows import Rows
from trm_jax.data.maze import grid, paths
from trm_jax.data.maze.generate import generate
from trm_jax.data.maze.rows import csv_format
from trm_jax.data.prepared import Puzzles, few_generated
from trm_jax.data.task import Task
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
    checks.convert_fields(self)
    checks.require_whole(self, "size", least=3)
    checks.require_whole(self, "subsample", "min_rating", "seed", least=0)
    checks.require_whole(self, "num_train", "num_test", least=1)
    checks.require_whole(self, "min_length", least=2)
    checks.require_source(self, hub_size=_HUB_SIZE)
    checks.require_range(self, "wall_density", least=0, most=0.999)

  @property
  def task(self) -> Task:
    """The task that the data belongs to."""
    return maze_task(self.size)

  @classmethod
  def few(cls, size=None, split="test", count=1, **settings) -> "MazeData":
    """A few mazes to look at; see `task.Settings`."""
    size = size or cls.size
    length = max(2, min(size**2 // 8, cls.min_length))
    made = few_generated(split, count, settings)
    return cls(size=size, min_length=length, **made)


def _generate(settings: MazeData, split: str, train: Rows | None, say):
  """Generates a split. Test mazes avoid those of training and their images."""
  is_test = split == "test"
  trained = train.inputs if train else ()
  return generate(
    settings.size,
    settings.num_test if is_test else settings.num_train,
    settings.seed,
    wall_density=settings.wall_density,
    min_length=settings.min_length,
    unique=settings.unique,
    held_out=is_test,
    avoid={dihedral.canonical(each, settings.size) for each in trained},
    say=say,
  )


PUZZLES = Puzzles(
  name="maze",
  version=1,
  repository="sapientinc/maze-30x30-hard-1k",
  hub_rows=1000,
  csv_format=csv_format,
  generate=_generate,
  generator_fields=(
    "num_train",
    "num_test",
    "wall_density",
    "min_length",
    "unique",
  ),
  wait="this can take a minute",
)


@functools.cache
def maze_task(size: int) -> Task:
  """The record of mazes with so many cells along a side."""
  return Task(
    name="maze",
    seq_len=size * size,
    vocab_size=len(grid.TOKENS) + 1,
    dataset=PUZZLES.dataset,
    parse=functools.partial(grid.parse, size=size),
    render=grid.render,
    draw=grid.draw,
    is_solution=functools.partial(grid.is_valid, size=size),
    augmentation=dihedral.symmetry(size),
    form="a maze of '# SG', a line or as many lines as it has rows",
    check=_check,
    in_rows=True,
    decode=grid.render,
    style=grid.style,
  )


def _check(tokens) -> None:
  if (tokens == grid.PATH).any():
    raise UserError("the maze holds 'o', a path; expected the bare maze.")
  paths.shortest_path(tokens)  # raises if there is none
