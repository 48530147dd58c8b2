import concurrent.futures
import csv
import dataclasses
import gzip
import multiprocessing
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from trm_jax.data import csv_rows, datasets, prepared, records
from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.rows import csv_format
from trm_jax.data.sudoku.task import PUZZLES, SudokuData, sudoku_task
from trm_jax.errors import UserError

load, num_groups, prepare = PUZZLES.load, PUZZLES.num_groups, PUZZLES.prepare
SAMPLE = pathlib.Path(__file__).parent.parent / "recorded" / "sudoku_sample.csv"
NUM_SAMPLE = 40
HEADER = "source,question,answer,rating"
QUESTION = "12..3.1..1.34..1"
ANSWER = "1234341221434321"
GOOD = f"made,{QUESTION},{ANSWER},0"


@pytest.fixture
def write(tmp_path):
  """Writes a 4x4 csv file with these rows below the header."""

  def write(*lines, name="rows.csv", header=HEADER):
    path = tmp_path / name
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)

  return write


@pytest.fixture
def settings(tmp_path):
  return SudokuData(
    train=str(SAMPLE), test="", subsample=0, cache_dir=str(tmp_path / "cache")
  )


def kept(settings):
  """The folders of complete datasets."""
  found = pathlib.Path(settings.cache_dir).glob("records/*/1.*")
  return sorted(path.parent.name for path in found)


def read_csv(path, size, skip_bad_rows=False):
  return csv_rows.read(path, csv_format(size), skip_bad_rows)


# Reading csv files.


def test_reads_real_rows():
  table = read_csv(SAMPLE, 9)
  with open(SAMPLE, newline="") as file:
    expected = list(csv.DictReader(file))
  assert len(table) == len(expected) == NUM_SAMPLE
  assert not table.skipped
  assert table.lines.tolist() == list(range(2, NUM_SAMPLE + 2))
  assert table.inputs.dtype == table.labels.dtype == np.uint8
  for row, record in enumerate(expected):
    assert board.render(table.inputs[row]) == record["question"]
    assert board.render(table.labels[row]) == record["answer"]
    assert table.ratings[row] == int(record["rating"])
    assert table.sources[row] == record["source"]


def test_blanks_gzip_and_small_habits_of_csv_files(write, tmp_path):
  plain = read_csv(write(GOOD), 4)
  zeros = GOOD.replace(".", "0")
  for lines in ([zeros], ["", GOOD, ""], [f'"made","{QUESTION}",{ANSWER},0']):
    assert (read_csv(write(*lines), 4).inputs == plain.inputs).all()
  spaced = write(GOOD, header="\ufeffSource, question, answer, Rating")
  assert (read_csv(spaced, 4).labels == plain.labels).all()
  path = tmp_path / "rows.csv.gz"
  path.write_bytes(gzip.compress(f"{HEADER}\r\n{GOOD}\r\n".encode()))
  assert (read_csv(path, 4).inputs == plain.inputs).all()


BAD_ROWS = {
  f"made,{QUESTION},{ANSWER}": "3 columns",
  f"{GOOD},more": "5 columns",
  f"made,{QUESTION[1:]},{ANSWER},0": "question: 15 characters",
  f"made,{QUESTION},{ANSWER}1,0": "answer: 17 characters",
  f"made,y{QUESTION[1:]},{ANSWER},0": "question: character 1 is 'y'",
  f"made,5{QUESTION[1:]},{ANSWER},0": "question: character 1 is '5'",
  f"made,é{QUESTION[1:]},{ANSWER},0": "question: character 1 is 'é'",
  f"made,{QUESTION},{ANSWER[:-1]}?,0": r"answer: character 16 is '\?'",
  f"made,{QUESTION},{ANSWER[:-1]}.,0": "answer: .* contradicts",
  f"made,{'.' * 16},{ANSWER[:-1]}.,0": "answer: .* not a legal",
  f"made,{'.' * 16},{ANSWER[:-1]}2,0": "answer: .* not a legal",
  f"made,{'2' + QUESTION[1:]},{ANSWER},0": "answer: .* contradicts",
  f"made,{QUESTION},{ANSWER},hard": "rating: 'hard'",
  f"made,{QUESTION},{ANSWER},-1": "rating: '-1'",
  f"made,{QUESTION},{ANSWER},": "rating: ''",
  f'made,"{QUESTION},{ANSWER},0': "not a row of a csv file",
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.items())
def test_bad_rows_are_refused_with_file_and_line(write, row, reason):
  with pytest.raises(UserError, match=rf"rows\.csv, line 3: .*{reason}"):
    read_csv(write(GOOD, row, GOOD), 4)


def test_bad_rows_can_be_skipped(write):
  path = write(GOOD, *BAD_ROWS, GOOD)
  table = read_csv(path, 4, skip_bad_rows=True)
  assert table.lines.tolist() == [2, len(BAD_ROWS) + 3]
  assert table.bad == len(BAD_ROWS) and len(table.skipped) == 10
  assert "line 3" in table.skipped[0]
  with pytest.raises(UserError, match="every row is bad"):
    read_csv(write(*BAD_ROWS), 4, skip_bad_rows=True)


def test_second_solutions_among_the_chosen_rows(write, tmp_path):
  ambiguous = f"made,12{'.' * 14},{ANSWER},7"
  few_rows = dataclasses.replace(PUZZLES.slow_check, most_rows=2)
  puzzles = dataclasses.replace(PUZZLES, slow_check=few_rows)
  prepare, load = puzzles.prepare, puzzles.load
  settings = SudokuData(
    size=4,
    train=write(GOOD, GOOD.replace(",0", ",9"), ambiguous),
    test="",
    subsample=0,
    cache_dir=str(tmp_path / "c"),
  )
  note, _ = prepare(settings)
  assert "3 rows are too many to look for second solutions" in note
  assert prepare(dataclasses.replace(settings, min_rating=8)) == []
  few = dataclasses.replace(settings, min_rating=7)
  with pytest.raises(UserError, match=r"line 4: question: .* one solution"):
    load(few, "train")
  (note,) = prepare(dataclasses.replace(few, skip_bad_rows=True))
  assert "1 bad rows of 3 were left out" in note and "line 4" in note


def test_unreadable_files_are_refused(write, tmp_path):
  path = tmp_path / "file.csv.gz"

  def refuses(words):
    with pytest.raises(UserError, match=words):
      read_csv(path, 4)

  refuses(r"file\.csv\.gz: cannot be read")
  path.write_bytes(gzip.compress(f"{HEADER}\n{GOOD}\n".encode() * 50)[:-20])
  refuses(r"file\.csv\.gz: cannot be unpacked \(.*damaged")
  path.write_text("")
  refuses("no rows")
  path.write_text(f"{HEADER}\n")
  refuses("no rows")
  path.write_text(f"{GOOD}\n")
  refuses("every row is bad.*columns question and answer")
  path.write_text(f"question,quiz\n{QUESTION},{ANSWER}\n")
  refuses("several columns of questions")
  path = tmp_path
  refuses("cannot be read")


# Datasets.


def test_loads_what_the_file_holds(settings):
  table = read_csv(SAMPLE, 9)
  split = load(settings, "train")
  assert num_groups(settings, "train") == len(split) == NUM_SAMPLE
  assert split.inputs.dtype == split.labels.dtype == np.uint8
  assert split.puzzle_ids.dtype == np.int32 and not split.puzzle_ids.any()
  assert (split.inputs == table.inputs).all()
  assert (split.labels == table.labels).all()
  some = load(settings, "train", np.array([7, 0, 7]))
  assert (some.inputs == table.inputs[[7, 0, 7]]).all()
  assert len(load(settings, "train", np.array([], int))) == 0
  assert datasets.identifiers(settings) == ["<blank>"]
  assert settings.task is sudoku_task(9)


def test_subsample_is_seeded(settings):
  def chosen(**changes):
    changed = dataclasses.replace(settings, subsample=12, **changes)
    return {x.tobytes() for x in load(changed, "train").inputs}

  assert len(chosen()) == 12
  assert chosen() == chosen()
  assert chosen(seed=1) != chosen()
  with pytest.raises(UserError, match="subsample: 41"):
    load(dataclasses.replace(settings, subsample=41), "train")


def test_min_rating_filters_both_splits(settings):
  ratings = read_csv(SAMPLE, 9).ratings
  changed = dataclasses.replace(settings, min_rating=10, test=str(SAMPLE))
  for split in ("train", "test"):
    assert num_groups(changed, split) == (ratings >= 10).sum()
  with pytest.raises(UserError, match="min_rating: 100000"):
    load(dataclasses.replace(settings, min_rating=100_000), "train")


def test_a_prepared_dataset_is_reused(settings, monkeypatch):
  first = load(settings, "train")
  monkeypatch.setattr(
    records.Records, "_split_generators", lambda *_: pytest.fail("made again")
  )
  second = load(settings, "train")
  assert (first.inputs == second.inputs).all()


def test_an_edited_file_is_another_dataset(write, tmp_path):
  path = write(GOOD, GOOD)
  settings = SudokuData(
    size=4, train=path, test="", subsample=0, cache_dir=str(tmp_path / "c")
  )
  assert num_groups(settings, "train") == 2
  write(GOOD)
  assert num_groups(settings, "train") == 1
  assert len(kept(settings)) == 2
  write(GOOD, GOOD)  # and back again
  assert num_groups(settings, "train") == 2
  assert len(kept(settings)) == 2


def test_bad_rows_reach_the_user_and_leave_no_dataset(write, tmp_path):
  path = write(GOOD, *BAD_ROWS)
  settings = SudokuData(
    size=4, train=path, test="", subsample=0, cache_dir=str(tmp_path / "c")
  )
  with pytest.raises(UserError, match=r"rows\.csv, line 3"):
    load(settings, "train")
  assert not kept(settings)
  settings = dataclasses.replace(settings, skip_bad_rows=True)
  assert len(load(settings, "train")) == 1


def test_a_missing_split_says_which_option_to_set(settings):
  with pytest.raises(UserError, match="option 'test'"):
    load(settings, "test")
  only_test = dataclasses.replace(settings, train="", test=str(SAMPLE))
  assert len(load(only_test, "test")) == NUM_SAMPLE
  with pytest.raises(UserError, match="option 'train'"):
    num_groups(only_test, "train")


def test_generated_splits_share_no_grid(tmp_path):
  settings = SudokuData(
    size=6,
    train="generate",
    test="generate",
    num_train=40,
    num_test=20,
    givens=(10, 14),
    cache_dir=str(tmp_path),
  )
  train, test = load(settings, "train"), load(settings, "test")
  assert (len(train), len(test)) == (40, 20)
  assert board.solves(train.inputs, train.labels, size=6).all()
  grids = {label.tobytes() for label in train.labels}
  assert grids.isdisjoint(label.tobytes() for label in test.labels)
  # The held-out puzzles stay when the training set grows.
  more = dataclasses.replace(settings, num_train=60)
  assert (load(more, "test").inputs == test.inputs).all()
  assert (load(more, "train").inputs[:40] == train.inputs).all()
  assert len(load(dataclasses.replace(settings, test=""), "train")) == 40


def test_generated_tests_avoid_the_grids_of_a_file(write, tmp_path):
  settings = SudokuData(
    size=4,
    train=write(GOOD),
    test="generate",
    subsample=0,
    num_test=50,
    givens=(4, 8),
    cache_dir=str(tmp_path / "c"),
  )
  grid = load(settings, "train").labels[0]
  assert not (load(settings, "test").labels == grid).all(-1).any()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("size", 5),
    ("size", 4),  # the hub has 9x9 only
    ("train", None),
    ("subsample", -1),
    ("subsample", 1.5),
    ("min_rating", -1),
    ("seed", -1),
    ("seed", 2**40),
    ("num_train", 0),
    ("num_test", True),
    ("givens", (30, 24)),
    ("givens", (24, 82)),
    ("givens", 24),
    ("givens", (24.0, 30.0)),
    ("rating", (3,)),
    ("skip_bad_rows", "no"),
    ("cache_dir", 3),
    ("path", None),
  ],
)
def test_settings_are_checked(field, value):
  with pytest.raises(UserError, match=field):
    SudokuData(**{field: value})


def test_settings_take_lists_and_need_a_source():
  assert SudokuData(givens=[24, 30]) == SudokuData()
  assert hash(SudokuData(rating=[0, 3])) == hash(SudokuData(rating=(0, 3)))
  with pytest.raises(UserError, match="both are empty"):
    SudokuData(train="", test="")


def test_with_a_folder_other_sources_are_not_read():
  assert SudokuData(path="folder", train="", test="").task is sudoku_task(9)
  assert SudokuData(path="folder", size=4).task is sudoku_task(4)


def test_missing_files_and_folders(settings, tmp_path):
  with pytest.raises(UserError, match=r"no\.csv: cannot be read"):
    load(dataclasses.replace(settings, train="no.csv"), "train")
  blocked = tmp_path / "a file"
  blocked.write_text("")
  with pytest.raises(UserError, match="cache_dir"):
    load(dataclasses.replace(settings, cache_dir=str(blocked)), "train")


def test_a_full_disk_is_reported(settings):
  # A limit on the size of files stands in for the disk.
  program = (
    "import resource\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    "from trm_jax.data.sudoku.task import PUZZLES, SudokuData\n"
    "from trm_jax.errors import UserError\n"
    "try:\n"
    f"  PUZZLES.load({settings!r}, 'train')\n"
    "except UserError as error:\n"
    "  print(error)\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert result.stdout.startswith("cache_dir: ")
  assert not kept(settings)


def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(
  settings, monkeypatch
):
  def interrupted(self, rows):
    yield 0, next(iter(complete(self, rows)))[1]
    raise KeyboardInterrupt

  complete = records.Records._generate_examples
  with monkeypatch.context() as patch:
    patch.setattr(records.Records, "_generate_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
      load(settings, "train")
  assert not kept(settings)
  assert len(load(settings, "train")) == NUM_SAMPLE


@pytest.mark.hosts
def test_two_processes_prepare_at_once(settings):
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(2, spawn) as pool:
    begin = time.time() + 4  # both have imported by then
    sums = list(pool.map(_load_at, [(settings, begin)] * 2))
  assert sums[0] == sums[1] == int(load(settings, "train").inputs.sum())
  assert len(kept(settings)) == 1
  folder = pathlib.Path(settings.cache_dir)
  assert not list(folder.rglob("incomplete*"))


def _load_at(task):
  settings, begin = task
  time.sleep(max(0, begin - time.time()))
  return int(load(settings, "train").inputs.sum())


def test_a_slower_process_takes_what_another_prepared(settings, monkeypatch):
  def overtaken(self, **kwargs):
    monkeypatch.undo()
    load(settings, "train")
    raise OSError("Directory not empty")

  monkeypatch.setattr(records.Records, "download_and_prepare", overtaken)
  assert len(load(settings, "train")) == NUM_SAMPLE
  assert len(kept(settings)) == 1


@pytest.mark.hosts
def test_neither_tensorflow_nor_torch_is_imported(settings):
  program = (
    "import sys\n"
    "from trm_jax.data.sudoku.task import PUZZLES, SudokuData\n"
    f"PUZZLES.load({settings!r}, 'train')\n"
    "print({'tensorflow', 'torch'} & set(sys.modules))\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == "set()"


def test_the_hub_without_a_network(monkeypatch, tmp_path):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  with pytest.raises(UserError, match=r"(?s)train: 'hub'.*train\.csv.*path"):
    load(SudokuData(test="", cache_dir=str(tmp_path)), "train")


def test_the_hub_with_a_network(monkeypatch, tmp_path):
  asked = []

  def download(repository, filename, repo_type):
    asked.append((repository, filename, repo_type))
    return str(SAMPLE)

  monkeypatch.setattr(
    prepared.huggingface_hub, "hf_hub_download", download, raising=False
  )
  settings = SudokuData(subsample=5, cache_dir=str(tmp_path))
  assert num_groups(settings, "train") == 5
  assert num_groups(settings, "test") == NUM_SAMPLE
  assert asked[:2] == [
    ("sapientinc/sudoku-extreme", "train.csv", "dataset"),
    ("sapientinc/sudoku-extreme", "test.csv", "dataset"),
  ]
