import dataclasses
import gzip
import pathlib

import numpy as np
import pytest
from test_maze import copies

from trm_jax.data import csv_rows, datasets, dihedral, prepared
from trm_jax.data.maze import grid
from trm_jax.data.maze.rows import csv_format
from trm_jax.data.maze.task import PUZZLES, MazeData, maze_task
from trm_jax.errors import UserError

DATA = pathlib.Path(__file__).parent.parent / "recorded"
load, num_groups, prepare = PUZZLES.load, PUZZLES.num_groups, PUZZLES.prepare
SAMPLE = DATA / "maze_sample.csv"
NUM_SAMPLE = 20
HEADER = "source,question,answer,rating"
QUESTION = "S #" + "#  " + "  G"
ANSWER = "So#" + "#o " + " oG"
GOOD = f"made,{QUESTION},{ANSWER},5"


def read_csv(path, size, skip_bad_rows=False):
  return csv_rows.read(path, csv_format(size), skip_bad_rows)


@pytest.fixture
def write(tmp_path):
  """Writes a 3x3 csv file with these rows below the header."""

  def write(*lines, name="rows.csv"):
    path = tmp_path / name
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return str(path)

  return write


@pytest.fixture
def settings(tmp_path):
  return MazeData(train=str(SAMPLE), test="", cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reference():
  """What the reference makes of the sample."""
  with np.load(DATA / "maze_sample_reference.npz") as arrays:
    return arrays["inputs"], arrays["labels"]


# Reading csv files.


def test_reads_what_the_reference_reads(reference, tmp_path):
  table = read_csv(SAMPLE, 30)
  assert len(table) == NUM_SAMPLE and not table.skipped
  assert table.inputs.dtype == table.labels.dtype == np.uint8
  assert (table.inputs == reference[0]).all()
  assert (table.labels == reference[1]).all()
  assert (table.ratings == (table.labels == grid.PATH).sum(-1) + 2).all()
  assert set(table.sources) == {"maze-30x30-hard-1k"}
  path = tmp_path / "rows.csv.gz"
  path.write_bytes(gzip.compress(SAMPLE.read_bytes()))
  assert (read_csv(path, 30).inputs == reference[0]).all()


def test_spaces_at_the_ends_are_cells(write):
  table = read_csv(write("made,  S  G   ,  S  G   ,2"), 3)
  assert grid.render(table.inputs[0]) == "  S  G   "


BAD_ROWS = [
  (f"made,{QUESTION},{ANSWER}", "3 columns"),
  (f"made,{QUESTION} ,{ANSWER},5", "question: 10 characters.* a 3x3 maze"),
  (f"made,{QUESTION},{ANSWER[:-1]},5", "answer: 8 characters; expected 9"),
  (f"made,x #,{ANSWER},5", "question: 3 characters"),
  ("made,x #\t    G,So##o  oG,5", r"question: character 1 is 'x'; .*'#' \(w"),
  ("made,S ##    G,So##ö  oG,5", "answer: character 5 is 'ö'"),
  ("made,  ##    G,So##o  oG,5", "question: 0 cells 'S'; expected exactly"),
  ("made,S ##     ,So##o  oG,5", "question: 0 cells 'G'"),
  ("made,S ##   GG,So##o  oG,5", "question: 2 cells 'G'"),
  ("made,SS##    G,So##o  oG,5", "question: 2 cells 'S'"),
  ("made,So##o  oG,So##o  oG,5", "question: it holds 'o'"),
  ("made,S#   #  G,So##o  oG,5", "answer: character 2 turns '#' into 'o'"),
  ("made,S ##    G,#o##o  oG,5", "answer: character 1 turns 'S' into '#'"),
  ("made,S ##    G,So##o# oG,5", "answer: character 6 turns ' ' into '#'"),
  ("made,S# ##   G,S# ##   G,5", "question: there is no way from 'S' to 'G'"),
  ("made,S ##    G,So##o   G,5", "answer: its 'o' do not lead from 'S'"),
  ("made,S ##    G,S ##    G,5", "answer: its 'o' do not lead from 'S'"),
  ("made,S ##    G,So##oo oG,5", "answer: 4 cells 'o'; expected 3, as a sh"),
  ("made,S G      ,S Gooo   ,5", "answer: 3 cells 'o'; expected 1, as a sh"),
  ("made,S G      ,SoG     o,3", "answer: 2 cells 'o'; expected 1"),
  (f"made,{QUESTION},{ANSWER},far", "rating: 'far'"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bad_rows_are_refused_with_file_and_line(write, row, reason):
  with pytest.raises(UserError, match=rf"rows\.csv, line 3: .*{reason}"):
    read_csv(write(GOOD, row, GOOD), 3)


def test_ratings_may_have_decimals(write):
  rows = [f"made,{QUESTION},{ANSWER},{rating}" for rating in ("7", "7.9")]
  assert read_csv(write(*rows), 3).ratings.tolist() == [7, 7]


def test_bad_rows_can_be_skipped(write):
  path = write(GOOD, *(row for row, _ in BAD_ROWS), GOOD)
  table = read_csv(path, 3, skip_bad_rows=True)
  assert table.lines.tolist() == [2, len(BAD_ROWS) + 3]
  assert table.bad == len(BAD_ROWS)
  with pytest.raises(UserError, match="every row is bad"):
    read_csv(write(BAD_ROWS[0][0]), 3, skip_bad_rows=True)


def test_files_of_another_size_are_refused():
  with pytest.raises(UserError, match="question: 900 characters; expected 100"):
    read_csv(SAMPLE, 10)


# Datasets.


def test_loads_what_the_file_holds(settings, reference):
  split = load(settings, "train")
  assert num_groups(settings, "train") == len(split) == NUM_SAMPLE
  assert (split.inputs == reference[0]).all()
  assert (split.labels == reference[1]).all()
  assert not split.puzzle_ids.any() and split.symmetries is None
  some = load(settings, "train", np.array([7, 0, 7]))
  assert (some.labels == reference[1][[7, 0, 7]]).all()
  assert datasets.identifiers(settings) == ["<blank>"]
  assert settings.task is maze_task(30)
  with pytest.raises(UserError, match="option 'test'"):
    load(settings, "test")


def test_rows_can_be_chosen(settings):
  chosen = dataclasses.replace(settings, subsample=5, seed=1)
  assert num_groups(chosen, "train") == 5
  rated = dataclasses.replace(settings, min_rating=115)
  expected = (read_csv(SAMPLE, 30).ratings >= 115).sum()
  assert 0 < num_groups(rated, "train") == expected < NUM_SAMPLE


def test_skipped_rows_are_told(write, tmp_path):
  settings = MazeData(
    size=3,
    train=write(GOOD, BAD_ROWS[0][0]),
    test="",
    skip_bad_rows=True,
    cache_dir=str(tmp_path / "c"),
  )
  heard = []
  (note,) = prepare(settings, heard.append)
  assert "1 bad rows of 2 were left out" in note and "line 3" in note
  assert len(heard) == 1 and heard[0].startswith("preparing the puzzles, once")
  assert prepare(settings, heard.append) == [note] and len(heard) == 1


def test_generated_splits_share_no_maze(tmp_path):
  # 3x3 mazes are so few that the two would meet by chance.
  settings = MazeData(
    size=3,
    train="generate",
    test="generate",
    num_train=300,
    num_test=100,
    min_length=3,
    cache_dir=str(tmp_path),
  )
  train, test = load(settings, "train"), load(settings, "test")
  assert (len(train), len(test)) == (300, 100)
  images = {x.tobytes() for x in copies(train.inputs, 3)}
  assert images.isdisjoint(x.tobytes() for x in test.inputs)
  again = dataclasses.replace(settings, cache_dir=str(tmp_path / "again"))
  assert (load(again, "test").inputs == test.inputs).all()
  other = dataclasses.replace(settings, unique=True, num_train=20, num_test=9)
  assert (load(other, "train").inputs != train.inputs[:20]).any()
  alone = dataclasses.replace(settings, train="")
  assert num_groups(alone, "test") == 100


def test_test_mazes_stay_when_the_training_set_grows(tmp_path):
  settings = MazeData(
    size=8,
    train="generate",
    test="generate",
    num_train=10,
    num_test=10,
    min_length=10,
    cache_dir=str(tmp_path),
  )
  more = dataclasses.replace(settings, num_train=30)
  few_mazes, mazes = load(settings, "train").inputs, load(more, "train").inputs
  assert (mazes[:10] == few_mazes).all()
  tests = load(settings, "test").inputs
  assert (load(more, "test").inputs == tests).all()


def test_a_dataset_is_named_after_what_it_holds(settings, tmp_path):
  def name(**changes):
    cache_dir = tmp_path / str(len(list(tmp_path.iterdir())))
    changed = dataclasses.replace(settings, cache_dir=str(cache_dir), **changes)
    prepare(changed)
    (folder,) = cache_dir.glob("*/maze-*")
    return folder.name

  assert name().startswith("maze-30x30-")
  assert name(unique=True, min_length=9, num_train=1, path="there") == name()
  assert name(seed=1) != name(seed=2) != name(test=str(SAMPLE))


def test_generated_tests_avoid_the_mazes_of_a_file(write, tmp_path):
  questions = ["S  G     ", " S  G    ", "S   G    "]  # every empty board
  answers = ["S  G     ", " S  G    ", "So  G    "]
  rows = [f"made,{q},{a},2" for q, a in zip(questions, answers, strict=True)]
  settings = MazeData(
    size=3,
    train=write(*rows),
    test="generate",
    num_test=5,
    min_length=2,
    wall_density=(0, 0),
    cache_dir=str(tmp_path / "c"),
  )
  trained = {dihedral.canonical(x, 3) for x in load(settings, "train").inputs}
  tested = {dihedral.canonical(x, 3) for x in load(settings, "test").inputs}
  assert len(trained) == 3 and len(tested) == 5
  assert trained.isdisjoint(tested)


def test_the_hub_has_its_own_repository(monkeypatch, settings):
  asked = []

  def download(repository, filename, repo_type):
    asked.append((repository, filename, repo_type))
    return str(SAMPLE)

  monkeypatch.setattr(prepared.huggingface_hub, "hf_hub_download", download)
  hub = MazeData(cache_dir=settings.cache_dir)
  assert num_groups(hub, "train") == num_groups(hub, "test") == NUM_SAMPLE
  assert asked[:2] == [
    ("sapientinc/maze-30x30-hard-1k", "train.csv", "dataset"),
    ("sapientinc/maze-30x30-hard-1k", "test.csv", "dataset"),
  ]


# Settings.


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("size", 2),
    ("size", 10.0),
    ("size", 12),  # the hub has 30x30 only
    ("train", None),
    ("test", 3),
    ("subsample", -1),
    ("min_rating", 1.5),
    ("seed", -1),
    ("num_train", 0),
    ("num_test", True),
    ("wall_density", 0.3),
    ("wall_density", (0.5, 0.3)),
    ("wall_density", (0.3, 1.0)),
    ("wall_density", (-0.1, 0.3)),
    ("wall_density", ("low", "high")),
    ("wall_density", (0.1, 0.2, 0.3)),
    ("wall_density", (float("nan"), 0.5)),
    ("min_length", 1),
    ("unique", 1),
    ("skip_bad_rows", "no"),
    ("cache_dir", 3),
    ("path", None),
  ],
)
def test_settings_are_checked(field, value):
  with pytest.raises(UserError, match=field):
    MazeData(**{field: value})


def test_settings_take_lists_and_need_a_source():
  assert MazeData(wall_density=[0.3, 0.5]) == MazeData()
  assert hash(MazeData(wall_density=[0, 0.5])) == hash(
    MazeData(wall_density=(0.0, 0.5))
  )
  with pytest.raises(UserError, match="both are empty"):
    MazeData(train="", test="")


def test_with_a_folder_other_sources_are_not_read():
  assert MazeData(path="folder", train="", test="").task is maze_task(30)
  assert MazeData(path="folder", size=12).task is maze_task(12)
