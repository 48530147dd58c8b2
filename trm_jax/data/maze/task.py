"""The record of mazes, and the settings of their datasets."""

import dataclasses
import functools
from typing import ClassVar

from trm_jax.data import checks, dihedral
from trm_jax.data.csv_rows import Rows
from trm_jax.data.maze import grid, paths
from trm_jax.data.maze.generate import generate
from trm_jax.data.maze.rows import csv_format
from trm_jax.data.prepared import PuzzleData, PuzzleSource
from trm_jax.data.task import Task
from trm_jax.data.text import Layout
from trm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MazeData(PuzzleData):
  """Settings of a maze dataset; "hub" is maze-30x30-hard-1k.

  Attributes, beside those of `PuzzleData`:
    wall_density: lowest and highest probability of a cell to be a wall, in
      generated mazes; each maze draws its own.
    min_length: least cells on the shortest paths of generated mazes, including
      start and goal; those of the hub have 110 or more.
    unique: whether generated mazes have only one shortest path.
  """

  size: int = 30
  wall_density: tuple[float, float] = (0.3, 0.5)
  min_length: int = 110
  unique: bool = False
  hub_size: ClassVar[int] = 30

  def __post_init__(self):
    super().__post_init__()
    checks.require_whole(self, "min_length", least=2)
    checks.require_range(self, "wall_density", least=0, most=0.999)

  def check_size(self) -> None:
    """Raises a `UserError` if boards are too small for a maze."""
    checks.require_whole(self, "size", least=3)

  @property
  def task(self) -> Task:
    """The task of this dataset."""
    return maze_task(self.size)

  @classmethod
  def few(cls, *, size=None, copies=0, source="", **settings):
    """A few mazes to look at; see `task.Settings`."""
    del copies, source
    size = size or cls.size
    length = max(2, min(size**2 // 8, cls.min_length))
    return super().few(size=size, min_length=length, **settings)


def _generate(settings: MazeData, split: str, train: Rows | None, say):
  """Generates a split. Test mazes avoid those of training and their images."""
  is_test = split == "test"
  train_mazes = train.inputs if train else ()
  return generate(
    settings.size,
    settings.num_test if is_test else settings.num_train,
    settings.seed,
    wall_density=settings.wall_density,
    min_length=settings.min_length,
    unique=settings.unique,
    held_out=is_test,
    avoid={dihedral.canonical(maze, settings.size) for maze in train_mazes},
    say=say,
  )


PUZZLES = PuzzleSource(
  name="maze",
  version=2,
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
  """The record of mazes with `size` cells along one side."""
  return Task(
    name="maze",
    seq_len=size * size,
    vocab_size=grid.PATH + 1,
    dataset=PUZZLES.dataset,
    parse=functools.partial(grid.parse, size=size),
    render=grid.render,
    draw=grid.draw,
    is_solution=functools.partial(grid.is_valid, size=size),
    augmentation=dihedral.symmetry(size),
    form="a maze of '# SG', a line or as many lines as it has rows",
    check=_check,
    layout=Layout(side=size),
    in_rows=True,
    decode=grid.render,
    style=grid.style,
  )


def _check(tokens) -> None:
  if (tokens == grid.PATH).any():
    raise UserError("the maze holds 'o', a path; expected the bare maze.")
  paths.shortest_path(tokens)  # raises if there is none
