"""A family and a task from outside the package, through everything."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
from matplotlib.text import Text
from programs import ROOT
from rich.console import Console
from toys import damped, latin

from trm_jax import TRMProcessor, config
from trm_jax.core import flops, network
from trm_jax.data import datasets
from trm_jax.draw import terminal
from trm_jax.errors import UserError
from trm_jax.export import onnx_file
from trm_jax.run import pretrained, sharding, weights
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate
from trm_jax.study import figures
from trm_jax.study.results import Trial
from trm_jax.train import loop

CONFIG = {
  "data": {"task": "latin", "puzzles": 32},
  "model": {
    "family": "damped", "width": 16, "layers": 1, "heads": 2,
    "inner_multiple": 8, "puzzle_emb_ndim": 0, "cycles": 2, "latent_steps": 2,
    "dtype": "float32",
  },
  "halting": {"max_steps": 4},
  "optim": {"lr": 2e-3, "warmup_steps": 5, "ema": 0.9},
  "train": {
    "steps": 40, "batch_size": 32, "steps_per_dispatch": 20, "log_every": 20,
  },
  "eval": {"every": 40, "depth": 3, "batch_size": 32},
  "checkpoint": {"every": 40},
  "mesh": {"data": 8},
}  # fmt: skip


class Silent:
  """Progress callbacks of nobody."""

  def say(self, message):
    del message

  def advance(self, step, row):
    del step, row


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
  """A trained run of the damped family on Latin squares."""
  folder = RunFolder(tmp_path_factory.mktemp("toys") / "run")
  folder.claim(CONFIG, {})
  experiment = config.read(CONFIG)
  training, held_out = (
    datasets.load(experiment.data, split) for split in ("train", "test")
  )
  members, _ = loop.fit(experiment, folder, training, held_out, Silent())
  assert [r["depth"] for r in members[0].records] == [1, 2, 3]
  folder.release()
  return folder


def test_flops_count_its_passes():
  model = config.read(CONFIG).model
  one = flops.block(model) * 2 * 3  # T cycles of n + 1 passes
  assert flops.inference(model, 1) == one + flops.heads(model)


def test_every_depth_is_scored(run):
  model = pretrained.load(run.path)
  records = evaluate.evaluate(
    model.params, datasets.load(model.experiment.data, "test"),
    model.experiment.model, model.experiment.task, depth=5, batch_size=32,
    mesh=sharding.make_mesh(),
  )  # fmt: skip
  assert [record["depth"] for record in records] == [1, 2, 3, 4, 5]
  assert all(record["cell_accuracy"] > 0.3 for record in records)


def test_its_puzzles_are_solved_with_halting_and_drawn(run):
  processor = TRMProcessor.from_pretrained(run.path)
  result = processor.reason("1.3..1...")
  assert result.steps >= 1 and 0 <= result.confidence <= 1
  console = Console(file=io.StringIO(), width=40)
  console.print(
    terminal.draw(latin.latin_task(), result.question, result.tokens)
  )
  assert len(console.file.getvalue().split()) == 9


def test_its_weights_travel_and_other_formats_refuse_by_name(run, tmp_path):
  model = pretrained.load(run.path)
  path = tmp_path / "toy.safetensors"
  weights.save_weights(path, model.params, model.config, model.facts())
  again = pretrained.load(path)
  assert again.experiment.model.family == "damped"
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  with pytest.raises(UserError, match="family='damped'"):
    onnx_file.export(model, tmp_path / "toy.onnx")


def test_studies_draw_it():
  model = config.read(CONFIG).model
  depths = [
    {
      "depth": d, "puzzles": 32, "exact_accuracy": 0.2 * d,
      "exact_accuracy_se": 0.05, "halted_exact_accuracy": 0.2 * d,
      "mean_steps": float(d),
      "flops_per_puzzle": float(flops.inference(model, d)),
    }
    for d in (1, 2, 3)
  ]  # fmt: skip
  trials = [
    Trial(
      setting="a" * 12, seed=seed, family="damped", fields={"width": 16},
      comparable={"data": {}, "eval": {}},
      weights=network.count_weights(network.shapes(model)), steps=40,
      batch_size=32, training_flops=1e9, seconds=1.0, hardware="cpu",
      diverged_at=None,
      learning=[{**depths[-1], "step": 40, "training_flops": 1e9}],
      depths=depths,
    )
    for seed in (0, 1)
  ]  # fmt: skip
  for draw in figures.FIGURES.values():
    texts = [t.get_text() for t in draw(trials, (1, 2, 3)).findobj(Text)]
    assert any("damped TRM" in text for text in texts)


def test_contributing_shows_these_files():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  shown = text.split("```python\n")[1:]
  sources = [pathlib.Path(toy.__file__).read_text() for toy in (damped, latin)]
  excerpts = [part.split("```")[0] for part in shown]
  assert sum(any(e.strip() in s for s in sources) for e in excerpts) >= 2


def test_an_unknown_family_is_named():
  changed = json.loads(json.dumps(CONFIG))
  changed["model"]["family"] = "nobody"
  with pytest.raises(UserError, match=r"family='nobody'.*damped"):
    config.read(changed)
