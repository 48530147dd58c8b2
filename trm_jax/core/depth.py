"""Depth schedules: which (T, n) each optimizer step trains.

Every depth is compiled once, as a branch of the one training program, and
which branch a step takes is a function of the settings and the step's number.
"""

import dataclasses

import numpy as np

from trm_jax.core.model import ModelConfig

SCHEDULES = ("fixed", "curriculum", "random")

# Draws come in blocks of this many steps, so that any step is found at once.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class DepthConfig:
  """How the depth of recursion changes during training.

  A curriculum from shallow to deep costs less than training at full depth
  throughout: with stages ((1, 2), (2, 4), (3, 6)) and until=(0.3, 0.6) it is
  the "progressive depth curriculum" of CGAR (arXiv 2511.08653, section 3.3,
  which writes n before T), and `train.supervision_decay` its other half.

  Attributes:
    schedule: "fixed" trains `model.cycles` and `model.latent_steps`
      throughout, "curriculum" one stage after another, "random" a stage drawn
      anew for every step.
    stages: pairs (T, n). Evaluation is always at the model's own.
    until: for "curriculum", the fractions of training at which each stage
      but the last ends.
    seed: of "random".
  """

  schedule: str = "fixed"
  stages: tuple[tuple[int, int], ...] = ()
  until: tuple[float, ...] = ()
  seed: int = 0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f"schedule={self.schedule!r}: must be one of {', '.join(SCHEDULES)}"
      )
    if (self.schedule == "fixed") != (not self.stages):
      raise ValueError(
        f"stages={self.stages}: must be empty for a 'fixed' schedule, and "
        "pairs (T, n) for others"
      )
    for stage in self.stages:
      if min(stage) < 1:
        raise ValueError(f"stages={self.stages}: T and n must be at least 1")
    ends = len(self.stages) - 1 if self.schedule == "curriculum" else 0
    rising = list(self.until) == sorted(set(self.until))
    inside = all(0 < end < 1 for end in self.until)
    if len(self.until) != ends or not rising or not inside:
      raise ValueError(
        f"until={self.until}: a {self.schedule!r} schedule of "
        f"{len(self.stages)} stages needs {ends} rising fractions in (0, 1)"
      )
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")

  def models(self, model: ModelConfig) -> tuple[ModelConfig, ...]:
    """The model at each depth that is trained.

    Raises:
      ValueError: if the family has no such depths.
    """
    if self.schedule == "fixed":
      return (model,)
    if "cycles" in model.kind.unread:
      raise ValueError(
        f"schedule={self.schedule!r}: family={model.family!r} has no cycles; "
        "use 'fixed'"
      )
    steps = {n for _, n in self.stages}
    if "latent_steps" in model.kind.tied and steps != {model.latent_steps}:
      raise ValueError(
        f"stages={self.stages}: family={model.family!r} has a latent for each "
        f"of its n={model.latent_steps} latent steps, so n cannot change"
      )
    return tuple(
      dataclasses.replace(model, cycles=cycles, latent_steps=n)
      for cycles, n in self.stages
    )

  def choices(self, first: int, count: int, total: int) -> np.ndarray:
    """Which of `models` each step trains.

    Args:
      first: the first step, from 0.
      count: how many steps.
      total: optimizer steps of the whole training.

    Returns:
      int32 [count].
    """
    steps = np.arange(first, first + count)
    if self.schedule == "curriculum":
      ends = np.asarray(self.until) * total
      return np.searchsorted(ends, steps, side="right").astype(np.int32)
    if self.schedule == "fixed":
      return np.zeros(count, np.int32)
    blocks = range(first // _BLOCK, (first + count) // _BLOCK + 1)
    drawn = np.concatenate(
      [
        np.random.default_rng([self.seed, block]).integers(
          len(self.stages), size=_BLOCK, dtype=np.int32
        )
        for block in blocks
      ]
    )
    return drawn[steps - blocks[0] * _BLOCK]
