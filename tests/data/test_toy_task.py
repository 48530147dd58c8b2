"""A task from outside the package, from its data to a trained model."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from toys.latin import DIGITS, LatinData, is_solution, latin_task, load

from trm_jax import config
from trm_jax.data import datasets, questions
from trm_jax.data.batches import Table
from trm_jax.data.questions import Question
from trm_jax.draw import terminal
from trm_jax.errors import UserError
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.train import step as train


@pytest.fixture(scope="module")
def experiment():
  return config.read(
    {
      "data": {"task": "latin", "puzzles": 32},
      "model": {
        "width": 16, "layers": 1, "heads": 2, "inner_multiple": 8,
        "puzzle_emb_ndim": 0, "cycles": 2, "latent_steps": 2,
        "dtype": "float32",
      },
      "halting": {"max_steps": 4},
      "optim": {"lr": 2e-3, "warmup_steps": 5, "ema": 0.9},
      "train": {"steps": 40, "batch_size": 32, "log_every": 10},
      "eval": {"every": 40},
      "checkpoint": {"every": 40},
    }
  )  # fmt: skip


def test_its_data_is_loaded_by_name(experiment):
  data = experiment.data
  assert data == LatinData(puzzles=32) and experiment.task is latin_task()
  (overlap, duplicates) = datasets.prepare(data, print)
  assert overlap.startswith("overlap: 1 of 32 test puzzles stand in")
  assert duplicates.startswith("duplicates: ")
  assert datasets.identifiers(data) == ["<blank>"]
  split = datasets.load(data, "train")
  assert len(split) == datasets.num_groups(data, "train") == 32
  assert len(datasets.load(data, "test", np.array([3, 5]))) == 2
  assert is_solution(split.inputs, split.labels).all()
  assert not is_solution(split.inputs, split.inputs).any()


def test_a_symmetry_keeps_the_rules_and_is_undone():
  split = load(LatinData(), "test")
  keys = jax.random.split(jax.random.key(0), len(split))
  inputs, labels = jax.vmap(DIGITS.augment)(keys, split.inputs, split.labels)
  assert is_solution(inputs, labels).all()
  assert (labels != split.labels).any()
  drawn = jax.vmap(DIGITS.sample, (0, None, None))(keys, None, None)
  back = jax.vmap(DIGITS.undo)(drawn, labels)
  assert (back == split.labels).all()


def test_training_lowers_the_loss_and_every_depth_is_scored(experiment):
  recipe = train.Recipe.of(experiment)
  split = datasets.load(experiment.data, "train")
  table = jax.tree.map(jnp.asarray, Table.of(split))
  step = jax.jit(lambda state: train.train_step(state, table, recipe))
  state, losses = train.init_state(recipe), []
  for _ in range(experiment.train.steps):
    state, metrics = step(state)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
  records = evaluate.evaluate(
    state.averaged_params, datasets.load(experiment.data, "test"),
    recipe.model, experiment.task, depth=3, batch_size=32,
    mesh=sharding.make_mesh(),
  )  # fmt: skip
  assert [record["depth"] for record in records] == [1, 2, 3]
  for record in records:
    assert 0 <= record["exact_accuracy"] <= record["valid_rate"] <= 1
    assert record["cell_accuracy"] > 0.3


def test_its_puzzles_are_read_and_drawn():
  task = latin_task()
  text = b"1.3..1...\n12\nquestion,answer\n"
  good, bad, _ = questions.read(io.BytesIO(text), task, "puzzles.txt")
  assert isinstance(good, Question) and task.render(good.tokens) == "1.3..1..."
  assert "expected 9 of the characters" in bad.message and bad.line == 2
  console = Console(file=io.StringIO(), width=40)
  console.print(terminal.draw(task, good.tokens, task.parse("123231312")))
  lines = console.file.getvalue().splitlines()
  assert [line.split() for line in lines] == [
    ["1", "2", "3"], ["2", "3", "1"], ["3", "1", "2"],
  ]  # fmt: skip


def test_a_name_is_taken_once():
  datasets.register("latin", LatinData)  # the same again does no harm
  with pytest.raises(ValueError, match="latin: a task of this name"):
    datasets.register("latin", dict)
  with pytest.raises(UserError, match=r"task='greek': must be one of.* latin"):
    config.read({"data": {"task": "greek"}})
