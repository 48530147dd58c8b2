"""A task from outside the package, from its rules to a trained model.

The task is to fill in Latin squares: each digit once in every row and column.
CONTRIBUTING.md walks through this file.
"""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from trm_jax import config
from trm_jax.data import datasets, questions
from trm_jax.data.batches import Table
from trm_jax.data.questions import Question
from trm_jax.data.task import Dataset, Split, Symmetry, Task
from trm_jax.draw import terminal
from trm_jax.errors import UserError
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.train import step as train

# Tokens are the characters' places: 0 pads, 1 is a blank, digit d is d + 1.
CHARACTERS = "?.123"


# 1. The settings: the `data` section of a config.


@dataclasses.dataclass(frozen=True)
class LatinData:
  """Latin squares of 3x3; each split is generated from a seed of its own."""

  train: str = "generate"
  test: str = "generate"
  path: str = ""
  puzzles: int = 64
  blanks: int = 4

  @property
  def task(self) -> Task:
    return latin_task()


# 2. The data: numpy arrays of questions and answers.


def load(settings, split, groups=None) -> Split:
  random = np.random.default_rng(["train", "test"].index(split))
  cyclic = (np.arange(3)[:, None] + np.arange(3)) % 3 + 2
  labels = np.stack(
    [
      cyclic[random.permutation(3)][:, random.permutation(3)].reshape(-1)
      for _ in range(settings.puzzles)
    ]
  ).astype(np.uint8)
  order = random.permuted(np.tile(np.arange(9), (len(labels), 1)), axis=1)
  inputs = np.where(order < settings.blanks, 1, labels).astype(np.uint8)
  whole = Split.of_rows(inputs, labels)
  return whole if groups is None else whole.take(groups)


# 3. Text, both ways.


def parse(text):
  if len(text) != 9 or set(text) - set(CHARACTERS[1:]):
    raise UserError(f"{text!r}: expected 9 of the characters .123")
  return np.array([CHARACTERS.index(c) for c in text], np.uint8)


def render(tokens):
  return "".join(CHARACTERS[token] for token in tokens)


# 4. The rules, and the symmetries that keep them, in JAX.


def is_solution(inputs, answers):
  grid = answers.reshape(*answers.shape[:-1], 3, 3)
  lines = jnp.concatenate([grid, grid.swapaxes(-1, -2)], axis=-2)
  is_full = (lines.min(-1) == 2) & (lines.max(-1) == 4) & (lines.sum(-1) == 9)
  return is_full.all(-1) & ((inputs == 1) | (inputs == answers)).all(-1)


def relabel(symmetry, tokens):
  return symmetry[tokens].astype(tokens.dtype)


DIGITS = Symmetry(  # a new name for each digit
  sample=lambda key, inputs, labels: jnp.concatenate(
    [jnp.arange(2), jax.random.permutation(key, 3) + 2]
  ),
  apply=relabel,
  undo=lambda symmetry, tokens: relabel(jnp.argsort(symmetry), tokens),
)


def draw(axes, puzzle, answer=None, label=None):
  axes.imshow((puzzle if answer is None else answer).reshape(3, 3))


# 5. The record of all this, and the line that adds it.


@functools.cache
def latin_task() -> Task:
  return Task(
    name="latin",
    seq_len=9,
    vocab_size=len(CHARACTERS),
    parse=parse,
    render=render,
    draw=draw,
    dataset=Dataset(load, lambda settings, split: settings.puzzles),
    is_solution=is_solution,
    augmentation=DIGITS,
    form="a Latin square a line",
  )


datasets.register("latin", LatinData)


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
  assert datasets.prepare(data, print) == []
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
