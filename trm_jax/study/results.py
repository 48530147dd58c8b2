"""Trials of a study: their files, checks, merging, labels and table.

A *setting* is a model with its training recipe, without a seed; a *trial* is a
setting trained with one seed.
"""

import collections
import csv
import dataclasses
import io
import json
import math
import pathlib
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trm_jax.core.family import FAMILIES
from trm_jax.data import checks
from trm_jax.errors import UserError
from trm_jax.run import card, files
from trm_jax.run.changes import differences
from trm_jax.run.files import write_json
from trm_jax.study.grid import Setting

_MOST_BYTES = 2**26  # of a file
_MOST_COUNT = 2**53  # exact as a float

# The scores at one depth, as returned by `evaluate.evaluate`.
Scores = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A trained and evaluated model."""

  setting: str  # digest of the setting, see `Setting.key`
  seed: int
  family: str  # a key of `FAMILIES`
  # Name -> value of the fields that distinguish settings, such as
  # {"width": 64, "layers": 2, "cycles": 3, "latent_steps": 6}.
  fields: dict[str, Any]
  # The config's data and test; trials are compared only if these are equal.
  comparable: dict[str, Any]
  weights: int  # number of trained weights, without the puzzle table
  steps: int  # optimizer steps made
  batch_size: int  # puzzles per optimizer step
  training_flops: float  # total, over the batch
  seconds: float  # of training, wall clock, of all seeds trained together
  hardware: str  # description of the training devices
  diverged_at: int | None  # the step at which a value became non-finite
  # Scores of each evaluation during training, at one depth, with `step` and
  # `training_flops`.
  learning: list[Scores]
  depths: list[Scores]  # at every test depth from 1 on; empty if it diverged

  @property
  def file_name(self) -> str:
    """The name of its file in the folder of trials."""
    return f"{self.setting}-seed{self.seed}.json"


def save_trial(folder: pathlib.Path, trial: Trial):
  """Writes a trial, replacing one of the same setting and seed.

  Raises:
    ValueError: if `load_trials` would refuse it, for example for a NaN.
    UserError: if it cannot be written.
  """
  value = json.loads(json.dumps(dataclasses.asdict(trial)))  # as read back
  try:
    _parse(value)
  except ValueError as error:
    raise ValueError(f"{trial.file_name} cannot be saved: {error}") from None
  write_json(folder / trial.file_name, value)


def load_trials(folder: pathlib.Path) -> list[Trial]:
  """Reads the `.json` files of a folder, in the order of their names.

  Args:
    folder: the folder; if it does not exist, there are no trials.

  Raises:
    UserError: for a file that is not a trial, naming the field that is wrong.
  """
  old = folder.with_name("cells")
  if old.exists() and not folder.exists():
    raise UserError(
      f"{old}: an earlier version kept the finished models of a study there; "
      f"rename this folder to {folder.name}"
    )
  try:
    paths = sorted(p for p in folder.iterdir() if p.suffix == ".json")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(
      f"{folder}: cannot read this folder of trials ({error.strerror}); "
      "choose another --workdir"
    ) from error
  return [_load(path) for path in paths]


def _load(path: pathlib.Path) -> Trial:
  try:
    trial = _parse(checks.parse_json(card.read_bytes(path, _MOST_BYTES)))
  except (ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path} is damaged: {error}. Put back a copy of it; or delete it, and "
      "the command that made it trains this model again"
    ) from error
  if path.name != trial.file_name:
    raise UserError(
      f"{path} holds setting {trial.setting!r} and seed {trial.seed}: rename "
      f"it to {trial.file_name}, or delete it"
    )
  return trial


def merge(groups: Mapping[str, Sequence[Trial]]) -> list[Trial]:
  """Joins the trials of several folders.

  Args:
    groups: name of a folder -> its trials.

  Returns:
    The trials, ordered by family, weights, training FLOPs of the setting, and
    seed. Of two with the same setting and seed, the one with more test depths,
    or else the first.

  Raises:
    UserError: if there is no trial, or if data or evaluation differ between
      trials, naming the fields.
  """
  found = [(name, trial) for name, trials in groups.items() for trial in trials]
  if not found:
    where = ", ".join(groups) or "no folder was given"
    raise UserError(
      f"there is nothing to report yet: no model is finished ({where}); train "
      "the grid first, or name the --workdir of one that is"
    )
  first_name, first = found[0]
  kept: dict[tuple[str, int], Trial] = {}
  for name, trial in found:
    differing = differences(trial.comparable, first.comparable)
    if differing:
      raise UserError(
        f"{name}: {trial.file_name} cannot be compared with {first_name}: "
        f"{first.file_name}, for their data or evaluation differ; merge "
        "only folders in which these are the same. In "
        f"{first_name} (there) and {name} (here) they are\n  "
        + "\n  ".join(differing)
      )
    other = kept.setdefault((trial.setting, trial.seed), trial)
    if len(trial.depths) > len(other.depths):
      kept[trial.setting, trial.seed] = trial
  # A diverged seed spent less than the others of its setting.
  spent: dict[str, float] = {}
  for trial in kept.values():
    spent[trial.setting] = max(
      spent.get(trial.setting, 0.0), trial.training_flops
    )
  families = list(FAMILIES)
  return sorted(
    kept.values(),
    key=lambda trial: (
      families.index(trial.family), trial.weights, spent[trial.setting],
      trial.setting, trial.seed,
    ),
  )  # fmt: skip


def labels(items: Sequence[Trial | Setting]) -> dict[str, str]:
  """Digest of each setting -> a unique short name.

  It is the title of the family, with the fields in which the settings of the
  family differ, and with the digest if two names would be equal.
  """
  settings = {item.setting: item for item in items}
  # (family, field) -> its values in the settings that have it.
  values: dict[tuple[str, str], list[str]] = {}
  for item in settings.values():
    for name, value in item.fields.items():
      values.setdefault((item.family, name), []).append(_as_text(value))
  members = [item.family for item in settings.values()]
  # A field that some settings lack also varies.
  varying = {
    (family, name)
    for (family, name), texts in values.items()
    if len(set(texts)) > 1 or len(texts) < members.count(family)
  }
  names = {
    setting: ", ".join(
      [FAMILIES[item.family].title]
      + [
        f"{name.replace('_', ' ')} {_as_text(value)}"
        for name, value in item.fields.items()
        if (item.family, name) in varying
      ]
    )
    for setting, item in settings.items()
  }
  count = collections.Counter(names.values())
  return {
    setting: f"{name} ({setting})" if count[name] > 1 else name
    for setting, name in names.items()
  }


def scores_at(trial: Trial, depths: Iterable[int]) -> list[Scores]:
  """A trial's scores at some depths, ascending.

  A model with one depth always has its scores at that depth.
  """
  depths = set(depths)
  return [
    scores
    for scores in trial.depths
    if len(trial.depths) == 1 or scores["depth"] in depths
  ]


# Columns of the table before and after the fields of the settings.
_BEFORE = ("setting", "label", "family", "seed", "status")
_AFTER = (
  "weights", "steps", "training_flops", "seconds", "depth", "flops_per_puzzle"
)  # fmt: skip


def write_csv(
  path: pathlib.Path, trials: Sequence[Trial], depths: Iterable[int]
):
  """Writes a table with one row per trial and test depth.

  A trial without scores at these depths has one row without scores. A field
  with the name of another column gets the column `fields.<name>`.
  """
  depths = set(depths)
  label_of = labels(trials)
  fields: dict[str, None] = {}  # ordered sets
  scores: dict[str, None] = {}
  rows = []
  for trial in trials:
    row = {_column(name): _as_text(v) for name, v in trial.fields.items()}
    fields |= dict.fromkeys(row)
    row |= {
      "setting": trial.setting,
      "label": label_of[trial.setting],
      "family": trial.family,
      "seed": trial.seed,
      "status": "finished" if trial.diverged_at is None else "diverged",
      "weights": trial.weights,
      "steps": trial.steps,
      "training_flops": trial.training_flops,
      "seconds": trial.seconds,
    }
    for found in scores_at(trial, depths) or [{}]:
      scores |= dict.fromkeys(found)
      rows.append(found | row)
  columns = dict.fromkeys([*_BEFORE, *fields, *_AFTER, *scores])
  text = io.StringIO(newline="")
  writer = csv.DictWriter(text, list(columns), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  files.write({path: text.getvalue().encode()})


def _column(field: str) -> str:
  return f"fields.{field}" if field in (*_BEFORE, *_AFTER) else field


def _as_text(value: Any) -> str:
  """A field's value: strings as they are, all else as JSON."""
  return value if isinstance(value, str) else json.dumps(value)


# Reading of files.


def _is_number(value: Any, least: float, most: float = sys.float_info.max):
  """Whether it is a number in a range; NaN and booleans are not."""
  return type(value) in (int, float) and least <= value <= most


def _is_whole(value: Any, least: int) -> bool:
  return type(value) is int and least <= value <= _MOST_COUNT


_COUNT = "a whole number of at least 0"
_SIZE = "a whole number of at least 1"
_AMOUNT = "a finite number of at least 0"
_POSITIVE = "a finite number above 0"
_NUMBER = "a finite number"
_FRACTION = "a number from 0 to 1"

# Expected kind of value, in words -> its test.
_IS = {
  "12 hex digits": lambda v: (
    isinstance(v, str) and re.fullmatch("[0-9a-f]{12}", v)
  ),
  "a known family of models": lambda v: isinstance(v, str) and v in FAMILIES,
  "a text": lambda v: isinstance(v, str),
  "an object": lambda v: isinstance(v, dict),
  "a list of objects": lambda v: (
    isinstance(v, list) and all(isinstance(one, dict) for one in v)
  ),
  "null or a whole number of at least 0": lambda v: (
    v is None or _is_whole(v, 0)
  ),
  _COUNT: lambda v: _is_whole(v, 0),
  _SIZE: lambda v: _is_whole(v, 1),
  _NUMBER: lambda v: _is_number(v, -sys.float_info.max),
  _AMOUNT: lambda v: _is_number(v, 0),
  _POSITIVE: lambda v: _is_number(v, math.ulp(0)),
  _FRACTION: lambda v: _is_number(v, 0, 1),
}
_TRIAL = {
  "setting": "12 hex digits",
  "seed": _COUNT,
  "family": "a known family of models",
  "fields": "an object",
  "comparable": "an object",
  "weights": _SIZE,
  "steps": _COUNT,
  "batch_size": _SIZE,
  "training_flops": _AMOUNT,
  "seconds": _AMOUNT,
  "hardware": "a text",
  "diverged_at": "null or a whole number of at least 0",
  "learning": "a list of objects",
  "depths": "a list of objects",
}
_SCORES = {"depth": _SIZE, "puzzles": _SIZE, "exact_accuracy": _FRACTION}
_LEARNING = _SCORES | {"step": _COUNT, "training_flops": _AMOUNT}
_DEPTHS = _SCORES | {"flops_per_puzzle": _POSITIVE}
_HALTING = {"halted_exact_accuracy": _FRACTION, "mean_steps": _POSITIVE}


def _parse(value: Any) -> Trial:
  """Makes a trial from parsed JSON; a ValueError names what is wrong."""
  if not isinstance(value, dict):
    raise ValueError("it is not an object of fields")
  _check("", value, _TRIAL)
  extra = sorted(value.keys() - _TRIAL.keys())
  if extra:
    raise ValueError(f"{extra[0]} is not a field of a trial")
  _check_finite("fields", value["fields"])
  _check_finite("comparable", value["comparable"])
  depths = value["depths"]
  # Models with one depth have no halting scores.
  tested = _DEPTHS | (_HALTING if len(depths) > 1 else {})
  for name, schema in (("learning", _LEARNING), ("depths", tested)):
    for i, scores in enumerate(value[name]):
      every = dict.fromkeys(scores, _NUMBER)
      _check(f"{name}[{i}].", scores, every | schema)
  found = [scores["depth"] for scores in depths]
  if found != list(range(1, len(found) + 1)):
    raise ValueError(f"depths has {reprlib.repr(found)}, not all from 1 on")
  if (value["diverged_at"] is None) != bool(found):
    raise ValueError(
      f"diverged_at is {value['diverged_at']} and depths has {len(found)} "
      "entries: a trial that diverged has none, all others have some"
    )
  # JSON may hold whole numbers here.
  spent: dict[str, Any] = {
    name: float(value[name]) for name in ("training_flops", "seconds")
  }
  return Trial(**(value | spent))


def _check(place: str, value: Mapping[str, Any], schema: Mapping[str, str]):
  for name, words in schema.items():
    if name not in value:
      raise ValueError(f"{place}{name} is missing")
    if not _IS[words](value[name]):
      raise ValueError(
        f"{place}{name} is {reprlib.repr(value[name])}, not {words}"
      )


def _check_finite(place: str, value: Any):
  """Refuses non-finite numbers in nested values."""
  if isinstance(value, dict):
    for name, inner in value.items():
      _check_finite(f"{place}.{name}", inner)
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      _check_finite(f"{place}[{i}]", inner)
  elif isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{place} is {value}, not a finite number")
