"""Reads the config of a study into the settings to train.

It is the config of an experiment with two more sections: `study`, see
`StudyConfig`, and `grid`, with one block per model. A block lists values for
any fields of the experiment, and all their combinations are settings:

    config.grid.trm.model = dict(family=("trm",), width=(64, 128))
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.run.changes import computed
from trm_jax.train import step as train

# Fields of the model in labels and tables, unless the family ignores them.
_FIELDS = ("width", "layers", "cycles", "latent_steps")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """How every setting of a grid is trained and tested.

  Attributes:
    seeds: each setting is trained once per seed.
    depths: test depths, in supervision steps. Models that do not recur have
      depth 1 only.
    training_flops: training budget of each seed. It determines `train.steps`,
      so that families are compared at equal cost; 0 keeps the config's steps.
    evaluations: number of evaluations during training, evenly spaced.
    target: the exact accuracy in the report's verdict.
  """

  seeds: tuple[int, ...] = (0, 1, 2)
  depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  training_flops: float = 0.0
  evaluations: int = 8
  target: float = 0.8

  def __post_init__(self):
    for name, least, most in (("seeds", 0, 2**32 - 1), ("depths", 1, 2**16)):
      values = getattr(self, name)
      inside = values and least <= min(values) and max(values) <= most
      if not inside or len(set(values)) < len(values):
        raise ValueError(
          f"{name}={values}: must be different whole numbers from {least} to "
          f"{most}"
        )
    if self.training_flops < 0:
      raise ValueError(
        f"training_flops={self.training_flops}: must not be negative"
      )
    if self.evaluations < 1:
      raise ValueError(f"evaluations={self.evaluations}: must be at least 1")
    if not 0 < self.target <= 1:
      raise ValueError(f"target={self.target}: must be a fraction in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model and its training recipe, without a seed."""

  key: str  # digest of the fields that change results, 12 hex digits
  experiment: Experiment  # the checked config
  config: dict[str, Any]  # the config as plain values
  fields: dict[str, Any]  # name -> value of fields that distinguish settings

  @property
  def setting(self) -> str:
    """The digest, with the same name as in a trial."""
    return self.key

  @property
  def family(self) -> str:
    """The model's family."""
    return self.experiment.model.family

  @property
  def comparable(self) -> dict[str, Any]:
    """The config's data and test, which compared models must share."""
    data = {k: v for k, v in self.config["data"].items() if k != "cache_dir"}
    test = {
      name: getattr(self.experiment.eval, name)
      for name in ("puzzles", "copies", "seed")
    }
    return json.loads(json.dumps({"data": data, "eval": test}))


def read(config: Mapping[str, Any]) -> tuple[StudyConfig, list[Setting]]:
  """Reads a study's config.

  Args:
    config: plain nested values.

  Returns:
    The study, and its distinct settings in the order of the grid.

  Raises:
    UserError: naming the field, its value and what was expected.
  """
  base = {k: v for k, v in config.items() if k not in ("study", "grid")}
  study = config_lib.read_section(StudyConfig, "study", config.get("study", {}))
  blocks = config.get("grid", {})
  settings = {}
  for name, block in _each(blocks, "config.grid"):
    for overrides in _combinations(name, block):
      setting = _make(base, overrides, study, name)
      settings.setdefault(setting.key, setting)
  if not settings:
    raise UserError(
      "config.grid is empty: name at least one block, such as "
      "grid.trm.model = dict(family=('trm',), width=(64,))"
    )
  return study, list(settings.values())


def _each(section: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  if not hasattr(section, "items"):
    raise UserError(f"{where}={section!r:.80}: must be a section")
  yield from section.items()


def _combinations(
  block: str, sections: Mapping[str, Any]
) -> Iterator[dict[tuple[str, str], Any]]:
  """Yields all combinations of the values in a block."""
  axes = {}
  for section, fields in _each(sections, f"config.grid.{block}"):
    for field, values in _each(fields, f"config.grid.{block}.{section}"):
      where = f"config.grid.{block}.{section}.{field}"
      if not isinstance(values, (list, tuple)) or not values:
        raise UserError(
          f"{where}={values!r}: must list at least one value, as in (1, 2)"
        )
      if (section, field) == ("train", "seed"):
        raise UserError(f"{where}: seeds are named in config.study.seeds")
      axes[section, field] = values
  for values in itertools.product(*axes.values()):
    yield dict(zip(axes, values, strict=True))


def _unread(family: str) -> set[str]:
  return {"cycles", "latent_steps"} & {*FAMILIES[family].unread}


def _make(
  base: Mapping[str, Any],
  overrides: Mapping[tuple[str, str], Any],
  study: StudyConfig,
  block: str,
) -> Setting:
  config = {name: dict(section) for name, section in base.items()}
  for (section, field), value in overrides.items():
    config.setdefault(section, {})[field] = value
  model = config.setdefault("model", {})
  name = model.get("family", "trm")
  if name in FAMILIES:
    for field in _unread(name):
      model[field] = 1  # ignored fields must not change the digest
  config.setdefault("train", {})["seed"] = 0  # the trials set it
  try:
    experiment = config_lib.read(config)
    config = _with_budget(config, experiment, study)
    experiment = config_lib.read(config)
  except UserError as error:
    raise UserError(f"in config.grid.{block}: {error}") from error
  unread = _unread(experiment.model.family)
  fields = {
    name: getattr(experiment.model, name)
    for name in _FIELDS
    if name not in unread
  }
  fields |= {
    f"{section}.{field}": value
    for (section, field), value in overrides.items()
    if field not in (*_FIELDS, "family")
  }
  text = json.dumps(computed(config), sort_keys=True)
  return Setting(
    key=hashlib.sha256(text.encode()).hexdigest()[:12],
    experiment=experiment,
    config=json.loads(json.dumps(config)),
    fields=json.loads(json.dumps(fields)),
  )


def _with_budget(
  config: dict[str, Any], experiment: Experiment, study: StudyConfig
) -> dict[str, Any]:
  """Sets the steps from the budget, and the interval of evaluations."""
  settings = experiment.train
  unit = max(settings.log_every, settings.steps_per_dispatch)
  steps = settings.steps
  if study.training_flops:
    recipe = train.Recipe.of(experiment)
    one = recipe.training_flops(steps) / steps
    steps = round(study.training_flops / one / unit) * unit
    if not steps:
      raise UserError(
        f"config.study.training_flops={study.training_flops:.3g}: does not pay "
        f"for {unit} optimizer steps of {one:.3g}"
      )
  dispatch = settings.steps_per_dispatch
  every = max(steps // study.evaluations // dispatch, 1) * dispatch
  return config | {
    "train": config["train"] | {"steps": steps},
    "eval": config.get("eval", {}) | {"every": every},
  }
