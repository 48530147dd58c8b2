import dataclasses
import importlib
import json
import pathlib
import re

import jax
import ml_collections
import numpy as np
import pytest

from trm_jax import config as config_lib
from trm_jax import train
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
NAMES = [p.stem for p in (ROOT / "configs").glob("[!_]*.py")]


def _refuses(pattern: str, **sections):
  with pytest.raises(UserError, match=pattern):
    config_lib.read(sections)


def test_defaults_fill_missing_sections_and_fields():
  experiment = config_lib.read({"data": {"size": 4, "train": "generate",
    "test": "", "givens": (4, 8)}, "train": {"steps": 20}})  # fmt: skip
  assert experiment.train.steps == 20
  assert experiment.train.batch_size == config_lib.TrainConfig().batch_size
  assert experiment.model.seq_len == experiment.task.seq_len == 16
  assert experiment.model.vocab_size == 6


def test_unknown_names_are_refused_with_a_suggestion():
  _refuses(r"config has no field 'optm': did you mean 'optim'", optm={})
  _refuses(r"config\.optim has no field 'ler'.*'lr'", optim={"ler": 1.0})
  _refuses(
    r"config\.train has no field 'zzz': it has .*steps", train={"zzz": 1}
  )
  # What the task fixes is not for the config to say.
  _refuses(r"config\.model has no field 'vocab_size'", model={"vocab_size": 9})


@pytest.mark.parametrize(
  ("section", "field", "value", "pattern"),
  [
    ("train", "steps", "many", "'many': must be int, not str"),
    ("train", "steps", 1e3, "must be int, not float"),
    ("train", "steps", True, "must be int, not bool"),
    ("train", "augment", 1, "must be bool, not int"),
    ("train", "batch_size", -8, "-8: must be at least 1"),
    ("train", "batch_size", 0, "0: must be at least 1"),
    ("train", "steps", 50_001, "multiple of steps_per_dispatch=10"),
    ("train", "log_every", 15, "multiple of steps_per_dispatch=10"),
    ("train", "refill", "bucket", "one of queue, discard"),
    ("train", "loss", "hinge", "one of stablemax, softmax"),
    ("eval", "every", 15, "multiple of config.train.steps_per_dispatch=10"),
    ("eval", "puzzles", -1, "must be 0 .all. or more"),
    ("checkpoint", "every", 15, "multiple of config.train.steps_per_dispatch"),
    ("checkpoint", "keep", 0, "must be at least 1"),
    ("mesh", "data", 0, "must be positive, or -1"),
    ("optim", "lr", -1.0, "must not be negative"),
    ("optim", "lr", float("nan"), "must not be negative"),
    ("optim", "lr", None, "must be float, not NoneType"),
    ("halting", "exploration", 1.5, "must be a probability"),
    ("model", "width", 0, "must be"),
    ("data", "size", 5, "size: 5"),
    ("data", "givens", (1, 2, 3), "must be tuple.*not tuple"),
    ("data", "givens", ("a", 2), r"givens\[0\]='a': must be int"),
    ("data", "rating", 3, "must be .*not int"),
    ("data", "task", "chess", "must be one of sudoku, maze, arc"),
    ("data", "task", ["sudoku"], "must be one of sudoku"),
    ("eval", "copies", -1, "must be 0 .all. or more"),
  ],
)
def test_bad_values_are_refused_by_name(section, field, value, pattern):
  with pytest.raises(UserError, match=pattern) as refusal:
    config_lib.read({section: {field: value}})
  assert re.search(rf"config\.{section}\.{field}\b", str(refusal.value))


def test_what_is_no_config_is_refused():
  _refuses(r"config\.train=3: must be a section", train=3)
  with pytest.raises(UserError, match="must have sections"):
    config_lib.read([1])


def test_values_are_converted():
  experiment = config_lib.read(
    {
      "data": {"givens": [24, 30], "rating": None},
      "optim": {"lr": 1, "weight_decay": 0},
    }
  )
  assert experiment.data.givens == (24, 30)
  assert experiment.data.rating is None
  assert experiment.optim.lr == 1.0
  assert isinstance(experiment.optim.lr, float)
  assert config_lib.read({"data": {"rating": [0, 3]}}).data.rating == (0, 3)
  hash(experiment)  # it is a static argument of jit


def test_the_puzzle_table_grows_to_what_the_data_needs():
  small = config_lib.read({})
  assert small.with_puzzle_ids(1) == small
  grown = small.with_puzzle_ids(876_406)
  assert grown.model.num_puzzle_ids == 876_544  # a multiple of 512
  assert grown.with_puzzle_ids(876_544) == grown
  with pytest.raises(UserError, match=r"num_puzzle_ids=876544: .* 900000"):
    grown.with_puzzle_ids(900_000)


def _variants(name):
  module = importlib.import_module(f"configs.{name}")
  return getattr(module, "VARIANTS", [None])


@pytest.mark.parametrize(
  ("name", "variant"),
  [(name, variant) for name in NAMES for variant in _variants(name)],
)
def test_every_config_builds(name, variant):
  """Law 8."""
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(*([variant] if variant else []))
  assert isinstance(config, ml_collections.ConfigDict)
  experiment = config_lib.read(config)
  # A run reads it back from config.json.
  assert config_lib.read(json.loads(json.dumps(config.to_dict()))) == experiment
  recipe = train.Recipe.of(experiment)
  state = jax.eval_shape(lambda: train.init_state(recipe))
  tokens = np.ones((1000, recipe.task.seq_len), np.uint8)
  split = Split.of_rows(tokens, tokens)
  if recipe.task.view:
    copies = np.tile(np.arange(-1, 10).clip(0), (1000, 1)).astype(np.uint8)
    split = dataclasses.replace(split, symmetries=copies)
  table = Table.of(split)
  after, metrics = jax.eval_shape(
    lambda state, table: train.train_step(state, table, recipe), state, table
  )
  assert jax.tree.map(_kind, after) == jax.tree.map(_kind, state)
  assert metrics["loss"].shape == ()


def _kind(leaf):
  return leaf.shape, leaf.dtype


def test_unknown_variants_are_refused():
  module = importlib.import_module("configs.sudoku_extreme")
  with pytest.raises(ValueError, match="one of mlp, attention"):
    module.get_config("huge")
