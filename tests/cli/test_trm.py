"""The command `trm`: what it lists, finds and installs."""

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from programs import ROOT, environment, run_here

import trm_jax
from trm_jax.cli import programs, shipped

NAMES = shipped.names("experiments")

# These still load jax for --help.
SLOW = {
  "arc_score", "benchmark", "compile", "depth_vs_compute", "evaluate",
  "export", "halting", "import_torch", "parity", "profile", "show", "solve",
  "train", "write_folder",
}  # fmt: skip

# Flags that `app` defines for programs.
SHARED = {
  "app.define_config()": {"config"},
  "app.define_skip_bad_rows()": {"skip_bad_rows"},
  "app.define_processes()": {
    "distributed", "coordinator", "num_processes", "process_id",
    "heartbeat_seconds", "join_seconds",
  },
}  # fmt: skip

# Asks programs for their help where jax cannot be imported. One fork each.
_ASK = """
import json, os, sys
from trm_jax.cli import programs
sys.modules["jax"] = None
for name in sys.argv[2:]:
  if os.fork():
    _, status = os.wait()
    assert not status, name
    continue
  os.dup2(os.open(f"{sys.argv[1]}/{name}", os.O_CREAT | os.O_WRONLY), 1)
  sys.exit(programs.main(["trm", name, "--help"]))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
  """What each program says to --help."""
  folder = tmp_path_factory.mktemp("help")
  light = sorted(set(NAMES) - SLOW)
  command = [sys.executable, "-c", _ASK, str(folder), *light]
  subprocess.run(command, env=environment(), cwd=folder, check=True)
  told = {path.name: path.read_text() for path in folder.iterdir()}
  for name in SLOW & set(NAMES):
    status, told[name] = run_here(name, "--help")
    assert status == 0, told[name]
  return told


@pytest.mark.parametrize("name", NAMES)
def test_help_is_the_docstring_and_the_own_flags(helps, name):
  source = (ROOT / "experiments" / f"{name}.py").read_text()
  text = ast.get_docstring(ast.parse(source)) or ""
  assert text.splitlines()[0] in helps[name]
  assert re.search(rf"(trm|python -m experiments\.) ?{name}\b", helps[name])
  assert f"\ntrm {name}:" in helps[name] or "DEFINE" not in source
  defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
  flags = set(re.findall(r"^  --(?:\[no\])?(\w+)", helps[name], re.MULTILINE))
  for define, shared in SHARED.items():
    if define in source:
      defined |= shared
  assert defined <= flags
  # Those of `solve_flags` are the fields of its settings.
  assert defined == flags or "solve_flags" in source
  assert not flags & {"v", "verbosity", "pdb", "flagfile"}
  assert len(helps[name].splitlines()) < 110


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_trm_lists_the_programs(arguments, capsys):
  assert programs.main(["trm", *arguments]) == 0
  listed = capsys.readouterr().out
  for name in NAMES:
    summary = shipped.docstring("experiments", name).splitlines()[0]
    assert re.search(rf"^  {name} +{re.escape(summary)}$", listed, re.M)


def test_an_unknown_program_is_refused_with_the_nearest(capsys):
  assert programs.main(["trm", "trian", "--workdir=x"]) == 2
  told = capsys.readouterr().err
  assert "no program 'trian': did you mean 'train'?" in told


def test_errors_name_the_command():
  status, printed = run_here("plot", "--ouch=x.png")
  assert status == 2
  assert "see trm plot --help" in printed


def test_the_version(capsys):
  assert programs.main(["trm", "--version"]) == 0
  assert capsys.readouterr().out == f"trm_jax {trm_jax.__version__}\n"


def test_configs_are_listed_and_explained():
  status, printed = run_here("configs")
  assert status == 0
  assert re.search("^  maze_hard +Maze-Hard: 30x30", printed, re.M)
  status, printed = run_here("configs", "maze_hard")
  assert printed.startswith("Maze-Hard") and "hours" in printed
  status, printed = run_here("configs", "maze_hart")
  assert status == 2 and "did you mean 'maze_hard'?" in printed


@pytest.mark.parametrize("start", ["trm_jax", "experiments"])
def test_programs_start_as_modules(start, tmp_path):
  command = ["trm_jax", "configs"]
  if start == "experiments":
    command = ["experiments.configs"]
  done = subprocess.run(
    [sys.executable, "-m", *command, "--nothing"],
    env=environment(), cwd=tmp_path, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2
  called = "trm configs" if start == "trm_jax" else "python -m experiments"
  assert f"see {called}" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of a copy of this checkout, as {file: bytes}."""
  setuptools = pytest.importorskip("setuptools", "77")
  assert setuptools
  folder = tmp_path_factory.mktemp("wheel")
  for name in ("trm_jax", "experiments", "configs"):
    shutil.copytree(
      ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, folder)
  build = "from setuptools import build_meta; build_meta.build_wheel('.')"
  subprocess.run(
    [sys.executable, "-c", build], cwd=folder, check=True, capture_output=True
  )
  (made,) = folder.glob("*.whl")
  with zipfile.ZipFile(made) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_programs_and_configs_inside_the_package(wheel):
  inside = {name for name in wheel if ".dist-info/" not in name}
  rooms = {"trm_jax": "", "experiments": "trm_jax/", "configs": "trm_jax/"}
  expected = {
    f"{prefix}{path.relative_to(ROOT).as_posix()}"
    for room, prefix in rooms.items()
    for path in (ROOT / room).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  assert inside == expected


def test_the_wheel_names_the_command(wheel):
  (entry,) = (n for n in wheel if n.endswith("dist-info/entry_points.txt"))
  assert b"trm = trm_jax.cli.programs:main" in wheel[entry]
  (name,) = (n for n in wheel if n.endswith("dist-info/METADATA"))
  metadata = email.message_from_bytes(wheel[name])
  for field in ("Keywords", "Classifier", "Project-URL", "Summary"):
    assert metadata[field]


def test_the_wheel_works_in_an_empty_folder(wheel, tmp_path):
  """Unpacked; its dependencies are those of this environment."""
  for name, content in wheel.items():
    path = tmp_path / "site" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  (tmp_path / "empty").mkdir()
  program = """
import json, sys
import trm_jax
from trm_jax.cli import configs, programs, shipped
json.dump({
  "file": trm_jax.__file__,
  "programs": shipped.names("experiments"),
  "config": configs.load("scaling:1024").to_dict(),
}, sys.stdout)
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=environment() | {"PYTHONPATH": os.fspath(tmp_path / "site")},
    cwd=tmp_path / "empty", capture_output=True, text=True, check=True,
  )  # fmt: skip
  told = json.loads(done.stdout)
  assert told["file"].startswith(os.fspath(tmp_path))
  assert told["programs"] == NAMES
  assert told["config"]["model"]["width"] == 1024
