import io
import json
import operator
import os
import pathlib
import pickle
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_task import assert_same

from trm_jax.data import folder, folder_arrays, folder_writer
from trm_jax.data.arc.task import arc_task
from trm_jax.data.maze.task import maze_task
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.data.task import Split
from trm_jax.errors import UserError

# Groups of what the reference's builders wrote: ARC with three tasks of 4, 3
# and 2 copies in "train", the latter two also in "test", and five mazes.
DATA = pathlib.Path(__file__).parent.parent / "recorded"
ARC, MAZE = DATA / "folder_arc", DATA / "folder_maze"
ARRAYS = (
  "inputs",
  "labels",
  "puzzle_indices",
  "group_indices",
  "puzzle_identifiers",
)


def read(path, split):
  """Reads a folder as that of its task."""
  is_maze = "maze" in pathlib.Path(path).name
  return folder.read(path, split, maze_task(30) if is_maze else arc_task())


@pytest.fixture
def arc(tmp_path):
  return pathlib.Path(shutil.copytree(ARC, tmp_path / "arc"))


def arrays_of(path, split, name="all"):
  return {
    array: np.load(path / split / f"{name}__{array}.npy") for array in ARRAYS
  }


def change_json(path, **fields):
  """Changes fields of a JSON object; those set to ... are taken out."""
  content = json.loads(path.read_text()) | fields
  content = {name: x for name, x in content.items() if x is not ...}
  path.write_text(json.dumps(content))


# What the reference's builders wrote.


@pytest.mark.parametrize("path", [ARC, MAZE])
@pytest.mark.parametrize("name", ["train", "test"])
def test_reads_what_the_builders_wrote(path, name):
  arrays, split = arrays_of(path, name), read(path, name)
  for tokens in (split.inputs, split.labels):
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint8
  np.testing.assert_array_equal(split.inputs, arrays["inputs"])
  np.testing.assert_array_equal(split.labels, arrays["labels"])
  np.testing.assert_array_equal(split.first_puzzle, arrays["group_indices"])
  np.testing.assert_array_equal(split.puzzle_ids, arrays["puzzle_identifiers"])
  bounds = arrays["puzzle_indices"]
  np.testing.assert_array_equal(split.first_example, bounds[:-1])
  np.testing.assert_array_equal(
    split.first_example + split.num_examples, bounds[1:]
  )
  for array in ("puzzle_ids", "first_puzzle", "first_example", "num_examples"):
    assert getattr(split, array).dtype == np.int32, array
  assert split.is_viewed
  np.testing.assert_array_equal(split.rows[0], np.arange(len(split.inputs)))


def test_metadata_and_identifiers():
  both = ("train", "test")
  assert folder.metadata(ARC) == folder.Metadata(900, 12, 10, both)
  assert folder.metadata(str(MAZE)) == folder.Metadata(900, 6, 1, both)
  names = folder.identifiers(ARC)
  assert names[:3] == ["<blank>", "694f12f3", "694f12f3|||t4|||0481963275"]
  assert folder.identifiers(MAZE) == ["<blank>"]


def test_puzzles_of_arc_bear_names_and_symmetries():
  split = read(ARC, "train")
  assert split.names == ("694f12f3", "b1fc8b8e", "21f83797")
  assert split.symmetries.dtype == np.uint8
  assert split.symmetries[:3].tolist() == [
    [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [4, 0, 4, 8, 1, 9, 6, 3, 2, 7, 5],
    [7, 0, 1, 9, 7, 4, 2, 5, 6, 3, 8],
  ]
  assert read(ARC, "test").names == ("b1fc8b8e", "21f83797")


def test_no_names_no_symmetries(arc):
  split = read(MAZE, "train")
  assert split.symmetries is None and split.names == ()
  (arc / "identifiers.json").write_text('["<blank>"]')
  assert read(arc, "train").symmetries is None
  assert folder.identifiers(arc) == ["<blank>"]
  # Names of another task say nothing about symmetries.
  shutil.copy(ARC / "identifiers.json", arc)
  for name in ("train", "test"):
    change_json(arc / name / "dataset.json", vocab_size=13)
  assert folder.read(arc, "train", maze_task(30)).symmetries is None
  assert len(folder.identifiers(arc)) == 10


def test_check_fits():
  folder.metadata(ARC, arc_task())
  with pytest.raises(UserError, match=r"900 and vocab_size 12.* 81 and 11"):
    folder.metadata(ARC, sudoku_task(9))
  with pytest.raises(UserError, match=r"900 and vocab_size 6.* 900 and 12"):
    folder.metadata(MAZE, arc_task())


# Other ways to store the same.


@pytest.mark.parametrize(
  "store",
  [
    np.int32,
    np.int64,
    ">i4",
    np.asfortranarray,
    lambda array: np.asfortranarray(array, np.int64),
  ],
)
def test_other_types_and_orders_are_read_as_bytes(arc, store, monkeypatch):
  monkeypatch.setattr(
    folder_arrays, "_CHUNK", 7 * 900
  )  # several, the last one short
  expected = read(ARC, "train")
  convert = store if callable(store) and not isinstance(store, type) else None
  for array in ARRAYS:
    path = arc / "train" / f"all__{array}.npy"
    content = np.load(path)
    np.save(path, convert(content) if convert else content.astype(store))
  assert_same(read(arc, "train"), expected)


def test_habits_of_older_builders_and_of_users(arc, tmp_path):
  expected = read(ARC, "test")
  change_json(arc / "test" / "dataset.json", total_puzzles=..., author="me")
  shutil.rmtree(arc / "train")
  (arc / "notes.txt").write_text("from the cluster")
  assert_same(read(arc, "test"), expected)
  assert folder.metadata(arc).splits == ("test",)
  (tmp_path / "link").symlink_to(arc)
  inputs = arc / "test" / "all__inputs.npy"
  inputs.rename(tmp_path / "far.npy")
  inputs.symlink_to(tmp_path / "far.npy")
  assert_same(read(tmp_path / "link", "test"), expected)
  maze = shutil.copytree(MAZE, tmp_path / "maze")
  (maze / "identifiers.json").unlink()
  assert folder.identifiers(maze) == ["<blank>"]
  assert len(read(maze, "train")) == 3


def test_null_ignores_no_label(tmp_path):
  maze = pathlib.Path(shutil.copytree(MAZE, tmp_path / "maze"))
  change_json(maze / "train" / "dataset.json", ignore_label_id=None)
  assert len(read(maze, "train")) == 3
  path = maze / "train" / "all__labels.npy"
  labels = np.load(path)
  labels[2, 5] = 0
  np.save(path, labels)
  with pytest.raises(UserError, match=r"token 5 of example 2 is 0.*ignore_"):
    read(maze, "train")


# What is refused.


def fields(**values):
  return lambda root: change_json(root / "train" / "dataset.json", **values)


def array(name, change):
  def damage(root):
    path = root / "train" / f"all__{name}.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)

  return damage


def cell(name, place, value):
  def change(content):
    content = content.astype(np.int64)
    content[place] = value
    return content

  return array(name, change)


def put(name, content):
  def damage(root):
    data = content if isinstance(content, bytes) else content.encode()
    (root / name).write_bytes(data)

  return damage


def remove(*names):
  return lambda root: [(root / name).unlink() for name in names]


def shorten(name, size):
  def damage(root):
    path = root / name
    path.write_bytes(path.read_bytes()[:size])

  return damage


def names(change):
  def damage(root):
    path = root / "identifiers.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

  return damage


def renamed(puzzle_id, name):
  return names(lambda old: [*old[:puzzle_id], name, *old[puzzle_id + 1 :]])


def folder_in_place_of(name):
  def damage(root):
    (root / name).unlink()
    (root / name).mkdir()

  return damage


def pipe_in_place_of(name):
  def damage(root):
    (root / name).unlink()
    os.mkfifo(root / name)

  return damage


def header(shape, descr="|u1"):
  stream = io.BytesIO()
  fields = {"descr": descr, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(stream, fields)
  return stream.getvalue()


class Attack:
  """An object whose pickle makes a folder when it is read."""

  def __reduce__(self):
    return os.mkdir, ("attacked",)


INPUTS = "train/all__inputs.npy"
JSON = r"train/dataset\.json: "
REFUSED = [
  # dataset.json
  (put("train/dataset.json", "{"), JSON + "not JSON"),
  (put("train/dataset.json", b"\xff\xfe"), JSON + "not JSON"),
  (put("train/dataset.json", "[" * 100_000), JSON + "not JSON"),
  (
    put("train/dataset.json", "[" * 400 + "]" * 400),
    JSON + r"holds \[.*; expected",
  ),
  (put("train/dataset.json", "[]"), JSON + r"holds \[\]; expected an object"),
  (folder_in_place_of("train/dataset.json"), JSON + r".*not a regular file"),
  *[
    (fields(**{name: ...}), JSON + f"{name} is missing")
    for name in (
      "pad_id",
      "ignore_label_id",
      "blank_identifier_id",
      "vocab_size",
      "seq_len",
      "num_puzzle_identifiers",
      "total_groups",
      "mean_puzzle_examples",
      "sets",
    )
  ],
  *[
    (fields(**{name: value}), JSON + f"{name} is {value!r}; expected a whole")
    for name in (
      "vocab_size",
      "seq_len",
      "num_puzzle_identifiers",
      "total_groups",
      "total_puzzles",
    )
    for value in (-3, 0, 1.5, True, "9", None)
  ],
  (fields(vocab_size=257), "vocab_size is 257; expected .* from 2 to 256"),
  (fields(num_puzzle_identifiers=2**31), "from 1 to 2147483647"),
  (fields(vocab_size=1), "vocab_size is 1; expected .* from 2 to 256"),
  (fields(pad_id=1), JSON + "pad_id is 1; expected 0"),
  (fields(pad_id=None), JSON + "pad_id is None; expected 0"),
  (fields(blank_identifier_id=2), "blank_identifier_id is 2; expected 0"),
  (fields(ignore_label_id=-100), "ignore_label_id is -100; expected 0"),
  (fields(ignore_label_id=False), "ignore_label_id is False; expected 0"),
  (
    fields(ignore_label_id=None),
    r"all__labels\.npy: token .* is 0; expected 1",
  ),
  (fields(mean_puzzle_examples="1"), "mean_puzzle_examples is '1'"),
  (fields(mean_puzzle_examples=-1.0), "mean_puzzle_examples is -1.0"),
  (fields(mean_puzzle_examples=float("nan")), "mean_puzzle_examples is nan"),
  (fields(sets=[]), JSON + r"sets is \[\]"),
  (fields(sets="all"), JSON + "sets is 'all'"),
  *[
    (fields(sets=[name]), JSON + "sets is ")
    for name in (
      "../test/all",
      "a/b",
      "..",
      "",
      "a\\b",
      "/all",
      "a\0",
      3,
      ["a"],
    )
  ],
  (
    fields(sets=["all", "b"]),
    JSON + r"sets is \['all', 'b'\]; expected .* one",
  ),
  (fields(sets=["b"]), "train: b__inputs.npy, .* missing; the set 'b'"),
  # Missing and damaged arrays
  *[
    (
      remove(f"train/all__{name}.npy"),
      rf"train: all__{name}\.npy missing; the set 'all' needs all__inputs\.n.* "
      r"all__labels.* all__puzzle_ind.* all__group_ind.* all__puzzle_ident",
    )
    for name in ARRAYS
  ],
  (
    remove(INPUTS, "train/all__group_indices.npy"),
    r"all__inputs\.npy, all__group_indices\.npy missing",
  ),
  *[
    (shorten(f"train/all__{name}.npy", size), rf"all__{name}\.npy: not a whole")
    for name in ARRAYS
    for size in (0, 3, 9, 60, 130)
  ],
  (shorten(INPUTS, -1), "not a whole"),
  (put(INPUTS, "a,b\n1,2\n"), "not a whole"),
  (put(INPUTS, b"PK\x03\x04" + bytes(200)), "not a whole"),
  (put(INPUTS, pickle.dumps(Attack())), "not a whole"),
  (put(INPUTS, header((10**15, 900))), "not a whole"),
  (put(INPUTS, header((10**30, 10**30))), "not a whole"),
  (put(INPUTS, header((-31, -900)) + bytes(27900)), "not a whole"),
  (put(INPUTS, header((10**30,), "<U0")), "not a whole"),
  (put(INPUTS, b"\x93NUMPY\1\0\x10\x27" + b"(" * 10_000), "not a whole"),
  *[
    (pipe_in_place_of(name), "not a regular file")
    for name in (INPUTS, "train/dataset.json", "identifiers.json")
  ],
  (folder_in_place_of(INPUTS), r"all__inputs\.npy: .*not a regular file"),
  *[
    (array(name, lambda _: np.array([Attack()])), rf"{name}\.npy: not a whole")
    for name in ARRAYS
  ],
  *[
    (
      array(name, lambda content: content.astype(np.float32)),
      rf"{name}\.npy: holds float32; expected uint8, int32 or int64",
    )
    for name in ARRAYS
  ],
  (array("inputs", lambda content: content > 1), "holds bool"),
  (array("labels", lambda content: content.astype("S1")), r"holds \|S1"),
  # Shapes
  (array("inputs", np.ravel), r"inputs\.npy: shape \(27900,\); .* rank 2"),
  (array("inputs", lambda x: x.reshape(-1, 30, 30)), r"\(31, 30, 30\); .*rank"),
  (array("inputs", lambda x: x[:, :-1]), "899 tokens a puzzle; expected 900"),
  (fields(seq_len=899), "900 tokens a puzzle; expected 899"),
  (array("labels", lambda x: x[:-1]), r"shape \(30, 900\); .* \(31, 900\)"),
  (array("labels", lambda x: x[:, 1:]), r"shape \(31, 899\); .* \(31, 900\)"),
  *[
    (array(name, lambda x: x[:, None]), rf"{name}\.npy: shape .* rank 1")
    for name in ARRAYS[2:]
  ],
  (array("puzzle_identifiers", lambda x: x[0]), r"shape \(\); .* rank 1"),
  # Indices
  *[
    (
      array(name, operator.itemgetter(slice(size))),
      rf"{name}\.npy: {size} numbers; expected",
    )
    for name in ("puzzle_indices", "group_indices")
    for size in (0, 1)
  ],
  (cell("puzzle_indices", 0, 1), r"puzzle_indices\.npy: starts with 1; expe"),
  (cell("group_indices", 0, -1), r"group_indices\.npy: starts with -1; expe"),
  (cell("puzzle_indices", 2, 3), "number 2 is 3, after 3; .* increase"),
  (cell("group_indices", 2, 2), "number 2 is 2, after 4; .* increase"),
  (cell("puzzle_indices", -1, 32), "ends with 32; expected 31.*examples"),
  (cell("puzzle_indices", -1, 30), "ends with 30; expected 31.*examples"),
  (cell("group_indices", -1, 2**40), "ends with 1099.*; expected 9.*puzzles"),
  (array("group_indices", lambda x: x[:-1]), "ends with 7; expected 9"),
  # Puzzle ids
  (cell("puzzle_identifiers", 3, 10), "puzzle 3 has 10; expected 0 to 9"),
  (cell("puzzle_identifiers", 3, -1), "puzzle 3 has -1; expected 0 to 9"),
  (cell("puzzle_identifiers", 3, 2**32 + 1), "puzzle 3 has 4294967297"),
  (array("puzzle_identifiers", lambda x: x[1:]), "8 numbers; expected 9"),
  (cell("puzzle_identifiers", 3, 0), "puzzle 3 has id 0.*'<blank>'"),
  # Tokens
  (cell("inputs", (30, 899), 12), "token 899 of example 30 is 12; .* 0 to 11"),
  (cell("labels", (8, 1), -100), r"labels\.npy: token 1 of example 8 is -100"),
  (cell("labels", (8, 1), 256), "token 1 of example 8 is 256"),  # 0 as a byte
  (fields(vocab_size=5), "expected 0 to 4, by vocab_size in"),
  # Names
  (remove("identifiers.json"), r"identifiers\.json: cannot be read"),
  (put("identifiers.json", "["), r"identifiers\.json: not JSON"),
  (put("identifiers.json", '{"a": 1}'), "expected a list of names"),
  (put("identifiers.json", "[0, 1]"), "expected a list of names"),
  (names(lambda old: old[:-1]), r"identifiers\.json: 9 names; expected 10"),
  (names(lambda old: [*old, "a"]), r"identifiers\.json: 11 names; expected 10"),
  (renamed(2, "694f12f3|||t8|||0481963275"), r"identifiers\.json: .*t8"),
  (renamed(2, "694f12f3|||t4|||0481963277"), r"identifiers\.json: .*63277"),
  (renamed(2, "_t4_0481963275"), "begins with task '694f12f3'"),
  (renamed(5, "694f12f3"), "holds 'b1fc.*' begins with task '694f12f3'|group"),
]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_what_the_layout_does_not_allow_is_refused(
  arc, damage, words, monkeypatch
):
  monkeypatch.setattr(folder_arrays, "_CHUNK", 7 * 900)
  damage(arc)
  with pytest.raises(UserError, match=words) as error:
    read(arc, "train")
  assert str(arc) in str(error.value)
  assert not os.path.exists("attacked")


def test_folders_and_splits_that_are_not_there(arc, tmp_path):
  for path in (tmp_path / "none", arc / "identifiers.json"):
    for ask in (folder.metadata, folder.identifiers):
      with pytest.raises(UserError, match="not a folder"):
        ask(path)
    with pytest.raises(UserError, match="not a folder"):
      read(path, "train")
  with pytest.raises(UserError, match=r"no dataset in it.*train/dataset\.json"):
    folder.metadata(tmp_path)
  shutil.rmtree(arc / "test")
  for split in ("test", "valid", "../arc/train"):
    with pytest.raises(
      UserError, match=r"only \['train'\].*all__group_indices"
    ):
      read(arc, split)


@pytest.mark.parametrize(
  ("name", "value"),
  [("seq_len", 901), ("vocab_size", 13), ("num_puzzle_identifiers", 11)],
)
def test_splits_that_contradict_each_other(arc, name, value):
  change_json(arc / "test" / "dataset.json", **{name: value})
  with pytest.raises(UserError, match=f"test.*{name} is {value}, but .*train"):
    folder.metadata(arc)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A folder that is quick to read, and its files."""
  path = tmp_path_factory.mktemp("tiny") / "tiny"
  rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
  folder_writer.write(
    path, {"train": Split.of_rows(rows, rows)}, ["<blank>"], arc_task(2)
  )
  return path, {file: file.read_bytes() for file in path.rglob("*.npy")}


@hypothesis.settings(
  deadline=None,
  max_examples=200,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damage_is_refused_or_harmless(tiny, data):
  path, files = tiny
  file = data.draw(st.sampled_from(sorted(files)))
  content = bytearray(files[file])
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
  if data.draw(st.booleans()):
    content = content[: data.draw(st.integers(0, len(content)))]
  file.write_bytes(content)
  try:
    split = read(path, "train")
  except UserError as error:
    assert str(path) in str(error)
  else:
    assert split.inputs.shape == (3, 4) == split.labels.shape
    assert split.inputs.max() < 12 and split.labels.max() < 12
  finally:
    file.write_bytes(files[file])


@pytest.mark.parametrize("shape", ["(3, -4)", "(2**40,)", "(99999999999, 4)"])
@pytest.mark.parametrize(
  "descr", ["'|u1'", "'|O'", "'<i8'", "[('a', 'u1')]", "1"]
)
def test_headers_that_lie_are_refused(tiny, shape, descr):
  path, files = tiny
  header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
  file = path / "train" / "all__inputs.npy"
  data = header.ljust(117).encode() + b"\n"
  file.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + data + bytes(12))
  with pytest.raises(UserError, match=r"all__inputs\.npy: "):
    read(path, "train")
  file.write_bytes(files[file])
