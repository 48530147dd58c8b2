import json
import os

import pytest

from trm_jax.errors import UserError
from trm_jax.run import folder as run_folder
from trm_jax.run.files import read_optional, write_json
from trm_jax.run.folder import RunFolder

CONFIG = {
  "data": {"size": 4, "givens": (4, 8), "cache_dir": ""},
  "optim": {"lr": 1e-3},
  "mesh": {"data": -1},
}


def _changed(section, **fields):
  return CONFIG | {section: CONFIG[section] | fields}


def _claim(path, config=CONFIG):
  """Claims a folder as a process of its own would, and leaves it again."""
  folder = RunFolder(path)
  folder.claim(config, {"optim.lr": 1e-3})
  folder.release()


@pytest.fixture
def trained(tmp_path):
  """The folder of a run that has measured something."""
  _claim(tmp_path / "run")
  (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
  return tmp_path / "run"


def _contents(path):
  files = (p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
  return {p.relative_to(path): p.read_bytes() for p in files}


def test_a_claim_keeps_the_config(tmp_path):
  _claim(tmp_path / "deep" / "run")
  folder = RunFolder(tmp_path / "deep" / "run")
  assert folder.read_config() == json.loads(json.dumps(CONFIG))
  overrides = json.loads((folder.path / "overrides.json").read_text())
  assert overrides == {"optim.lr": 1e-3}


def test_the_same_config_may_come_again(trained):
  before = _contents(trained)
  _claim(trained)
  _claim(trained, _changed("mesh", data=8, model=2))
  _claim(trained, _changed("data", cache_dir="elsewhere"))
  _claim(trained, {k: v for k, v in CONFIG.items() if k != "mesh"})
  assert _contents(trained) == before


def test_another_config_is_refused_field_by_field(trained):
  before = _contents(trained)
  other = _changed("data", givens=(4, 9), extra=1) | {"optim": {}}
  with pytest.raises(UserError) as refusal:
    _claim(trained, other)
  message = str(refusal.value)
  assert "use another --workdir" in message
  assert "data.givens: [4, 8] there, [4, 9] here" in message
  assert "data.extra: '(missing)' there, 1 here" in message
  assert "optim.lr: 0.001 there, 0.0001 here" in message
  assert "size" not in message
  assert _contents(trained) == before
  _claim(trained)  # the refusal let go of the lock


def test_a_field_that_was_left_out_had_its_default(trained):
  _claim(trained, _changed("optim", ema=0.999) | {"mesh": {"model": 1}})
  with pytest.raises(UserError, match=r"optim\.ema: 0\.999 there, 0\.9 here"):
    _claim(trained, _changed("optim", ema=0.9))


def test_checkpoints_alone_protect_a_run(tmp_path):
  _claim(tmp_path)
  (tmp_path / "checkpoints" / "100").mkdir(parents=True)
  with pytest.raises(UserError, match=r"optim\.lr"):
    _claim(tmp_path, _changed("optim", lr=1.0))


def test_a_run_that_never_began_may_be_mended(tmp_path):
  _claim(tmp_path)
  (tmp_path / "metrics.jsonl").touch()
  (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
  _claim(tmp_path, _changed("optim", lr=1.0))
  assert RunFolder(tmp_path).read_config()["optim"]["lr"] == 1.0


def test_a_second_process_is_refused(tmp_path):
  first = RunFolder(tmp_path)
  first.claim(CONFIG, {})
  with pytest.raises(UserError, match="another process is training"):
    _claim(tmp_path)
  first.release()
  _claim(tmp_path)


@pytest.mark.parametrize("text", ["", '{"data": ', "[1]", '{"data": 3}', "\0"])
def test_a_damaged_config_is_refused_and_kept(trained, text):
  (trained / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json is damaged .*put back"):
    _claim(trained)
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    RunFolder(trained).read_config()
  assert (trained / "config.json").read_text() == text


def test_folders_that_cannot_be(tmp_path):
  with pytest.raises(UserError, match="--workdir is missing"):
    RunFolder("")
  with pytest.raises(UserError, match="not a run folder"):
    RunFolder(tmp_path).read_config()
  file = tmp_path / "file"
  file.write_text("mine")
  for path in (file, file / "below"):
    with pytest.raises(UserError, match="a file is in the way"):
      _claim(path)
    with pytest.raises(UserError, match="not a run folder"):
      RunFolder(path).read_config()
  assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(30, "Read-only file system")

  monkeypatch.setattr(run_folder.filelock.FileLock, "acquire", refuse)
  with pytest.raises(UserError, match=r"Read-only.*another --workdir"):
    _claim(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "deep" / "result.json"
  write_json(path, {"exact": 0.5})

  def half(self, content):
    with self.open("wb") as file:
      file.write(content[:3])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(type(path), "write_bytes", half)
  with pytest.raises(UserError, match=r"cannot write .*No space left"):
    write_json(path, {"exact": 0.75})
  assert json.loads(path.read_text()) == {"exact": 0.5}
  assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_names_of_puzzles_never_change_once_trained(trained):
  folder = RunFolder(trained)
  names = ["<blank>", "a", "b"]
  folder.keep_identifiers(names)
  folder.keep_identifiers(names)
  assert folder.read_identifiers() == names
  for others, told in (
    (["<blank>", "b", "a"], "the first is 'a' there, 'b' in the data"),
    (["<blank>"], "3 there, 1 in the data"),
  ):
    with pytest.raises(UserError, match=told):
      folder.keep_identifiers(others)
  assert folder.read_identifiers() == names


def test_names_of_puzzles_may_change_before(tmp_path):
  _claim(tmp_path / "run")
  folder = RunFolder(tmp_path / "run")
  for names in (["<blank>", "a"], ["<blank>", "b", "c"]):
    folder.keep_identifiers(names)
    assert folder.read_identifiers() == names


def test_an_optional_file_may_be_missing_but_not_damaged(tmp_path):
  path = tmp_path / "some.json"
  assert read_optional(path) == {}
  write_json(path, {"a": 1})
  assert read_optional(path) == {"a": 1}
  for text in ("", "[1]", "{", "[" * 100_000):
    path.write_text(text)
    with pytest.raises(UserError, match="is damaged"):
      read_optional(path)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
  mine = tmp_path / "mine"
  mine.write_text("precious")
  for name in ("run.json.tmp", ".run.json.tmp"):
    (tmp_path / name).symlink_to(mine)
  write_json(tmp_path / "run.json", {"a": 1})
  assert mine.read_text() == "precious"
  (tmp_path / "run.json").unlink()
  (tmp_path / "run.json").symlink_to(mine)  # is replaced itself
  write_json(tmp_path / "run.json", {"a": 2})
  assert mine.read_text() == "precious"


def test_what_is_no_plain_file_is_not_read(tmp_path):
  path = tmp_path / "some.json"
  os.mkfifo(path)  # opening it would block
  with pytest.raises(UserError, match="not a regular file"):
    read_optional(path)
  path.unlink()
  path.symlink_to("/dev/zero")
  with pytest.raises(UserError, match="not a regular file"):
    read_optional(path)


def test_the_config_of_another_program_is_kept(tmp_path):
  text = '{"model_type": {"name": "bert"}}'
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(
    UserError, match=r"holds a config\.json of something else"
  ):
    _claim(tmp_path)
  assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?", "b\\c"])
def test_names_that_orbax_reads_as_patterns_are_refused(tmp_path, name):
  with pytest.raises(UserError, match="Orbax cannot read back a folder with"):
    RunFolder(tmp_path / name / "run")


def test_without_digests_the_sources_of_data_may_not_change(trained):
  message = r"data\.train: 'hub' there, 'x\.csv' here"
  with pytest.raises(UserError, match=message):
    _claim(trained, _changed("data", train="x.csv"))
