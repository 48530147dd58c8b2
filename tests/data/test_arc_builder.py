import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from trm_jax.data import records
from trm_jax.data.arc import builder, copies, grids
from trm_jax.data.arc import names as names_lib
from trm_jax.data.arc.task import ArcData, arc_task
from trm_jax.errors import UserError

DATA = pathlib.Path(__file__).parent.parent / "recorded"
# Six tasks to train on, fourteen to evaluate.
TRAIN = DATA / "arc" / "arc_training_challenges.json"
TEST = DATA / "arc" / "arc_evaluation_challenges.json"
# What the reference's builder made of three of them.
BUILT = DATA / "folder_arc"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  return ArcData(
    train=str(TRAIN),
    test=str(TEST),
    num_aug=9,
    cache_dir=str(tmp_path_factory.mktemp("cache")),
  )


@pytest.fixture(scope="module")
def train(settings):
  return builder.load(settings, "train")


@pytest.fixture(scope="module")
def test(settings):
  return builder.load(settings, "test")


@pytest.fixture(scope="module")
def names(settings):
  return builder.identifiers(settings)


def tasks_of(challenges):
  """The tasks of a file, by name: (pairs of "train", pairs of "test")."""
  solutions = str(challenges).replace("challenges", "solutions")
  solutions = json.loads(pathlib.Path(solutions).read_text())
  tasks = {}
  for name, task in json.loads(challenges.read_text()).items():
    shown = [(pair["input"], pair["output"]) for pair in task["train"]]
    asked = [pair["input"] for pair in task["test"]]
    tasks[name] = shown, list(zip(asked, solutions[name], strict=True))
  return tasks


def assert_holds(split, group, pairs):
  """Asserts that a group's examples are these pairs of grids."""
  puzzle = split.first_puzzle[group]
  first, count = split.first_example[puzzle], split.num_examples[puzzle]
  assert count == len(pairs)
  for row, pair in enumerate(pairs, first):
    for tokens, grid in zip(
      (split.inputs[row], split.labels[row]), pair, strict=True
    ):
      assert (tokens == grids.encode(np.array(grid, np.uint8))).all()


def test_examples_are_the_pairs_of_the_files(train, test):
  shown, asked = tasks_of(TRAIN), tasks_of(TEST)
  assert train.names == (*sorted(shown), *sorted(asked))
  assert test.names == tuple(sorted(asked))
  for group, name in enumerate(train.names):
    is_asked = name in asked
    pairs = asked[name][0] if is_asked else shown[name][0] + shown[name][1]
    assert_holds(train, group, pairs)
  for group, name in enumerate(test.names):
    assert_holds(test, group, asked[name][1])


def test_the_arrays_fit_together(train, test):
  for split, groups in ((train, 20), (test, 14)):
    assert len(split) == len(split.names) == groups
    assert split.inputs.dtype == split.labels.dtype == np.uint8
    assert split.symmetries.dtype == np.uint8 and not split.is_viewed
    for name in (
      "puzzle_ids",
      "first_puzzle",
      "first_example",
      "num_examples",
    ):
      assert getattr(split, name).dtype == np.int32, name
    puzzles = 10 * groups
    assert (np.diff(split.first_puzzle) == 10).all()
    assert split.symmetries.shape == (puzzles, 11)
    assert split.puzzle_ids.shape == split.num_examples.shape == (puzzles,)
    # The copies of a group share its examples.
    first = split.first_example.reshape(groups, 10)
    count = split.num_examples.reshape(groups, 10)
    assert (first == first[:, :1]).all() and (count == count[:, :1]).all()
    ends = first[:, 0] + count[:, 0]
    assert (first[1:, 0] == ends[:-1]).all()
    assert first[0, 0] == 0 and ends[-1] == len(split.inputs)
  assert (train.puzzle_ids == np.arange(1, 201)).all()


def test_a_copy_has_one_id_in_both_splits(train, test, names):
  assert len(names) == 201 and names[0] == "<blank>"
  assert len(set(names)) == 201
  for split in (train, test):
    for group, task in enumerate(split.names):
      puzzles = range(split.first_puzzle[group], split.first_puzzle[group + 1])
      assert names[split.puzzle_ids[puzzles[0]]] == task
      for puzzle in puzzles:
        (parsed,), (symmetry,) = names_lib.parse_names(
          [names[split.puzzle_ids[puzzle]]]
        )
        assert parsed == task and (symmetry == split.symmetries[puzzle]).all()


def test_groups_can_be_chosen(settings, train):
  some = builder.load(settings, "train", np.array([7, 0, 7]))
  expected = train.take(np.array([7, 0, 7]))
  for name in ("puzzle_ids", "first_puzzle", "num_examples", "symmetries"):
    assert (getattr(some, name) == getattr(expected, name)).all(), name
  assert some.names == expected.names
  rows, expected_rows = some.rows[0], expected.rows[0]
  assert (some.inputs[rows] == expected.inputs[expected_rows]).all()
  assert (some.labels[rows] == expected.labels[expected_rows]).all()
  assert builder.num_groups(settings, "train") == 20
  assert builder.num_groups(settings, "test") == 14
  assert len(builder.load(settings, "test", np.array([], int))) == 0


def crop(tokens):
  """The grid on a canvas, wherever it stands."""
  canvas = tokens.reshape(30, 30)
  rows, columns = np.nonzero(canvas > grids.EOS)
  grid = canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
  return grid.shape, grid.tobytes()


def test_our_copies_show_what_the_reference_built(train, test):
  # Its copies were drawn otherwise, so ours are asked for by their names.
  reference_names = json.loads((BUILT / "identifiers.json").read_text())
  view = jax.jit(jax.vmap(arc_task().copies.apply))
  compared = 0
  for split, ours in (("train", train), ("test", test)):
    theirs = {
      name: np.load(BUILT / split / f"all__{name}.npy")
      for name in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices")
    }
    for puzzle, number in enumerate(theirs["puzzle_identifiers"]):
      (task,), (symmetry,) = names_lib.parse_names([reference_names[number]])
      group = ours.take(np.array([ours.names.index(task)]), copies=1)
      rows, _ = group.rows
      symmetries = np.tile(symmetry, (len(rows), 1))
      shown = [
        np.asarray(view(symmetries, tokens[rows]))
        for tokens in (group.inputs, group.labels)
      ]
      some = slice(*theirs["puzzle_indices"][puzzle : puzzle + 2])
      built = [theirs["inputs"][some], theirs["labels"][some]]
      if split == "test":
        assert (np.stack(shown) == np.stack(built)).all()
      else:  # where it has the pairs in another order, and moves them about
        pairs = [
          sorted(zip(*map(crops, x), strict=True)) for x in (shown, built)
        ]
        assert pairs[0] == pairs[1]
      compared += len(rows)
  assert compared == 31 + 8


def crops(canvases):
  return [crop(tokens) for tokens in canvases]


def test_the_original_alone(settings, train):
  alone = dataclasses.replace(settings, num_aug=0)
  split = builder.load(alone, "train")
  assert (split.symmetries == grids.IDENTITY).all()
  assert (split.puzzle_ids == np.arange(1, 21)).all()
  assert (split.inputs == train.inputs).all()
  assert builder.identifiers(alone) == ["<blank>", *train.names]


def test_notes_are_kept_with_the_dataset(settings, tmp_path):
  plain = {
    "train": [{"input": [[1]], "output": [[0]]}],
    "test": [{"input": [[0]]}],
  }
  (tmp_path / "tasks").mkdir()
  (tmp_path / "tasks" / "plain.json").write_text(json.dumps(plain))
  changed = dataclasses.replace(
    settings,
    train="",
    test=f"{tmp_path / 'tasks'},{TEST}",
    only="plain,b1fc8b8e",
    size=8,
  )
  said = []
  for _ in range(2):
    notes = builder.prepare(changed, said.append)
    assert notes == [
      "test: 1 of 3 test pairs have no solution; they are not scored.",
      "1 of 2 tasks look the same under so many symmetries that they have "
      "fewer than 9 copies.",
    ]
  assert len(said) == 1 and "tasks" in said[0]
  split = builder.load(changed, "test")
  assert split.inputs.shape == (3, 64)
  assert split.names == ("plain", "b1fc8b8e")
  assert split.labels.any(-1).tolist() == [False, True, True]
  assert split.first_puzzle.tolist() == [0, 9, 19]
  assert (split.puzzle_ids == np.arange(1, 20)).all()
  assert len(builder.identifiers(changed)) == 20
  assert changed.task.seq_len == 64


def prepared(settings):
  """The folders of complete datasets."""
  found = pathlib.Path(settings.cache_dir).glob("records/*/1.*")
  return sorted(path.parent.name for path in found)


@pytest.fixture
def small(tmp_path):
  """Three tasks, in a folder of their own."""
  folder = tmp_path / "files"
  folder.mkdir()
  for kind in ("challenges", "solutions"):
    shutil.copy(DATA / "arc" / f"arc_training_{kind}.json", folder)
  return ArcData(
    train=str(folder / "arc_training_challenges.json"),
    num_aug=2,
    only="694f12f3,0520fde7,5c0a986e",
    cache_dir=str(tmp_path / "cache"),
  )


def test_a_prepared_dataset_is_reused(small, tmp_path, monkeypatch):
  first = builder.load(small, "train")
  assert first.names == ("0520fde7", "5c0a986e", "694f12f3")
  monkeypatch.setattr(
    builder, "_make", lambda settings: pytest.fail("made again")
  )
  # Neither the place of the files nor the order of names makes another.
  (tmp_path / "files").rename(tmp_path / "moved")
  second = builder.load(
    dataclasses.replace(
      small,
      train=small.train.replace("files", "moved"),
      only="5c0a986e, 694f12f3,0520fde7",
    ),
    "train",
  )
  assert (first.inputs == second.inputs).all()
  assert (first.symmetries == second.symmetries).all()


def test_another_file_or_seed_makes_another_dataset(small):
  first = builder.load(small, "train")
  other = builder.load(dataclasses.replace(small, seed=1), "train")
  assert (first.symmetries != other.symmetries).any()
  path = pathlib.Path(small.train)
  tasks = json.loads(path.read_text())
  tasks["694f12f3"]["train"][0]["input"][0][0] = 9
  path.write_text(json.dumps(tasks))
  edited = builder.load(small, "train")
  assert (first.inputs != edited.inputs).sum() == 1
  assert len(prepared(small)) == 3
  # Without solutions, test pairs are not trained on.
  pathlib.Path(small.train.replace("challenges", "solutions")).unlink()
  shorter = builder.load(small, "train")
  assert len(shorter.inputs) == len(first.inputs) - 3
  assert len(prepared(small)) == 4


def test_more_tasks_change_no_copies(small):
  def copies_of(only):
    split = builder.load(dataclasses.replace(small, only=only), "train")
    return split.take(np.array([split.names.index("694f12f3")])).symmetries

  assert (copies_of("694f12f3") == copies_of(small.only)).all()


def test_an_overlap_is_refused_although_it_is_prepared(small):
  leaking = dataclasses.replace(small, test=small.train)
  assert "gives away 3 of 3" in builder.prepare(leaking)[0]
  with pytest.raises(UserError, match="refuse_overlap"):
    builder.prepare(dataclasses.replace(leaking, refuse_overlap=True))


def test_a_missing_split_and_a_missing_source_are_told(small):
  with pytest.raises(UserError, match="option 'test'"):
    builder.load(small, "test")
  with pytest.raises(UserError, match="option 'test'"):
    builder.load(small, "test", np.arange(2))
  with pytest.raises(UserError, match="option 'test'"):
    builder.num_groups(small, "test")
  with pytest.raises(UserError, match=r"no: .*is not there"):
    builder.prepare(dataclasses.replace(small, train="no"))


def test_a_folder_that_cannot_be_written_is_told(small, tmp_path):
  blocked = tmp_path / "a file"
  blocked.write_text("")
  with pytest.raises(UserError, match="cache_dir"):
    builder.prepare(dataclasses.replace(small, cache_dir=str(blocked)))


def test_an_interrupted_preparation_leaves_nothing(small, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(copies, "symmetries", interrupt)
    with pytest.raises(KeyboardInterrupt):
      builder.prepare(small)
  assert not prepared(small)
  assert len(builder.load(small, "train")) == 3


def test_a_slower_process_takes_what_another_prepared(small, monkeypatch):
  def overtaken(self, **kwargs):
    monkeypatch.undo()
    builder.prepare(small)
    raise OSError("Directory not empty")

  monkeypatch.setattr(records.Records, "download_and_prepare", overtaken)
  assert len(builder.load(small, "train")) == 3
  assert len(prepared(small)) == 1
