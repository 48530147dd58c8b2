import dataclasses
import json
import pathlib
import re
import sys

import jax
import ml_collections
import numpy as np
import pytest

from trm_jax import config as config_lib
from trm_jax.cli import configs, shipped
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.study import grid
from trm_jax.train import step as train

ROOT = pathlib.Path(__file__).parent.parent


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
    ("train", "batch_size", -8, "-8: must be from 1 to 16777216"),
    ("train", "batch_size", 0, "0: must be from 1 to 16777216"),
    ("train", "steps", 50_001, "multiple of steps_per_dispatch=10"),
    ("train", "log_every", 15, "multiple of steps_per_dispatch=10"),
    ("train", "refill", "bucket", "one of queue, discard"),
    ("train", "loss", "hinge", "one of stablemax, softmax"),
    ("eval", "every", 15, "multiple of config.train.steps_per_dispatch=10"),
    ("eval", "puzzles", -1, "must be at least 0"),
    ("train", "seed", -1, "must be from 0 to 4294967295"),
    ("train", "seed", 2**32, "must be from 0 to 4294967295"),
    ("eval", "seed", -1, "must be from 0 to 4294967295"),
    ("depth", "seed", 2**32, "must be from 0 to 4294967295"),
    ("data", "seed", 2**32, "must be at most 2147483647"),
    ("train", "batch_size", 10**12, "must be from 1 to 16777216"),
    ("train", "steps_per_dispatch", 10**9, "must be from 1 to 65536"),
    ("train", "steps", 10**12, "must be at most 2147483647"),
    ("eval", "depth", 10**9, "must be from 1 to 65536"),
    ("eval", "batch_size", 10**9, "must be from 1 to 16777216"),
    ("halting", "max_steps", 10**9, "must be at most 65,536"),
    ("model", "layers", 10**7, "must be at most 1,024"),
    ("model", "cycles", 10**9, "must be at most 1,024"),
    ("model", "latent_steps", 10**9, "must be at most 1,024"),
    ("model", "width", 10**9, "must be at most 65,536"),
    ("model", "expansion", 1e12, "must be at most 1,024"),
    ("model", "puzzle_emb_len", 10**9, "must be at most 65,536"),
    ("model", "num_puzzle_ids", 10**12, "must be at most 2,147,483,647"),
    ("model", "rope_theta", float("inf"), "must be at most"),
    ("checkpoint", "every", 15, "multiple of config.train.steps_per_dispatch"),
    ("checkpoint", "keep", 0, "must be at least 1"),
    ("mesh", "data", 0, "must be positive, or -1"),
    ("optim", "lr", -1.0, "must not be negative"),
    ("optim", "lr", float("nan"), "must not be negative"),
    ("optim", "lr", None, "must be float, not NoneType"),
    ("halting", "exploration", 1.5, "must be a probability"),
    ("model", "width", 0, "must be"),
    ("data", "size", 5, "size=5: .*4, 6, 9"),
    ("data", "givens", (1, 2, 3), "must be tuple.*not tuple"),
    ("data", "givens", ("a", 2), r"givens\[0\]='a': must be int"),
    ("data", "rating", 3, "must be .*not int"),
    ("data", "task", "chess", "must be one of sudoku, maze, arc"),
    ("data", "task", ["sudoku"], "must be one of sudoku"),
    ("eval", "copies", -1, "must be at least 0"),
    ("model", "family", "lstm", "must be one of trm, hrm, single_latent"),
    ("model", "registers", -1, "must not be negative"),
    ("model", "initial_std", -0.5, "must not be negative"),
    ("model", "path_noise", float("nan"), "must not be negative"),
    ("train", "label_smoothing", 1, r"1.0: must be in \[0, 1\)"),
    ("train", "label_smoothing", -0.1, r"must be in \[0, 1\)"),
    ("train", "supervision_decay", 0, r"0.0: must be in \(0, 1\]"),
    ("train", "supervision_decay", 1.1, r"must be in \(0, 1\]"),
    ("depth", "schedule", "steep", "one of fixed, curriculum, random"),
    ("depth", "stages", ((1, 2),), "must be empty for a 'fixed' schedule"),
    ("depth", "until", (0.5,), "needs 0 rising fractions"),
  ],
)
def test_bad_values_are_refused_by_name(section, field, value, pattern):
  with pytest.raises(UserError, match=pattern) as refusal:
    config_lib.read({section: {field: value}})
  assert re.search(rf"config\.{section}\.{field}\b", str(refusal.value))


_DECODER = dict(family="autoregressive", mixer="attention", positions="rotary")
_ONE_STEP = dict(max_steps=1)
_SOFTMAX = dict(loss="softmax")
_BARE = dict(puzzle_emb_ndim=0)


@pytest.mark.parametrize(
  ("pattern", "sections"),
  [
    (
      r"model\.family='autoregressive': .*needs mixer='attention'",
      dict(model=_DECODER | dict(mixer="mlp", positions="learned")),
    ),
    (
      r"model\.family='autoregressive': .*needs mixer='attention'",
      dict(model=_DECODER | dict(positions="none")),
    ),
    (
      r"train\.loss='stablemax': must be 'softmax' for .*'autoregressive'",
      dict(model=_DECODER, halting=_ONE_STEP),
    ),
    (
      r"halting\.max_steps=2: must be 1 for .*'autoregressive'",
      dict(model=_DECODER, halting=dict(max_steps=2), train=_SOFTMAX),
    ),
    (
      r"halting\.max_steps=16: must be 1 for .*'feedforward'",
      dict(model=dict(family="feedforward")),
    ),
    (
      r"model\.registers=4: .* set puzzle_emb_ndim=512 to 0",
      dict(model=dict(registers=4)),
    ),
    (
      r"model\.initial_std=0.0, path_noise=0.01: must be 0, for family='feed",
      dict(
        model=dict(family="feedforward", path_noise=0.01), halting=_ONE_STEP
      ),
    ),
    (
      r"model\.initial_std=1.0, path_noise=0.0: must be 0, for family='auto",
      dict(
        model=_DECODER | dict(initial_std=1), halting=_ONE_STEP, train=_SOFTMAX
      ),
    ),
    (
      r"depth\.schedule='random': family='transformer' has no cycles",
      dict(
        model=dict(family="transformer"),
        depth=dict(schedule="random", stages=((1, 2), (2, 2))),
      ),
    ),
    (
      r"depth\.stages=.*'multi_latent' .* n=6 .*, so n cannot change",
      dict(
        model=dict(family="multi_latent"),
        depth=dict(schedule="random", stages=((1, 6), (2, 4))),
      ),
    ),
    (
      r"depth\.stages\[1\]=\(1, 2, 3\): must be tuple",
      dict(depth=dict(schedule="random", stages=((1, 2), (1, 2, 3)))),
    ),
    (
      r"depth\.until=\(0.5,\): a 'curriculum' schedule of 3 stages needs 2",
      dict(
        depth=dict(
          schedule="curriculum", stages=((1, 2), (2, 4), (3, 6)), until=(0.5,)
        )
      ),
    ),
  ],
)
def test_settings_that_do_not_go_together_are_refused(pattern, sections):
  _refuses(rf"^config\.{pattern}", **sections)


@pytest.mark.parametrize(
  "sections",
  [
    dict(model=_DECODER | _BARE, halting=_ONE_STEP, train=_SOFTMAX),
    dict(
      model=_DECODER | _BARE | dict(positions="learned", registers=4),
      halting=_ONE_STEP,
      train=_SOFTMAX | dict(label_smoothing=0.1),
    ),
    dict(model=dict(family="feedforward"), halting=_ONE_STEP),
    dict(model=dict(family="transformer", path_noise=0.01)),
    dict(
      model=dict(family="hrm", layers=4, mixer="attention", initial_std=1),
      depth=dict(schedule="random", stages=[[1, 2], [2, 4]], seed=7),
    ),
    dict(model=dict(family="single_latent") | _BARE | dict(registers=1)),
    dict(
      model=dict(family="multi_latent"),
      depth=dict(schedule="random", stages=((1, 6), (3, 6))),
    ),
    dict(
      train=dict(supervision_decay=0.7),
      depth=dict(
        schedule="curriculum", stages=((1, 2), (2, 4), (3, 6)), until=(0.3, 0.6)
      ),
    ),
  ],
)
def test_every_family_can_be_asked_for(sections):
  experiment = config_lib.read(sections)
  recipe = train.Recipe.of(experiment)
  hash(recipe)  # it is a static argument of jit
  # What was set is what is used.
  for name, section in sections.items():
    for field, value in section.items():
      used = getattr(getattr(recipe, name), field)
      if field == "stages":
        value = tuple(map(tuple, value))
      assert used == value
  stages = recipe.depth.stages or (
    (experiment.model.cycles, experiment.model.latent_steps),
  )
  models = [(m.cycles, m.latent_steps) for m in recipe.models]
  assert tuple(models) == stages


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


def _variants():
  for name in shipped.names("configs"):
    configs.load(name)  # imports it
    module = sys.modules[f"trm_jax.configs.{name}"]
    yield from (f"{name}:{v}" for v in getattr(module, "VARIANTS", []))
    yield name


@pytest.mark.parametrize("name", list(_variants()))
def test_every_config_builds(name):
  """Law 8."""
  config = configs.load(name)
  for one in _experiments(config):
    experiment = config_lib.read(one)
    # A run reads it back from config.json.
    kept = json.loads(json.dumps(one.to_dict()))
    assert config_lib.read(kept) == experiment
    _build(train.Recipe.of(experiment))


def _experiments(config):
  """A study makes many, of which the smallest of each family is built."""
  if "grid" not in config:
    return [config]
  _, settings = grid.read(config.to_dict())
  settings.sort(key=lambda setting: -setting.experiment.model.layers)
  of_family = {setting.family: setting.config for setting in settings}
  return [ml_collections.ConfigDict(plain) for plain in of_family.values()]


def _build(recipe):
  state = jax.eval_shape(lambda: train.init_state(recipe))
  tokens = np.ones((1000, recipe.task.seq_len), np.uint8)
  split = Split.of_rows(tokens, tokens)
  if recipe.task.copies:
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


def _own(tmp_path, lines):
  path = tmp_path / "own.py"
  path.write_text(
    "from ml_collections import ConfigDict\n"
    f"def get_config():\n  config = ConfigDict()\n{lines}  return config\n"
  )
  return configs.load(str(path))


def test_what_a_config_leaves_out_is_filled_in(tmp_path):
  config = _own(tmp_path, "  config.data = dict(task='maze', size=8)\n")
  full = config_lib.complete({"data": {"task": "maze", "size": 8}})
  assert config.to_dict() == full
  assert full["data"]["min_length"] == 110
  assert full["train"] == dataclasses.asdict(config_lib.TrainConfig())
  assert "vocab_size" not in full["model"]  # the task's


@pytest.mark.parametrize("name", ["demo", "depth:cpu", "arc_agi_1:cpu"])
def test_a_config_is_the_same_without_its_defaults(name):
  def read(config):
    if "grid" not in config:
      return config_lib.read(config)
    return [setting.experiment for setting in grid.read(config.to_dict())[1]]

  full = configs.load(name)
  name, *variant = name.split(":")
  module = sys.modules[f"trm_jax.configs.{name}"]
  assert read(full) == read(module.get_config(*variant))


def test_types_of_overrides_are_those_of_the_defaults(tmp_path):
  config = _own(tmp_path, "  config.data = {}\n  config.optim = dict(lr=1)\n")
  config.optim.lr = 0.5  # though the file says 1
  config.data.rating = (0, 3)  # though it is None
  for section, field, value in (
    ("optim", "ema", "high"),
    ("train", "steps", 1.5),
    ("data", "rating", "easy"),
  ):
    with pytest.raises(TypeError):
      config[section][field] = value
  with pytest.raises(AttributeError, match="wdith"):
    config.model.wdith = 3


def test_configs_go_by_name_or_path(tmp_path, monkeypatch):
  by_name = configs.load("sudoku_extreme:cpu")
  assert configs.load("configs/sudoku_extreme.py:cpu") == by_name
  monkeypatch.chdir(tmp_path)  # its path in a checkout is a name anywhere
  assert configs.load("configs/sudoku_extreme.py:cpu") == by_name
  own = pathlib.Path("mine.py")
  own.write_text((ROOT / "configs" / "scaling.py").read_text())
  assert configs.load("mine.py:1024") == configs.load("scaling:1024")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("sudoku_extrem", "did you mean 'sudoku_extreme'"),
    ("zzz", "there are arc_agi_1, arc_agi_2, demo"),
    ("my/own.py", "my/own.py: there is no such file"),
    ("sudoku_extreme:huge", "must be one of mlp, attention, cpu"),
    ("demo:x", "this config has no variants"),
  ],
)
def test_unknown_configs_are_refused(name, message):
  with pytest.raises(UserError, match=message):
    configs.load(name)
