"""What a user is told: a short message, status 2, and nothing overwritten."""

import json
import pathlib
import re
import shutil

import pytest
from huggingface_hub import constants
from programs import TINY, run_here, run_program

HEADER = "source,question,answer,rating"
GOOD = "made,12..3.1..1.34..1,1234341221434321,0"
BAD_ROWS = {
  "short": "made,12..3.1,1234341221434321,0",
  "wrong": "made,12..3.1..1.34..1,1234341221434312,0",
  "two": "made,12..............,1234341221434321,0",
}

CONFIG_FILES = {
  "syntax": "def get_config(:\n",
  "nothing": "x = 1\n",
  "missing_package": "import no_such_package\n",
  "number": "def get_config():\n  return 3\n",
  "no_variants": "def get_config():\n  return None\n",
  "unreadable": "def get_config():\n  open('/no/such/file')\n",
}

# name -> (program, flags, what the message must say). {} is the test's folder;
# "tiny" stands for the flags of a tiny experiment, "same" for those of the run
# in {}/run, "new" for a fresh workdir.
CASES = {
  # Flags.
  "no_config": ("train", "new", r"--config is missing: name a FILE\.py, or"),
  "no_workdir": ("train", "tiny", r"--workdir is missing"),
  "bad_flag": ("train", "tiny new --wrkdir=x", r"'wrkdir'.*workdir"),
  "junk": ("train", "tiny new junk", r"unexpected arguments \['junk'\]"),
  "bad_depth": (
    "evaluate",
    "--workdir={}/run --depth=2,x",
    r"--depth=2,x: must",
  ),
  "bad_seconds": ("benchmark", "tiny --seconds=0", r"--seconds=0"),
  "bad_dtype": ("parity", "f.npz --dtype=x", r"float64\|float32"),
  "no_recording": ("parity", "", r"exactly one FILE\.npz"),
  "no_folders": ("plot", "", r"one or more run folders"),
  "bad_picture": ("plot", "{}/run --out={}/x.foo", r"must end in \.png"),
  # Configs.
  "typo": (
    "train",
    "tiny new --config.optm.lr=1",
    r'--config\.optm\.lr=1: .*no field \'optm\'. Did you mean "optim"',
  ),
  "unset": (
    "train",
    "tiny new --config.train.nope=1",
    r"--config\.train\.nope=1: the config has no field 'nope'",
  ),
  "type": (
    "train",
    "tiny new --config.train.batch_size=abc",
    r"--config\.train\.batch_size=abc",
  ),
  "negative": (
    "train",
    "tiny new --config.train.batch_size=-8",
    r"config\.train\.batch_size=-8: must be from 1 to 16777216",
  ),
  "indivisible": (
    "train",
    "tiny new --config.train.batch_size=12",
    r"config\.train\.batch_size=12: must be a multiple of the 8 .*8 or 16",
  ),
  "benchmark_indivisible": (
    "benchmark",
    "tiny --config.eval.batch_size=12",
    r"config\.eval\.batch_size=12: must be a multiple of the 8",
  ),
  "mesh": ("train", "tiny new --config.mesh.model=3", r"there are 8 devices"),
  "no_file": ("train", "--config={}/no.py new", r"no\.py: there is no such"),
  "no_file_but_changed": (
    "train",
    "--config={}/no.py --config.train.steps=4 new",
    r"no\.py: there is no such file",
  ),
  "variant": (
    "train",
    "--config=configs/sudoku_extreme.py:foo new",
    r"foo: the variant must be one of mlp, attention",
  ),
  "variant_of_none": (
    "train",
    "--config={}/no_variants.py:foo new",
    r"no_variants\.py:foo: this config has no variants",
  ),
  "syntax": ("train", "--config={}/syntax.py new", r"syntax\.py, line 1"),
  "nothing": ("train", "--config={}/nothing.py new", r"no function get_config"),
  "number": ("train", "--config={}/number.py new", r"must return a ConfigDict"),
  "package": (
    "train",
    "--config={}/missing_package.py new",
    r"No module named 'no_such_package' \(.*missing_package\.py, line 1\)",
  ),
  "unreadable": (
    "train",
    "--config={}/unreadable.py new",
    r"/no/such/file.*unreadable\.py, line 2",
  ),
  # Data.
  **{
    f"csv_{name}": (
      "train",
      f"tiny new --config.data.train={{}}/{name}.csv",
      rf"{name}\.csv, line 4: {reason}.*--skip_bad_rows",
    )
    for name, reason in (
      ("short", "question: 7 characters; expected 16"),
      ("wrong", "answer: .* contradicts"),
      ("two", "question: .* more than one solution"),
    )
  },
  "csv_empty": (
    "train",
    "tiny new --config.data.train={}/empty.csv",
    r"empty\.csv: the file has no rows",
  ),
  "csv_missing": (
    "train",
    "tiny new --config.data.train={}/none.csv",
    r"none\.csv: cannot be read .*Check the path",
  ),
  "hub": (
    "train",
    "--config=configs/sudoku_extreme.py new",
    r"train: 'hub'.*download train\.csv from https.*set train to its path",
  ),
  "other_size": (
    "evaluate",
    "--workdir={}/run --data=tests/recorded/sudoku_sample.csv",
    r"line 2: question: 81 characters; expected 16, as a 4x4 board has",
  ),
  # Folders.
  "file_as_workdir": (
    "train",
    "tiny --workdir={}/file",
    r"a file is in the way",
  ),
  "below_a_file": (
    "train",
    "tiny --workdir={}/file/x",
    r"a file is in the way",
  ),
  "other_config": (
    "train",
    "same --workdir={}/run --config.optim.lr=0.5",
    r"another config.*\n  optim\.lr: 0\.002 there, 0\.5 here",
  ),
  "no_folder": ("evaluate", "--workdir={}/none", r"not a run folder"),
  "no_folder_to_plot": ("plot", "{}/none", r"not a run folder"),
  "no_checkpoint": (
    "evaluate",
    "--workdir={}/run --checkpoint=999",
    r"checkpoint '999': must be 'best', 'last' or one of the steps",
  ),
  "emptied": ("evaluate", "--workdir={}/emptied", r"no complete checkpoint"),
  "broken_config": (
    "train",
    "same --workdir={}/broken",
    r"config\.json is dam",
  ),
  "broken_config_2": (
    "evaluate",
    "--workdir={}/broken",
    r"config\.json is dam",
  ),
  "broken_metrics": (
    "plot",
    "{}/torn",
    r"metrics\.jsonl, line 2 is damaged .*delete that line",
  ),
  "broken_metrics_2": (
    "train",
    "same --workdir={}/torn",
    r"metrics\.jsonl, line 2 is damaged",
  ),
  "truncated": (
    "evaluate",
    "--workdir={}/truncated --checkpoint=last",
    r"checkpoints/24 is damaged; delete that folder to go back to step",
  ),
  "truncated_2": (
    "train",
    "same --workdir={}/truncated",
    r"checkpoints/24 is damaged; delete that folder to go back to step",
  ),
  "edited": (
    "evaluate",
    "--workdir={}/edited",
    r"of another model than the config describes",
  ),
  "no_reference": (
    "benchmark_reference",
    "{}/none --config=configs/demo.py",
    r"none: not a checkout of the reference",
  ),
  "no_archive": (
    "parity",
    "{}/none.npz",
    r"none\.npz: cannot be read",
  ),
}

COUNTED = r"mixed\.csv: 3 bad rows of 12 were left out.*line 11: question: 7"


def _same(folder):
  mixed = f"--config.data.train={folder / 'mixed.csv'}"
  keep = "--config.checkpoint.keep=2"
  return [*TINY(folder), mixed, keep, "--skip_bad_rows"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A finished run, damaged copies of it, and bad files of every kind."""
  folder = tmp_path_factory.mktemp("user")
  (folder / "file").write_text("mine")
  for name, text in CONFIG_FILES.items():
    (folder / f"{name}.py").write_text(text)
  for name, row in BAD_ROWS.items():
    lines = [HEADER, GOOD, GOOD, row, GOOD]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
  (folder / "empty.csv").write_text(f"{HEADER}\n")
  lines = [HEADER, *[GOOD] * 9, *BAD_ROWS.values()]
  (folder / "mixed.csv").write_text("\n".join(lines) + "\n")
  workdir = folder / "run"
  status, printed = run_here("train", *_same(folder), f"--workdir={workdir}")
  assert status == 0, printed
  (folder / "run.log").write_text(printed)

  def copy(name):
    return shutil.copytree(workdir, folder / name)

  copy("evaluated")
  shutil.rmtree(copy("emptied") / "checkpoints")
  (folder / "emptied" / "checkpoints").mkdir()
  (copy("broken") / "config.json").write_text('{"data": ')
  metrics = copy("torn") / "metrics.jsonl"
  lines = metrics.read_text().splitlines()
  metrics.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
  manifest = copy("truncated") / "checkpoints/24/state/manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:20])
  config = copy("edited") / "config.json"
  config.write_text(config.read_text().replace('"width": 16', '"width": 24'))
  return folder


@pytest.fixture(scope="module")
def outcomes(folder):
  """name -> (status, printed), and what the folder held before and after."""
  before = _contents(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
    results = {
      name: run_here(program, *_words(flags, folder))
      for name, (program, flags, _) in CASES.items()
    }
    # Evaluated on a copy, for it writes its results.
    results["count"] = run_here(
      "evaluate",
      f"--workdir={folder / 'evaluated'}",
      f"--data={folder / 'mixed.csv'}",
      "--depth=1",
      "--skip_bad_rows",
    )
  return results, before, _contents(folder)


def _words(flags, folder):
  words = []
  for flag in flags.replace("{}", str(folder)).split():
    short = {
      "tiny": TINY(folder),
      "same": _same(folder),
      "new": [f"--workdir={folder / 'new'}"],
    }
    words += short.get(flag, [flag])
  return words


def _contents(folder):
  """What a user would miss; not what programs keep for themselves."""
  files = (path for path in folder.rglob("*") if path.is_file())
  expected = ("data", "new", "hf", "evaluated")
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in files
    if path.name != ".lock"
    and path.relative_to(folder).parts[0] not in expected
  }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_a_line(outcomes, name):
  status, printed = outcomes[0][name]
  assert status == 2, printed
  assert "Traceback" not in printed
  assert len(printed.splitlines()) < 8, printed
  (message,) = re.findall(r"^error: [^$]*", printed, re.MULTILINE)
  assert re.search(CASES[name][2], message), message


def test_nothing_is_overwritten(outcomes):
  _, before, after = outcomes
  changed = [name for name in before if before[name] != after.get(name)]
  assert not changed
  assert not after.keys() - before.keys()


def test_bad_rows_are_skipped_and_counted(folder, outcomes):
  printed = (folder / "run.log").read_text()
  assert printed.startswith("preparing the puzzles")  # said before it starts
  assert re.search(COUNTED, printed)
  config = json.loads((folder / "run" / "config.json").read_text())
  assert config["data"]["skip_bad_rows"] is True
  overrides = json.loads((folder / "run" / "overrides.json").read_text())
  assert overrides["data.skip_bad_rows"] is True
  status, printed = outcomes[0]["count"]
  assert status == 0, printed
  assert re.search(COUNTED, printed)
  assert re.search(r"9 puzzles of .*mixed\.csv", printed)
  # Prepared already, the data still tell.
  _, printed = outcomes[0]["truncated_2"]
  assert "preparing" not in printed
  assert re.search(COUNTED, printed)


def test_a_run_that_diverges_is_stopped(folder, tmp_path):
  workdir = tmp_path / "run"
  printed = run_program(
    "train",
    *TINY(folder),
    "--config.optim.lr=1e30",
    f"--workdir={workdir}",
    status=2,
  )
  assert re.search(
    r"^error: training stopped: at step \d+ .*=nan", printed, re.M
  )
  assert "Traceback" not in printed
  assert not list(pathlib.Path(workdir / "checkpoints").iterdir())
