"""`~` is the home folder in every path, and no folder of that name is made."""

import pathlib
import shutil

import pytest
from conftest import DATA
from programs import ROOT, TINY, TINY_ARC, run_in_forks

from trm_jax.run import files, pretrained

# name -> program, flags and the file in the home folder that it writes.
WRITTEN = {
  "evaluate": ("--workdir=~/run --depth=1", "run/plots/depth.png"),
  "plot": ("~/run --out=~/new/plot.png", "new/plot.png"),
  "show": ("--workdir=~/run --puzzles=1 --out=~/show.gif", "show.gif"),
  "export": (
    "--workdir=~/run --format=safetensors --out=~/m.safetensors",
    "m.safetensors",
  ),
  "solve": ("--workdir=~/run ~/puzzle --gif=~/solve.gif", "solve.gif"),
  "write_folder": ("--out=~/written", "written/test_puzzles.json"),
  "parity": ("~/parity.npz", "parity.npz"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  folder = tmp_path_factory.mktemp("home")
  home = folder / "~home"
  (home / "logs").mkdir(parents=True)
  shutil.copy(DATA / "parity" / "transformer.npz", home / "parity.npz")
  (home / "puzzle").write_text("12..3.1..1.34..1")
  shutil.copy(ROOT / "configs" / "demo.py", home / "tiny.py")
  tiny = ["--config=~/tiny.py", *TINY(folder)[1:]]
  commands = {"train": ["train", *tiny, "--workdir=~/run"]}
  for name, (words, _) in WRITTEN.items():
    config = TINY_ARC(folder / "arc") if name == "write_folder" else []
    commands[name] = [name, *config, *words.split()]
  return home, run_in_forks(commands, home / "logs", HOME=str(home))


@pytest.mark.parametrize("name", WRITTEN)
def test_home_is_expanded_in_every_path(outcomes, name):
  home, found = outcomes
  status, printed = found[name]
  assert status == 0, printed
  assert (home / WRITTEN[name][1]).exists(), printed
  assert not (ROOT / "~").exists()


def test_home_is_expanded_in_python(outcomes, monkeypatch):
  home, _ = outcomes
  monkeypatch.setenv("HOME", str(home))
  assert files.locate("~/run") == home / "run"
  assert pretrained.load("~/run").step == 24
  assert files.locate(pathlib.Path("a~b")) == pathlib.Path("a~b")
