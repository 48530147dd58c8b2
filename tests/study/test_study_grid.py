"""From a study's config to its settings."""

import copy

import pytest

from configs import depth
from trm_jax.cli import configs
from trm_jax.errors import UserError
from trm_jax.study import grid
from trm_jax.train import step as train


def _config(variant="cpu"):
  return configs.load(f"depth:{variant}").to_dict()


@pytest.mark.parametrize("variant", depth.VARIANTS)
def test_every_variant_spends_the_same_on_each_model(variant):
  study, settings = grid.read(_config(variant))
  assert len({setting.key for setting in settings}) == len(settings)
  for setting in settings:
    experiment = setting.experiment
    recipe = train.Recipe.of(experiment)
    spent = recipe.training_flops(experiment.train.steps)
    assert spent == pytest.approx(study.training_flops, rel=0.05)
    assert experiment.train.steps // experiment.eval.every in (
      study.evaluations, study.evaluations + 1
    )  # fmt: skip
    assert setting.comparable == settings[0].comparable


def test_a_block_is_all_combinations_and_a_setting_stands_once():
  config = _config()
  config["grid"] = {
    "a": {"model": {"family": ("trm",), "width": (32, 64), "cycles": (1, 2)}},
    "b": {"model": {"family": ("trm",), "width": (64,), "cycles": (2, 3)}},
    # What a family does not read makes no difference.
    "c": {"model": {"family": ("transformer",), "cycles": (1, 2, 3)}},
  }
  _, settings = grid.read(config)
  found = [
    (s.family, s.fields["width"], s.fields.get("cycles")) for s in settings
  ]
  assert found == [
    ("trm", 32, 1), ("trm", 32, 2), ("trm", 64, 1), ("trm", 64, 2),
    ("trm", 64, 3), ("transformer", 64, None),
  ]  # fmt: skip


def test_a_setting_is_known_by_what_it_computes():
  def keys(**changes):
    config = copy.deepcopy(_config())
    for path, value in changes.items():
      section, field = path.split("__")
      config[section][field] = value
    return [setting.key for setting in grid.read(config)[1]]

  same = keys()
  assert keys(mesh__model=2) == same
  assert keys(data__cache_dir="elsewhere") == same
  assert keys(study__seeds=(5, 6)) == same
  assert keys(study__depths=(1, 64)) == same
  assert keys(train__seed=9) == same
  for changed in (
    keys(optim__lr=1e-5),
    keys(data__seed=1),
    keys(eval__puzzles=100),
    keys(study__training_flops=1e12),
  ):
    assert not set(changed) & set(same)


def _set(section, **fields):
  return lambda config: config[section].update(fields)


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda c: c.update(grid={}), "config.grid is empty"),
    (lambda c: c.pop("grid"), "config.grid is empty"),
    (lambda c: c.update(grid=3), "config.grid=3: must be a section"),
    (_set("grid", trm=3), "config.grid.trm=3: must be a section"),
    (
      _set("grid", trm={"model": {"family": ("perceiver",)}}),
      "in config.grid.trm: config.model.family='perceiver'",
    ),
    (
      _set("grid", trm={"model": {"width": 64}}),
      "config.grid.trm.model.width=64: must list at least one value",
    ),
    (
      _set("grid", trm={"model": {"width": ()}}),
      r"config.grid.trm.model.width=\(\): must list",
    ),
    (
      _set("grid", trm={"model": {"widht": (64,)}}),
      "in config.grid.trm: config.model has no field 'widht'",
    ),
    (
      _set("grid", trm={"train": {"seed": (1,)}}),
      "seeds are named in config.study.seeds",
    ),
    (
      _set("grid", trm={"model": {"family": ("feedforward",)}}),
      "config.halting.max_steps=8: must be 1",
    ),
    (_set("study", depths=(0, 1)), "config.study.depths="),
    (_set("study", depths=()), "config.study.depths="),
    (_set("study", seeds=()), "config.study.seeds="),
    (_set("study", seeds=(1, 1)), "config.study.seeds="),
    (_set("study", target=80.0), "config.study.target="),
    (_set("study", evaluations=0), "config.study.evaluations="),
    (_set("study", training_flops=-1.0), "config.study.training_flops="),
    (_set("study", training_flops=1.0), "does not pay for 10 optimizer steps"),
    (_set("study", seed=1), "config.study has no field 'seed'"),
  ],
)
def test_what_is_wrong_is_named(edit, message):
  config = _config()
  edit(config)
  with pytest.raises(UserError, match=message):
    grid.read(config)
