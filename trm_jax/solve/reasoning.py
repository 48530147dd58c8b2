"""Settings and results of `TRMProcessor`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax import config as config_lib
from trm_jax.data import datasets
from trm_jax.errors import UserError
from trm_jax.solve.rules import MOST, SolveConfig


@dataclasses.dataclass(frozen=True)
class ReasonConfig:
  """Settings of a processor; see also `SolveConfig`.

  Early stopping halts a puzzle when its confidence (calibrated, if the model
  is) exceeds `confidence_threshold`, or its answer solves it by the task's
  rules.
  """

  max_recursion_depth: int = 16  # most supervision steps of a puzzle
  confidence_threshold: float = 0.8
  early_stopping: bool = True
  verbose_reasoning: bool = False  # whether results have a history
  breadth: int = 1  # rollouts of each puzzle
  alternatives_breadth: int = 16  # least rollouts for multiple solutions
  cycle_noise: float = SolveConfig.cycle_noise
  views: bool = False
  select: str = "q"
  # Embedding of ARC tasks that were not trained on: "blank" (none), "mean" (of
  # all); "error" refuses them.
  puzzle_id: str = "error"
  batch_size: int = 256  # rollouts at once, over all devices
  seed: int = 0  # of noise and views

  def __post_init__(self):
    for name in ("max_recursion_depth", "breadth", "alternatives_breadth",
                 "batch_size"):  # fmt: skip
      if not 1 <= getattr(self, name) <= MOST:
        raise ValueError(
          f"{name}={getattr(self, name)}: must be from 1 to {MOST:,}"
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
  """One of several answers to a puzzle."""

  answer: Any  # in the task's form
  fraction: float  # of the rollouts that gave it, in (0, 1]
  confidence: float  # mean over these rollouts
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

  Answers are in the task's form: a text with one character per cell; in ARC a
  list of rows of colours.
  """

  name: str
  answer: Any
  confidence: float  # that the answer is right; calibrated if possible
  steps: int  # supervision steps of the answer
  checked: bool | None  # whether it solves the puzzle; None without rules
  # All answers, the most frequent first; empty for a single solution.
  alternatives: tuple[Alternative, ...]
  reasoning_history: tuple[Step, ...]  # empty if not verbose
  flops: float  # of all rollouts that were not pruned
  question: np.ndarray  # uint8 [S], tokens
  tokens: np.ndarray  # uint8 [S], of the answer
  history: np.ndarray  # uint8 [D, S], tokens after each step; if verbose


def read_config(config: Mapping[str, Any] | None) -> ReasonConfig:
  """A `ReasonConfig` of fields by name; raises UserError on a wrong field."""
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
