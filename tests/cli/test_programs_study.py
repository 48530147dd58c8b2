"""A study as a user meets it: interrupted, widened, merged, reported."""

import contextlib
import copy
import csv
import io
import json
import re
import shutil
from typing import Any
from unittest import mock

import pytest
from programs import run_program

from trm_jax.cli import study
from trm_jax.errors import UserError
from trm_jax.study import figures

# Two models that train in no time.
TINY: dict[str, Any] = {
  "data": {
    "task": "sudoku",
    "size": 4,
    "train": "generate",
    "test": "generate",
    "num_train": 40,
    "num_test": 12,
    "givens": (5, 8),
    "seed": 0,
  },
  "model": {
    "width": 16,
    "heads": 2,
    "layers": 1,
    "inner_multiple": 8,
    "mixer": "mlp",
    "positions": "none",
    "puzzle_emb_ndim": 0,
    "cycles": 2,
    "dtype": "float32",
  },
  "halting": {"max_steps": 8},
  "optim": {"lr": 2e-3, "warmup_steps": 5, "ema": 0.9},
  "train": {"batch_size": 16, "steps_per_dispatch": 2, "log_every": 2},
  "eval": {"puzzles": 0, "batch_size": 16, "depth": 2},
  "study": {
    "seeds": (0, 1),
    "depths": (1, 2, 4),
    "training_flops": 2e8,
    "evaluations": 2,
  },
  "grid": {
    "trm": {"model": {"family": ("trm",), "latent_steps": (1,)}},
    "feedforward": {
      "model": {"family": ("feedforward",)},
      "halting": {"max_steps": (1,)},
    },
  },
}
DEEPER = {"study.depths": (1, 2, 4, 8), "study.seeds": (0, 1, 2)}

# name -> changes of the config, arguments in which {} is the folder, and what
# must be said.
REFUSED = {
  "empty": ({"grid": {}}, {"workdir": "{}/new"}, "config.grid is empty"),
  "depth_0": (
    {"study.depths": (0,)},
    {"workdir": "{}/new"},
    r"config\.study\.depths=\(0,\): must be different whole numbers from 1",
  ),
  "family": (
    {"grid.trm.model.family": ("trn",)},
    {"workdir": "{}/new"},
    r"in config\.grid\.trm: config\.model\.family='trn': must be one of trm",
  ),
  "other_data": (
    {"data.seed": 1},
    {"workdir": "{}/run"},
    r"is of another study.*\n.*data\.seed: 0 there, 1 here",
  ),
  "other_merge": (
    {},
    {"workdir": "{}/new", "merge": ["{}/other"]},
    r"is of another study.*\n.*eval\.puzzles: 5 there, 0 here",
  ),
  "nothing_to_merge": (
    {},
    {"workdir": "{}/new", "merge": ["{}/nowhere"]},
    r"--merge=.*nowhere: there is no finished model in it",
  ),
  "torn": ({}, {"workdir": "{}/torn"}, r"torn/trials/.*\.json is damaged"),
  "old": ({}, {"workdir": "{}/old"}, r"old/cells: .* rename this folder"),
  "lost": (
    DEEPER,
    {"workdir": "{}/lost"},
    r"weights/.*safetensors.* cannot be",
  ),
  "no_workdir": ({}, {"workdir": ""}, "--workdir is missing"),
  "chip": (
    {},
    {"workdir": "{}/new", "estimate_on": ("h10", 0.3)},
    "chip='h10': must be one of",
  ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("study")


def run(folder, workdir, changes=(), draws=False, **arguments) -> str:
  """Runs a study, perhaps with its figures, and returns what it printed."""
  config = copy.deepcopy(TINY)
  config["data"]["cache_dir"] = str(folder / "data")
  for name, value in dict(changes).items():
    *sections, field = name.split(".")
    section = config
    for part in sections:
      section = section.setdefault(part, {})
    section[field] = value
  printed = io.StringIO()
  drawn = figures.FIGURES if draws else {}
  with (
    contextlib.redirect_stdout(printed),
    mock.patch.object(figures, "FIGURES", drawn),
  ):
    assert study.run(config, workdir, **arguments) == 0
  return printed.getvalue()


@pytest.fixture(scope="module")
def ran(folder) -> dict[str, str]:
  """What the studies that the tests look at have printed."""
  here = str(folder / "run")
  told = {
    "dry": run(folder, here, estimate_on=("v5e", 0.3)),
    "nothing": str(list(folder.glob("*/*"))),
    "first": run(folder, here),
    "wider": run(folder, here, DEEPER),
    "again": run(folder, here, DEEPER),
    "planned": run(folder, here, DEEPER, estimate_on=("v5e", 0.3)),
  }
  # Seed 5, as another machine might have trained it.
  (folder / "part" / "trials").mkdir(parents=True)
  for name, trial in _trials(folder / "run").items():
    if trial["seed"] == 0:
      path = folder / "part" / "trials" / name.replace("seed0", "seed5")
      path.write_text(json.dumps(trial | {"seed": 5}))
  merge = [str(folder / "part")]
  told["merged"] = run(
    folder, here, {"study.seeds": (0, 5)}, draws=True, merge=merge
  )
  return told


def _trials(folder):
  return {
    path.name: json.loads(path.read_text())
    for path in sorted((folder / "trials").iterdir())
  }


def test_the_program_plans_what_its_flags_say(tmp_path):
  text = run_program(
    "depth_vs_compute", "--config=configs/depth.py:cpu", "--dry_run",
    f"--workdir={tmp_path}", "--chip=v5e", "--utilisation=0.5",
  )  # fmt: skip
  assert "8 settings x 2 seeds" in text
  assert "on one v5e at 50%" in text
  assert not list(tmp_path.iterdir())


def test_a_dry_run_counts_and_makes_nothing(ran):
  text = ran["dry"]
  assert "2 settings x 2 seeds" in text
  assert "TRM" in text
  assert "feed-forward stack" in text
  assert re.search(r"to train: [78]\.\d\de\+08 FLOPs.*one v5e at 30%", text)
  assert ran["nothing"] == "[]"


@pytest.mark.draw
def test_a_study_trains_tests_and_reports(ran, folder):
  assert "seeds 0, 1, trained together" in ran["first"]
  assert "The best of all is" in ran["first"]
  place = folder / "run"
  assert (place / "report.html").stat().st_size > 50_000
  for name in ("depth", "inference", "training", "pareto", "halting"):
    assert (place / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
  assert not list((place / "unfinished").glob("*/*"))


def test_a_finished_study_trains_nothing(ran):
  assert "trained together" not in ran["again"]
  assert "testing" not in ran["again"]


def test_a_wider_study_trains_and_tests_only_what_is_new(ran, folder):
  text = ran["wider"]
  assert text.count("seeds 2, trained together") == 2
  assert text.count("trained together") == 2
  # Depth is nothing to the feed-forward stack.
  assert len(re.findall(r"testing \w+, seed \d", text)) == 2
  assert "none: finished" in ran["planned"]
  trials = _trials(folder / "run").values()
  assert sorted((t["family"], t["seed"]) for t in trials) == [
    *(("feedforward", seed) for seed in range(3)),
    *(("trm", seed) for seed in range(3)),
  ]
  for trial in trials:
    assert len(trial["depths"]) == (8 if trial["family"] == "trm" else 1)
    assert len(trial["learning"]) >= 2


def test_folders_are_merged(ran, folder):
  assert "trained together" not in ran["merged"]  # seed 5 is in the other
  rows = _table(folder / "run")
  assert {(row["family"], row["seed"]) for row in rows} == {
    (family, seed) for family in ("trm", "feedforward") for seed in "0125"
  }
  assert len(rows) == 4 * 3 + 4
  for row in rows:
    assert float(row["training_flops"]) > 0
    assert float(row["flops_per_puzzle"]) > 0
    assert int(row["weights"]) > 0
    assert 0 <= float(row["exact_accuracy"]) <= 1


def test_a_model_that_diverges_is_kept_and_the_rest_goes_on(folder):
  """It overflows at once, beside another that does not."""
  changes = {"grid.trm.optim": {"lr": (1e38,)}}
  text = run(folder, str(folder / "wild"), changes)
  for seed in (0, 1):
    assert re.search(rf"seed {seed} diverged at step \d", text)
  rows = _table(folder / "wild")
  spoilt = [row for row in rows if row["status"] == "diverged"]
  assert {row["optim.lr"] for row in spoilt} == {"1e+38"}
  assert len(rows) == 2 + 2


def _table(folder):
  with (folder / "results.csv").open() as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def spoilt(ran, folder):
  """Copies of a study that cannot be used as they are."""
  for name in ("torn", "lost", "other", "old"):
    shutil.copytree(folder / "run", folder / name)
  for path in (folder / "lost" / "trials").iterdir():  # as before "wider"
    trial = json.loads(path.read_text())
    path.write_text(json.dumps(trial | {"depths": trial["depths"][:4]}))
  for path in (folder / "other" / "trials").iterdir():
    trial = json.loads(path.read_text())
    trial["comparable"]["eval"]["puzzles"] = 5
    path.write_text(json.dumps(trial))
  trial = next((folder / "torn" / "trials").iterdir())
  trial.write_text(trial.read_text()[:100])
  (folder / "old" / "trials").rename(folder / "old" / "cells")
  shutil.rmtree(folder / "lost" / "weights")
  return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told(name, spoilt):
  before = _trials(spoilt / "run")
  changes, arguments, message = REFUSED[name]
  arguments = json.loads(json.dumps(arguments).replace("{}", str(spoilt)))
  with pytest.raises(UserError) as refused:
    run(spoilt, changes=changes, **arguments)
  assert re.search(message, str(refused.value), re.DOTALL), refused.value
  assert _trials(spoilt / "run") == before
  assert not (spoilt / "new").exists()
