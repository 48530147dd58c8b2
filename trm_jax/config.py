"""Converts an experiment's ConfigDict to frozen, checked dataclasses.

Each section of a config is one dataclass, whose attributes document its
fields. No other module receives a `ConfigDict`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from trm_jax.core.depth import DepthConfig
from trm_jax.core.family import TOKEN_LOSSES
from trm_jax.core.halting import HaltingConfig
from trm_jax.core.model import ModelConfig
from trm_jax.core.optim import OptimConfig
from trm_jax.data import checks
from trm_jax.data.datasets import TASKS
from trm_jax.data.task import Settings, Task
from trm_jax.errors import UserError

REFILLS = ("queue", "discard")

# The rows of a puzzle table are a multiple of this, so that any usual number
# of devices divides them.
_TABLE_ROWS_MULTIPLE = 512
_DEFAULT_TASK = "sudoku"

# Far above what is useful, so that a slip of the keyboard is refused before
# memory or days are spent.
_MOST_PUZZLES = 2**24  # in a batch
_MOST_STEPS = 2**16  # compiled into one call, or of a puzzle
_MOST_SEED = 2**32 - 1  # of JAX's keys


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training loop.

  Attributes:
    steps: total optimizer steps; one is one supervision step.
    batch_size: global batch, over all devices and processes.
    microbatch: largest number of puzzles that a device computes at once;
      gradients of microbatches are added up. 0 for the whole batch.
    steps_per_dispatch: optimizer steps scanned into one call of the device.
    refill: "queue" gives each halted slot the next puzzle; "discard" draws a
      full batch every step and drops the rows of running slots, as the
      reference does.
    loss: token loss, "stablemax" or "softmax". A decoder needs "softmax",
      because it generates by its probabilities.
    label_smoothing: the fraction of each label that is spread over all tokens
      (arXiv 1512.00567); 0 for none.
    supervision_decay: weight of each supervision step's token loss, as a
      fraction of the previous one's (0.7 in CGAR, arXiv 2511.08653); 1 for
      equal weights.
    augment: whether to augment puzzles, on the device. An ARC folder in the
      reference's layout is not augmented again.
    log_every: optimizer steps between rows of metrics.
    seed: seed of weights, order, augmentation and halting.
  """

  steps: int = 50_000
  batch_size: int = 768
  microbatch: int = 0
  steps_per_dispatch: int = 10
  refill: str = "queue"
  loss: str = "stablemax"
  label_smoothing: float = 0.0
  supervision_decay: float = 1.0
  augment: bool = True
  log_every: int = 100
  seed: int = 0

  def __post_init__(self):
    checks.require_whole(self, "steps", "log_every")
    checks.require_whole(self, "batch_size", most=_MOST_PUZZLES)
    checks.require_whole(self, "steps_per_dispatch", most=_MOST_STEPS)
    checks.require_whole(self, "seed", least=0, most=_MOST_SEED)
    checks.require_choice(self, "refill", REFILLS)
    checks.require_choice(self, "loss", TOKEN_LOSSES)
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 1)"
      )
    checks.require_whole(self, "microbatch", least=0)
    if not 0 < self.supervision_decay <= 1:
      raise ValueError(
        f"supervision_decay={self.supervision_decay}: must be in (0, 1]"
      )
    checks.require_multiple(self, "steps", "log_every", of="steps_per_dispatch")

  def microbatches(self, devices: int) -> int:
    """Number of equal microbatches a device, with `devices` in all."""
    per_device = self.batch_size // devices
    fewest = -(-per_device // (self.microbatch or per_device))
    counts = range(fewest, per_device + 1)
    return next(count for count in counts if per_device % count == 0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation with the moving average of the weights, at a fixed depth.

  Attributes:
    every: optimizer steps between evaluations.
    puzzles: number of test puzzles (in ARC: tasks), drawn with `seed`; 0 for
      all.
    copies: number of augmented copies of each puzzle that vote, the original
      included; 0 for all. Only ARC has copies.
    depth: supervision steps a puzzle; a model that does not recurse takes one.
    batch_size: puzzles evaluated at once.
    seed: seed of the choice of puzzles.
  """

  every: int = 5_000
  puzzles: int = 0
  copies: int = 0
  depth: int = 16
  batch_size: int = 768
  seed: int = 0

  def __post_init__(self):
    checks.require_whole(self, "every")
    checks.require_whole(self, "depth", most=_MOST_STEPS)
    checks.require_whole(self, "batch_size", most=_MOST_PUZZLES)
    checks.require_whole(self, "seed", least=0, most=_MOST_SEED)
    checks.require_whole(self, "puzzles", "copies", least=0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Checkpoints of a run.

  Attributes:
    every: optimizer steps between checkpoints; each evaluation adds one.
    keep: number of latest checkpoints kept, besides the best.
  """

  every: int = 1_000
  keep: int = 2

  def __post_init__(self):
    checks.require_whole(self, "every", "keep")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Layout of the devices.

  Attributes:
    data: devices that split the batch; -1 for all devices / `model`.
    model: devices that split each weight matrix.
  """

  data: int = -1
  model: int = 1

  def __post_init__(self):
    checks.require_whole(self, "model")
    if self.data != -1 and self.data < 1:
      raise ValueError(f"data={self.data}: must be positive, or -1 for 'rest'")


@dataclasses.dataclass(frozen=True)
class Experiment:
  """An experiment: one attribute per section of its config."""

  data: Settings
  model: ModelConfig
  halting: HaltingConfig
  optim: OptimConfig
  train: TrainConfig
  eval: EvalConfig
  checkpoint: CheckpointConfig
  mesh: MeshConfig
  depth: DepthConfig

  def __post_init__(self):
    try:
      self.depth.models(self.model)
    except ValueError as error:
      raise UserError(f"config.depth.{error}") from error
    family = self.model.family
    if not self.model.is_recursive and self.halting.max_steps > 1:
      raise UserError(
        f"config.halting.max_steps={self.halting.max_steps}: must be 1 for "
        f"config.model.family={family!r}, which has nothing to refine"
      )
    losses = self.model.kind.losses
    if self.train.loss not in losses:
      raise UserError(
        f"config.train.loss={self.train.loss!r}: must be "
        f"{' or '.join(map(repr, losses))} for config.model.family={family!r}"
      )
    dispatch = self.train.steps_per_dispatch
    for name, every in (
      ("eval.every", self.eval.every),
      ("checkpoint.every", self.checkpoint.every),
    ):
      if every % dispatch:
        raise UserError(
          f"config.{name}={every}: must be a multiple of "
          f"config.train.steps_per_dispatch={dispatch}, for state is only "
          "seen between dispatches"
        )

  @property
  def task(self) -> Task:
    """The task of the data."""
    return self.data.task

  def with_puzzle_ids(self, count: int) -> "Experiment":
    """The experiment with a puzzle table for `count` ids, the blank included.

    Raises:
      UserError: if the config sets a size other than 1 that is too small.
    """
    rows = self.model.num_puzzle_ids
    if count <= rows:
      return self
    if rows > 1:
      raise UserError(
        f"config.model.num_puzzle_ids={rows}: the data has {count} puzzle ids; "
        "set it to that or more, or leave it out"
      )
    rows = -(-count // _TABLE_ROWS_MULTIPLE) * _TABLE_ROWS_MULTIPLE
    model = dataclasses.replace(self.model, num_puzzle_ids=rows)
    return dataclasses.replace(self, model=model)


_SECTIONS = typing.get_type_hints(Experiment)
del _SECTIONS["data"]  # its class depends on the task


def read(config: Mapping[str, Any]) -> Experiment:
  """Checks a config and freezes it.

  Args:
    config: a `ConfigDict`, or the nested dict of a run's `config.json`.
      Missing sections and fields have their defaults.

  Raises:
    UserError: naming the field, its value and what was expected.
  """
  # A ConfigDict is not an instance of Mapping.
  if not hasattr(config, "items"):
    raise UserError(f"the config is {config!r:.80}: it must have sections")
  for name, section in config.items():
    if not hasattr(section, "items"):
      raise UserError(f"config.{name}={section!r:.80}: must be a section")
  sections = {name: dict(section) for name, section in config.items()}
  names = [field.name for field in dataclasses.fields(Experiment)]
  _refuse_unknown("config", sections, names)
  data = sections.pop("data", {})
  task_name = data.pop("task", _DEFAULT_TASK)
  if not isinstance(task_name, str) or task_name not in TASKS:
    raise UserError(
      f"config.data.task={task_name!r}: must be one of {', '.join(TASKS)}"
    )
  settings = read_section(TASKS[task_name], "data", data)
  task = settings.task
  fixed = {"vocab_size": task.vocab_size, "seq_len": task.seq_len}
  return Experiment(
    data=settings,
    **{
      name: read_section(
        cls, name, sections.get(name, {}), fixed if name == "model" else {}
      )
      for name, cls in _SECTIONS.items()
    },
  )


def sections(config: Mapping[str, Any]) -> dict[str, type]:
  """Each section's dataclass; without `data` if its task is not known."""
  data = config.get("data", {})
  task = data.get("task", _DEFAULT_TASK) if hasattr(data, "get") else ""
  if isinstance(task, str) and task in TASKS:
    return {"data": TASKS[task], **_SECTIONS}
  return dict(_SECTIONS)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config as plain values, with the defaults of missing fields."""
  full = {
    name: {field.name: field.default for field in settable(cls)}
    for name, cls in sections(config).items()
  }
  for name, section in config.items():
    full[name] = full.get(name, {}) | dict(section)
  return full


def settable(cls: type) -> list[dataclasses.Field]:
  """The fields of a section that a config may set; the task sets others."""
  fields = dataclasses.fields(cls)
  return [field for field in fields if field.default is not dataclasses.MISSING]


def read_section(
  cls: type,
  section: str,
  values: Mapping[str, Any],
  fixed: Mapping[str, Any] = types.MappingProxyType({}),
):
  """Makes the dataclass `cls` of a section.

  The config sets `values`, and cannot set the fields in `fixed`.

  Raises:
    UserError: naming the field, its value and what was expected.
  """
  hints = typing.get_type_hints(cls)
  allowed = [f.name for f in dataclasses.fields(cls) if f.name not in fixed]
  _refuse_unknown(f"config.{section}", values, allowed)
  typed = {
    name: checks.convert(f"config.{section}.{name}", value, hints[name])
    for name, value in values.items()
  }
  try:
    return cls(**typed, **fixed)
  except ValueError as error:
    raise UserError(f"config.{section}.{error}") from error


def _refuse_unknown(where: str, names, allowed: list[str]):
  for name in names:
    if name not in allowed:
      hint = f"it has {', '.join(sorted(allowed))}"
      if close := difflib.get_close_matches(name, allowed, n=1):
        hint = f"did you mean {close[0]!r}?"
      raise UserError(f"{where} has no field {name!r}: {hint}")
