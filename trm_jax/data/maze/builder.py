"""Maze datasets: the hub's, csv files and our own generator."""

import numpy as np
from absl import logging

from trm_jax.data import prepared
from trm_jax.data import task as task_lib
from trm_jax.data.csv_rows import Rows
from trm_jax.data.dihedral import canonical
from trm_jax.data.maze.generate import generate
from trm_jax.data.maze.rows import read_csv
from trm_jax.data.maze.settings import MazeData


def prepare(settings: MazeData, say: prepared.Say = logging.info) -> list[str]:
  """Makes the dataset, if it is not there yet: `prepared.prepare`."""
  return prepared.prepare(_FAMILY, settings, say)


def num_groups(settings: MazeData, split: str) -> int:
  """Counts the mazes of a split: `prepared.num_groups`."""
  return prepared.num_groups(_FAMILY, settings, split)


def load(
  settings: MazeData, split: str, groups: np.ndarray | None = None
) -> task_lib.Split:
  """Stages a split in host memory: `prepared.load`."""
  return prepared.load(_FAMILY, settings, split, groups)


def identifiers(settings: MazeData) -> list[str]:
  """The name of each puzzle id: no maze is known by name."""
  del settings
  return ["<blank>"]


def _read(settings, path):
  return read_csv(path, settings.size, settings.skip_bad_rows)


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
    avoid={canonical(maze, settings.size) for maze in trained},
    say=say,
  )


_FAMILY = prepared.Family(
  name="maze",
  version=1,
  repository="sapientinc/maze-30x30-hard-1k",
  read=_read,
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
