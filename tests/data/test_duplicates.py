"""Notes on puzzles that stand in a dataset more than once."""

import itertools

import jax
import numpy as np
import pytest
from conftest import DATA
from toys.latin import LatinData, latin_task

from trm_jax.data import datasets, dihedral, duplicates, folder_writer
from trm_jax.data.maze.task import maze_task
from trm_jax.data.sudoku import generate, symmetry
from trm_jax.data.sudoku.board import BOXES
from trm_jax.data.sudoku.task import SudokuData, sudoku_task
from trm_jax.data.task import Split


def board(seed, size=5):
  return np.random.default_rng(seed).integers(1, 5, size**2, np.uint8)


def test_each_way_to_repeat_is_counted():
  rows = np.stack([board(n) for n in range(6)])
  turned = rows[:, dihedral.dihedral_cells(5)[3]]
  splits = {
    "train": np.concatenate([rows[:4], rows[:1], turned[:1]]),
    "test": np.stack([rows[4], rows[1], turned[2], rows[5], turned[5]]),
  }
  assert duplicates.notes(splits, latin_task()) == [
    "overlap: 1 of 5 test puzzles stand in the training set (numbers 1, "
    "counted from 0); scores on them tell nothing of new puzzles.",
    "duplicates: 1 of 6 puzzles of train repeat an earlier one (numbers 4, "
    "counted from 0).",
  ]
  assert duplicates.notes(splits, maze_task(5)) == [
    "overlap: 2 of 5 test puzzles stand in the training set, 1 of them under a "
    "symmetry of the task (numbers 1, 2, counted from 0); scores on them tell "
    "nothing of new puzzles.",
    "duplicates: 2 of 6 puzzles of train repeat an earlier one, 1 of them "
    "under a symmetry of the task (numbers 4, 5, counted from 0).",
    "duplicates: 1 of 5 puzzles of test repeat an earlier one, 1 of them under "
    "a symmetry of the task (numbers 4, counted from 0).",
  ]
  assert duplicates.notes({"test": rows}, maze_task(5)) == []


def test_every_task_has_notes_and_keeps_them(tmp_path):
  # Where nothing is kept, in a folder, and where the dataset is.
  (note,) = datasets.prepare(LatinData(puzzles=2000, blanks=0, test=""), print)
  assert note.startswith("duplicates: 1,988 of 2,000 puzzles of train repeat")
  rows = generate.generate(4, 3, seed=0, givens=(5, 8))[0][[0, 1, 0]]
  split = Split.of_rows(rows, rows)
  task = sudoku_task(4)
  folder_writer.write(tmp_path / "f", {"train": split}, ["<blank>"], task)
  data = SudokuData(size=4, path=str(tmp_path / "f"))
  (note,) = datasets.prepare(data, print)
  assert note.startswith("duplicates: ")
  sample = str(DATA / "sudoku_sample.csv")
  data = SudokuData(
    train=sample, test=sample, subsample=0, cache_dir=str(tmp_path / "c")
  )
  notes = datasets.prepare(data, print)
  assert len(notes) == 1 and notes[0].startswith("overlap: 40 of 40 test puzz")
  assert datasets.prepare(data, print) == notes


# Sudoku.


@pytest.mark.parametrize(
  ("size", "givens"), [(4, (5, 8)), (6, (9, 16)), (9, (24, 40))]
)
def test_images_of_sudoku_have_equal_keys(size, givens):
  puzzles = generate.generate(size, 60, seed=1, givens=givens)[0]
  draws = jax.random.split(jax.random.key(0), len(puzzles))
  symmetries = jax.vmap(lambda key: symmetry.sample(key, size=size))(draws)
  images = np.asarray(jax.vmap(symmetry.apply)(symmetries, puzzles))
  keys = symmetry.keys(np.concatenate([puzzles, images]), size).reshape(2, -1)
  found = (keys[0] == keys[1]).mean()
  assert found == 1 if size == 9 else found > 0.5
  blanked = puzzles.copy()
  blanked[np.arange(60), (puzzles > 1).argmax(1)] = 1
  both = symmetry.keys(np.concatenate([puzzles, blanked]), size)
  if size == 9:
    assert len(np.unique(both)) == 120


def all_images(size):
  """Every arrangement of the cells by a symmetry of the board."""
  height, width = BOXES[size]

  def lines(count, each):
    orders = list(itertools.permutations(range(each)))
    for bands in itertools.permutations(range(count)):
      for inner in itertools.product(orders, repeat=count):
        pairs = zip(bands, inner, strict=True)
        yield [band * each + line for band, order in pairs for line in order]

  cells = np.arange(size**2).reshape(size, size)
  for rows in lines(size // height, height):
    for columns in lines(size // width, width):
      image = cells[rows][:, columns]
      yield image.reshape(-1)
      if height == width:
        yield image.T.reshape(-1)


def relabelled(grids):
  """Digits renamed in the order of their appearance."""
  for grid in grids:
    names = {1: 1}
    yield bytes(names.setdefault(int(t), len(names) + 1) for t in grid)


def test_equal_keys_mean_images_of_each_other():
  arrangements = np.stack(list(all_images(4)))
  assert len(arrangements) == 128
  random = np.random.default_rng(0)
  puzzles = np.where(
    random.random((400, 16)) < 0.4, random.integers(2, 6, (400, 16)), 1
  ).astype(np.uint8)
  puzzles[0] = 1
  keys = symmetry.keys(puzzles, 4)
  exact = [min(relabelled(puzzle[arrangements])) for puzzle in puzzles]
  forms = {}
  for key, form in zip(keys.tolist(), exact, strict=True):
    assert forms.setdefault(key, form) == form
  assert len(set(exact)) <= len(forms) < len(puzzles)
