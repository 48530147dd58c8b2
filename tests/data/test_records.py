"""Datasets on disk, whatever their records are."""

import fcntl
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from trm_jax.data import records
from trm_jax.errors import UserError


def squares(name="squares", count=40, dtype=np.int64):
  return records.RecordsConfig(
    name=name,
    features={"value": tfds.features.Tensor(shape=(), dtype=dtype)},
    make=lambda: (
      {"train": ({"value": n * n} for n in range(count))},
      [f"{count} squares"],
    ),
  )


def prepare(cache, config=None, say=lambda text: None):
  return records.prepare(config or squares(), str(cache), say, "making squares")


def values(builder):
  rows = records.read(builder, "train")
  return [row["value"].int64_list.value[0] for row in rows]


def test_a_dataset_is_all_that_is_left_on_disk(tmp_path, monkeypatch):
  temporary, kept = tmp_path / "temporary", tmp_path / "kept"
  temporary.mkdir()
  monkeypatch.setattr("tempfile.tempdir", str(temporary))
  said = []
  for _ in range(2):
    builder = prepare(kept, say=said.append)
    assert values(builder) == [n * n for n in range(40)]
    assert records.notes(builder) == ["40 squares"]
  assert said == ["making squares"]  # made once, then found
  assert not list(temporary.iterdir())


# Damage.

FILES = (
  "dataset_info.json",
  "digests.json",
  "features.json",
  "metadata.json",
  "records-train.array_record-00000-of-00001",
)


def flip(place):
  def damage(path):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)

  return damage


def cut(share):
  return lambda path: os.truncate(path, int(path.stat().st_size * share))


def put(content):
  return lambda path: path.write_bytes(content)


def swap(path):
  """Puts the file of a shorter dataset in its place."""
  cache = path.parent.parent / "other"
  other = prepare(cache, squares("squares", 24, np.int32)).data_dir
  shutil.copy(pathlib.Path(other) / path.name, path)


def in_place_of(make):
  def damage(path):
    path.unlink()
    make(path)

  return damage


DAMAGES = {
  "flipped at the beginning": flip(0),
  "flipped in the middle": flip(0.5),
  "flipped at the end": flip(1),
  "empty": cut(0),
  "half": cut(0.5),
  "all but the end": cut(0.99),
  "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n{"),
  "deleted": pathlib.Path.unlink,
  "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
  "another object": put(b"{}"),
  "a list": put(b"[]"),
  "deep": put(b"[" * 100_000),
  "a large number": put(b'{"dataset": ' + b"9" * 5000 + b"}"),
  "of another dataset": swap,
  "a folder": in_place_of(os.mkdir),
  "a pipe": in_place_of(os.mkfifo),
  "a link to nothing": in_place_of(lambda path: path.symlink_to("nothing")),
}


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
  cache = tmp_path_factory.mktemp("undamaged")
  prepare(cache)
  return cache


@pytest.fixture
def cache(undamaged, tmp_path):
  return pathlib.Path(shutil.copytree(undamaged, tmp_path / "cache"))


def folder_of(cache):
  (folder,) = cache.glob("records/squares/1.*")
  return folder


def test_these_are_all_files(cache):
  assert sorted(p.name for p in folder_of(cache).iterdir()) == list(FILES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_told_in_a_line(cache, file, damage):
  folder = folder_of(cache)
  DAMAGES[damage](folder / file)
  with pytest.raises(UserError) as error:
    prepare(cache)
  message = str(error.value)
  assert message.startswith(f"{folder} is damaged (")
  assert file in message or file == "digests.json"
  assert message.endswith(f"delete {folder}, it is made again")
  assert "\n" not in message and len(message) < 1000


def test_a_damaged_dataset_is_made_again_once_deleted(cache):
  folder = folder_of(cache)
  cut(0.5)(folder / FILES[-1])
  with pytest.raises(UserError, match="is damaged"):
    prepare(cache)
  shutil.rmtree(folder)
  assert len(values(prepare(cache))) == 40


def test_a_folder_without_the_dataset_is_refused(cache):
  folder = folder_of(cache)
  other = cache / "records" / "other" / folder.name
  other.parent.mkdir()
  folder.rename(other)
  with pytest.raises(UserError, match="dataset has changed"):
    prepare(cache, squares("other"))
  for make in (pathlib.Path.mkdir, pathlib.Path.touch):
    make(folder)
    with pytest.raises(UserError, match="is damaged"):
      prepare(cache)
    shutil.rmtree(folder, ignore_errors=True)


def test_hidden_and_added_files_do_no_harm(cache):
  for name in (".DS_Store", "notes.txt"):
    (folder_of(cache) / name).write_text("x")
  assert len(values(prepare(cache))) == 40


# Interrupted preparations.


def test_what_they_left_is_deleted_unless_it_is_written_to(cache):
  left = cache / "records" / "older" / "incomplete.X_1.0.0"
  left.mkdir(parents=True)
  (left / "records").write_text("x")
  with open(cache / "records" / ".lock", "ab") as other:  # as another process
    fcntl.flock(other, fcntl.LOCK_SH)
    assert len(values(prepare(cache, squares("second")))) == 40
    assert left.exists()
  prepare(cache, squares("third"))
  assert not left.exists()
  assert len(values(prepare(cache))) == 40
