"""A study as a user meets it: interrupted, widened, merged, reported."""

import csv
import json
import re
import shutil

import pytest
from programs import run_in_forks

CASES = {
  "empty": ("empty", "--workdir={}/new", "config.grid is empty"),
  "depth_0": (
    "depth_0",
    "--workdir={}/new",
    r"config\.study\.depths=\(0,\): must be different whole numbers from 1",
  ),
  "family": (
    "tiny",
    "--workdir={}/new --config.grid.trm.model.family=trn",
    r"in config\.grid\.trm: config\.model\.family='trn': must be one of trm",
  ),
  "other_data": (
    "tiny",
    "--workdir={}/run --config.data.seed=1",
    r"is of another study.*\n.*data\.seed: 0 there, 1 here",
  ),
  "other_merge": (
    "tiny",
    "--workdir={}/new --merge={}/other",
    r"is of another study.*\n.*eval\.puzzles: 5 there, 0 here",
  ),
  "nothing_to_merge": (
    "tiny",
    "--workdir={}/new --merge={}/nowhere",
    r"--merge=.*nowhere: there is no finished model in it",
  ),
  "torn": ("tiny", "--workdir={}/torn", r"torn/cells/.*\.json"),
  "lost": ("wide", "--workdir={}/lost", r"weights/.*safetensors.* cannot be"),
  "no_workdir": ("tiny", "", "--workdir is missing"),
  "chip": (
    "tiny",
    "--workdir={}/new --dry_run --chip=h10",
    "chip='h10': must be one of",
  ),
}

# Two models that train in no time; %s is the folder of the data.
TINY = """
from trm_jax.configs import depth

def get_config():
  config = depth.get_config("cpu")
  config.data.update(
    size=4, num_train=40, num_test=12, givens=(5, 8), cache_dir=%r
  )
  config.model.update(width=16, heads=2, inner_multiple=8)
  config.train.update(batch_size=16, steps_per_dispatch=2, log_every=2)
  config.eval.update(batch_size=16, depth=2)
  config.study.update(training_flops=2e8, depths=(1, 2, 4), evaluations=2)
  del config.grid["hrm"], config.grid["decoder"]
  config.grid.trm.model.latent_steps = (1,)
  config.grid.feedforward.model.layers = (1,)
"""
FILES = {
  "tiny": TINY + "  return config",
  "empty": TINY
  + "  del config.grid['trm'], config.grid['feedforward']\n"
  + "  return config",
  # One more seed, deeper tests.
  "wide": TINY
  + "  config.study.update(depths=(1, 2, 4, 8), seeds=(0, 1, 2))\n"
  + "  return config",
  "both": TINY + "  config.study.seeds = (0, 5)\n  return config",
  "depth_0": TINY + "  config.study.depths = (0,)\n  return config",
  # One model that overflows at once, beside another that does not.
  "wild": TINY + "  config.grid.trm.optim = dict(lr=(1e38,))\n  return config",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  for name, text in FILES.items():
    (folder / f"{name}.py").write_text(text % str(folder / "data"))
  return folder


def _run(folder, logs, commands):
  """Runs studies in turn: (config, flags) each, {} being the folder."""
  (folder / logs).mkdir()
  return run_in_forks(
    {
      name: [
        "depth_vs_compute",
        f"--config={folder}/{config}.py",
        *flags.replace("{}", str(folder)).split(),
      ]
      for name, (config, flags) in commands.items()
    },
    folder / logs,
    devices=2,
  )


@pytest.fixture(scope="module")
def ran(folder):
  """The studies that the tests look at."""
  first = _run(
    folder,
    "first",
    {
      "dry": ("tiny", "--workdir={}/run --dry_run --chip=v5e"),
      "first": ("tiny", "--workdir={}/run"),
      "wider": ("wide", "--workdir={}/run"),
      "again": ("wide", "--workdir={}/run"),
      "planned": ("wide", "--workdir={}/run --dry_run"),
      "wild": ("wild", "--workdir={}/wild"),
    },
  )
  # Seed 5, as another machine might have trained it.
  (folder / "part" / "cells").mkdir(parents=True)
  for name, cell in _cells(folder / "run").items():
    if cell["seed"] == 0:
      path = folder / "part" / "cells" / name.replace("seed0", "seed5")
      path.write_text(json.dumps(cell | {"seed": 5}))
  merged = {"merged": ("both", "--workdir={}/run --merge={}/part")}
  return first | _run(folder, "second", merged)


def _cells(folder):
  return {
    path.name: json.loads(path.read_text())
    for path in sorted((folder / "cells").iterdir())
  }


def test_a_dry_run_counts_and_makes_nothing(ran):
  status, text = ran["dry"]
  assert status == 0
  assert "2 settings x 2 seeds" in text
  assert "TRM" in text
  assert "feed-forward stack" in text
  assert re.search(r"to train: 8\.\d\de\+08 FLOPs.*one v5e at 30%", text)


def test_a_study_trains_tests_and_reports(ran, folder):
  status, text = ran["first"]
  assert status == 0, text
  assert "seeds 0, 1, trained together" in text
  run = folder / "run"
  assert (run / "report.html").stat().st_size > 50_000
  for name in ("depth", "inference", "training", "pareto", "halting"):
    assert (run / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
  assert not list((run / "unfinished").glob("*/*"))


def test_a_finished_study_trains_nothing(ran):
  status, text = ran["again"]
  assert status == 0
  assert "trained together" not in text
  assert "testing" not in text


def test_a_wider_study_trains_and_tests_only_what_is_new(ran, folder):
  status, text = ran["wider"]
  assert status == 0, text
  assert text.count("seeds 2, trained together") == 2
  assert text.count("trained together") == 2
  # Depth is nothing to the feed-forward stack.
  assert len(re.findall(r"testing \w+, seed \d", text)) == 2
  assert "none: finished" in ran["planned"][1]
  cells = _cells(folder / "run").values()
  assert sorted((c["family"], c["seed"]) for c in cells) == [
    *(("feedforward", seed) for seed in range(3)),
    *(("trm", seed) for seed in range(3)),
  ]
  for cell in cells:
    assert len(cell["depths"]) == (8 if cell["family"] == "trm" else 1)
    assert len(cell["learning"]) >= 2


def test_folders_are_merged(ran, folder):
  status, text = ran["merged"]
  assert status == 0, text
  assert "trained together" not in text  # seed 5 is in the other folder
  with (folder / "run" / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {(row["family"], row["seed"]) for row in rows} == {
    (family, seed) for family in ("trm", "feedforward") for seed in "0125"
  }
  assert len(rows) == 4 * 3 + 4
  for row in rows:
    assert float(row["training_flops"]) > 0
    assert float(row["flops_per_puzzle"]) > 0
    assert int(row["weights"]) > 0
    assert 0 <= float(row["exact_accuracy"]) <= 1


def test_a_model_that_diverges_is_kept_and_the_rest_goes_on(ran, folder):
  status, text = ran["wild"]
  assert status == 0, text
  for seed in (0, 1):
    assert re.search(rf"seed {seed} diverged at step \d", text)
  with (folder / "wild" / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  spoilt = [row for row in rows if row["status"] == "diverged"]
  assert {row["optim.lr"] for row in spoilt} == {"1e+38"}
  assert len(rows) == 2 + 2


def test_what_is_wrong_is_told_in_a_line(ran, folder):
  for name in ("torn", "lost", "other"):
    shutil.copytree(folder / "run", folder / name)
  for path in (folder / "lost" / "cells").iterdir():  # as before "wider"
    cell = json.loads(path.read_text())
    path.write_text(json.dumps(cell | {"depths": cell["depths"][:4]}))
  for path in (folder / "other" / "cells").iterdir():
    cell = json.loads(path.read_text())
    cell["comparable"]["eval"]["puzzles"] = 5
    path.write_text(json.dumps(cell))
  cell = next((folder / "torn" / "cells").iterdir())
  cell.write_text(cell.read_text()[:100])
  shutil.rmtree(folder / "lost" / "weights")
  before = _cells(folder / "run")
  wrong = {name: (config, flags) for name, (config, flags, _) in CASES.items()}
  for name, (status, text) in _run(folder, "wrong", wrong).items():
    assert status == 2, f"{name}: {text}"
    assert "Traceback" not in text, text
    message = text[text.index("error: ") :]
    assert re.search(CASES[name][2], message, re.DOTALL), f"{name}: {text}"
  assert _cells(folder / "run") == before
  assert not (folder / "new").exists()
