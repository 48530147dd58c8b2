"""The settings and the results of a processor."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax import config as config_lib
from trm_jax.data import datasets
from trm_jax.errors import UserError
from trm_jax.solve.rules import SolveConfig

_MOST = 2**16  # of steps and rollouts


@dataclasses.dataclass(frozen=True)
class ReasonConfig:
  """How a processor reasons.

  Attributes:
    max_recursion_depth: supervision steps that a puzzle may take.
    confidence_threshold: early stopping halts when the answer is right with
      this probability; calibrated, where the model has been.
    early_stopping: whether to halt early, by confidence or, where the task has
      rules, when the answer is a solution.
    verbose_reasoning: whether results tell the answer after each step.
    breadth: rollouts of each puzzle, see `SolveConfig`.
    alternatives_breadth: rollouts where several solutions are allowed, if more.
    cycle_noise: deviation of the noise that makes rollouts differ.
    views: whether rollouts see the puzzle under random symmetries.
    select: how the answer is chosen, see `SolveConfig`.
    puzzle_id: what of ARC tasks that the model was not trained on: "error",
      "blank" (no embedding) or "mean" (of all embeddings).
    batch_size: rollouts at once, over all devices.
    seed: of noise and views.
  """

  max_recursion_depth: int = 16
  confidence_threshold: float = 0.8
  early_stopping: bool = True
  verbose_reasoning: bool = False
  breadth: int = 1
  alternatives_breadth: int = 16
  cycle_noise: float = SolveConfig.cycle_noise
  views: bool = False
  select: str = "q"
  puzzle_id: str = "error"
  batch_size: int = 256
  seed: int = 0

  def __post_init__(self):
    for name in ("max_recursion_depth", "breadth", "alternatives_breadth",
                 "batch_size"):  # fmt: skip
      if not 1 <= getattr(self, name) <= _MOST:
        raise ValueError(
          f"{name}={getattr(self, name)}: must be from 1 to {_MOST:,}"
        )
    if not 0 < self.confidence_threshold < 1:
      raise ValueError(
        f"confidence_threshold={self.confidence_threshold}: must be a "
        "probability between 0 and 1"
      )
    if self.puzzle_id not in datasets.UNSEEN:
      raise ValueError(
        f"puzzle_id={self.puzzle_id!r}: must be one of "
        f"{', '.join(datasets.UNSEEN)}"
      )


@dataclasses.dataclass(frozen=True)
class Alternative:
  """An answer that some rollouts gave."""

  answer: Any  # in the task's form
  fraction: float  # of the rollouts, in (0, 1]
  confidence: float  # the mean over these rollouts
  checked: bool | None  # whether it solves the puzzle; None without rules


@dataclasses.dataclass(frozen=True)
class Step:
  """The answer after a supervision step."""

  step: int  # from 1
  answer: Any  # in the task's form
  confidence: float  # that it is right


@dataclasses.dataclass(frozen=True, eq=False)
class Reasoning:
  """The answer to a puzzle, and how it was found.

  Attributes:
    name: what the puzzle is called.
    answer: in the task's form: a text of a character a cell, and in ARC a
      list of rows of colours.
    confidence: the probability that the answer is right, as the model sees
      it; calibrated, where the model has been.
    steps: supervision steps behind the answer.
    checked: whether it solves the puzzle by the rules; None without rules.
    alternatives: the answers of all rollouts, the most frequent first; empty
      unless several solutions were allowed.
    reasoning_history: the answer after each step; empty unless verbose.
    flops: spent on the puzzle, over all rollouts but those that were stopped
      because a sibling was first.
    question: uint8 `[S]`, its tokens.
    tokens: uint8 `[S]`, the answer's.
    history: uint8 `[D, S]`, the tokens after each step, if verbose.
  """

  name: str
  answer: Any
  confidence: float
  steps: int
  checked: bool | None
  alternatives: tuple[Alternative, ...]
  reasoning_history: tuple[Step, ...]
  flops: float
  question: np.ndarray
  tokens: np.ndarray
  history: np.ndarray


def read_config(config: Mapping[str, Any] | None) -> ReasonConfig:
  """Makes a config of fields by name.

  Raises:
    UserError: naming the field that does not exist or is wrong.
  """
  if config is not None and not isinstance(config, Mapping):
    raise UserError(
      f"config is {type(config).__name__}; expected fields by name, as in "
      '{"max_recursion_depth": 32}'
    )
  values = {str(name): value for name, value in (config or {}).items()}
  try:
    return config_lib.read_section(ReasonConfig, "reason", values)
  except UserError as error:
    raise UserError(str(error).replace("config.reason", "config")) from error
