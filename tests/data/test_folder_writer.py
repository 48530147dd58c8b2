import dataclasses
import json
import shutil

import hypothesis
import numpy as np
import pytest
from conftest import DATA
from hypothesis import strategies as st
from test_folder import ARC, arrays_of
from test_task import puzzles_of, splits

from trm_jax.data import datasets, folder, folder_arrays, folder_writer
from trm_jax.data.arc import predictions
from trm_jax.data.arc.task import ArcData, arc_task
from trm_jax.data.task import BLANK, Split, Symmetry, Task
from trm_jax.errors import UserError

VOCABULARY = 7  # of the random splits


def shift(symmetry, tokens):
  """A made-up view: every byte of the symmetry matters."""
  by = (symmetry.astype(int) * np.array([1, 2, 3])).sum()
  return ((tokens + by) % VOCABULARY).astype(np.uint8)


def task_of(vocab_size=VOCABULARY, apply=shift):
  """A task of 4 tokens with copies."""
  return Task(
    "toy", 4, vocab_size, np.array, str, print,
    copies=Symmetry(sample=print, apply=apply),
  )  # fmt: skip


def originals(split):
  """The split with the examples of originals only, shared by their copies."""
  first = split.first_puzzle[:-1]
  group = np.repeat(np.arange(len(split)), np.diff(split.first_puzzle))
  return dataclasses.replace(
    split, first_example=split.first_example[first][group], is_viewed=False
  )


def test_copies_are_written_as_the_builder_wrote_them(tmp_path):
  parts = {
    "train": folder.read(ARC, "train", arc_task()),
    "test": originals(folder.read(ARC, "test", arc_task())),
  }
  folder_writer.write(
    tmp_path / "made",
    parts,
    folder.identifiers(ARC),
    arc_task(),
  )
  made = sorted(p for p in (tmp_path / "made").rglob("*") if p.is_file())
  assert len(made) == 13
  for path in made:
    theirs = ARC / path.relative_to(tmp_path / "made")
    assert path.read_bytes() == theirs.read_bytes(), path.name


def as_reference_reads(path, split):
  """Every example of every puzzle, the way the reference walks a folder."""
  arrays = arrays_of(path, split)
  puzzles = []
  for group in range(len(arrays["group_indices"]) - 1):
    begin, end = arrays["group_indices"][group : group + 2]
    puzzles.append(
      [
        (
          int(arrays["puzzle_identifiers"][q]),
          [
            (arrays["inputs"][n].tolist(), arrays["labels"][n].tolist())
            for n in range(*arrays["puzzle_indices"][q : q + 2])
          ],
        )
        for q in range(begin, end)
      ]
    )
  return puzzles


def shown(split):
  """The same of a split, with copies as `shift` makes them."""

  def see(tokens, puzzle):
    if split.is_viewed or puzzle["symmetry"] is None:
      return tokens
    symmetry = np.array(puzzle["symmetry"], np.uint8)
    return shift(symmetry, np.array(tokens, np.uint8)).tolist()

  return [
    [
      (puzzle["id"], [(see(x, puzzle), see(y, puzzle)) for x, y in examples])
      for puzzle in puzzles_of(split, group)
      for examples in [puzzle["examples"]]
    ]
    for group in range(len(split))
  ]


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(split=splits(VOCABULARY), data=st.data())
def test_what_is_written_is_read(tmp_path_factory, split, data):
  order = np.array(data.draw(st.permutations(range(len(split)))))
  train = split.take(order, data.draw(st.integers(0, 2)))
  names = [BLANK, *(f"puzzle {q}" for q in range(len(split.puzzle_ids)))]
  path = tmp_path_factory.mktemp("written") / "deep" / "folder"
  written = {"train": train, "test": split}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      folder_arrays, "_CHUNK", data.draw(st.sampled_from([1, 8, 1 << 22]))
    )
    folder_writer.write(path, written, names, task_of())
    assert folder.identifiers(path) == names
    assert folder.metadata(path) == folder.Metadata(
      4, VOCABULARY, len(names), ("train", "test")
    )
    for name, source in written.items():
      assert as_reference_reads(path, name) == shown(source)
      header = json.loads((path / name / "dataset.json").read_text())
      assert header["total_groups"] == len(source)
      assert header["total_puzzles"] == len(source.puzzle_ids)
      assert header["mean_puzzle_examples"] == source.num_examples.mean()
      back = folder.read(path, name, task_of())
      assert back.is_viewed
      np.testing.assert_array_equal(back.first_puzzle, source.first_puzzle)
      np.testing.assert_array_equal(back.num_examples, source.num_examples)
      # What was read can be written and read again, to the byte.
      again = path.with_name(f"again-{name}")
      folder_writer.write(again, {name: back}, names, task_of())
      for file in (again / name).iterdir():
        assert file.read_bytes() == (path / name / file.name).read_bytes()
  shutil.rmtree(path.parent)


TASK = task_of(12)


def rows(count=3):
  tokens = np.arange(4 * count, dtype=np.uint8).reshape(count, 4)
  return Split.of_rows(tokens, tokens)


def contents(path):
  return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_folder_is_new_or_empty(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine").write_text("keep")
  (tmp_path / "file").write_text("keep")
  folder_writer.write(tmp_path / "empty", {"train": rows()}, ["<blank>"], TASK)
  assert len(folder.read(tmp_path / "empty", "train", TASK)) == 3
  before = contents(tmp_path)
  for name in ("full", "file", "empty"):
    with pytest.raises(UserError, match="something is there already"):
      folder_writer.write(tmp_path / name, {"train": rows()}, ["<blank>"], TASK)
  with pytest.raises(UserError, match=r"file.below: cannot be written"):
    folder_writer.write(
      tmp_path / "file" / "below", {"train": rows()}, ["a"], TASK
    )
  assert contents(tmp_path) == before


def test_nothing_half_written_is_left(tmp_path):
  split = dataclasses.replace(
    rows(), symmetries=np.zeros((3, 3), np.uint8), names=("a", "b", "c")
  )

  def fails(symmetry, tokens):
    raise ArithmeticError("no such view")

  def write(splits, apply=shift, vocab_size=12, names=("<blank>",)):
    task = task_of(vocab_size, apply)
    folder_writer.write(tmp_path / "made", splits, names, task)

  with pytest.raises(ArithmeticError):
    write({"train": rows(), "test": split}, fails)
  with pytest.raises(UserError, match="is 11; expected 0 to 10"):
    write({"train": rows()}, vocab_size=11)
  ids = dataclasses.replace(rows(), puzzle_ids=np.array([1, 2, 3], np.int32))
  with pytest.raises(UserError, match="puzzle 2 has 3; expected 0 to 2"):
    write({"train": ids}, names=("<blank>", "a", "b"))
  wide = np.zeros((1, 5), np.uint8)
  with pytest.raises(UserError, match="seq_len is 5, but 4"):
    write({"train": rows(), "test": Split.of_rows(wide, wide)})
  with pytest.raises(UserError, match="without puzzles"):
    write({"train": rows().take(np.array([], int))})
  with pytest.raises(UserError, match="no dataset in it"):
    write({})
  with pytest.raises(UserError, match="no dataset in it"):
    write({"valid": rows()})
  assert contents(tmp_path) == []


def test_an_unknown_output_is_left_out(tmp_path):
  data = ArcData(
    test=str(DATA / "cases" / "arc_output_null.json"), num_aug=2, size=4,
    cache_dir=str(tmp_path / "c"),
  )  # fmt: skip
  splits = {name: datasets.load(data, name) for name in ("train", "test")}
  made = folder_writer.test_puzzles(splits, data.task)
  assert made["arc_output_null"]["test"] == [{"input": [[5, 6], [7, 8]]}]
  assert "output" in made["arc_output_null"]["train"][0]
  path = tmp_path / "test_puzzles.json"
  path.write_text(json.dumps(made))
  (((question, answer),),) = predictions.read_pairs(path).values()
  assert question.tolist() == [[5, 6], [7, 8]] and answer is None
  names = datasets.identifiers(data)
  folder_writer.write(tmp_path / "made", splits, names, data.task)
  assert not folder.read(tmp_path / "made", "test", data.task).labels.any()
