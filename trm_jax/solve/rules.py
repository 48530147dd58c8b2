"""Settings of inference: depth, breadth, halting rules, noise, selection."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

MOST = 2**16  # steps, and rollouts of a puzzle


class Values(NamedTuple):
  """Inputs of halting rules: numpy or jax arrays of one shape."""

  margin: Any  # float, the halting margin, see `rollout.StepResult`
  residual: Any  # float, relative change of `y`, see `rollout.StepResult`
  unchanged: Any  # int, steps for which the answer has been the same
  solved: Any  # bool, whether the answer solves the puzzle; False if unchecked


class HaltingRule(NamedTuple):
  """A rule by which a rollout halts before its depth is reached."""

  name: str  # in `SolveConfig.halt`
  field: str  # field of `SolveConfig` with the limit, or ""
  dtype: str  # of the limit
  never: Any  # the limit at which the rule never halts
  halts: Callable[[Values, Any], Any]  # (values, limit) -> bool
  label: str  # format string of the limit
  tried: tuple  # limits to choose from, those that halt sooner first
  colour: str  # in plots
  marker: str  # in plots


RULES = (
  HaltingRule(
    name="q", field="threshold", dtype="float32", never=float("inf"),
    halts=lambda values, limit: values.margin > limit, label="q > {:g}",
    tried=(0.0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8),
    colour="#0072B2", marker="o",
  ),
  HaltingRule(
    name="unchanged", field="patience", dtype="int32", never=2**31 - 1,
    halts=lambda values, limit: values.unchanged >= limit,
    label="unchanged for {}", tried=(1, 2, 3, 4, 6),
    colour="#D55E00", marker="s",
  ),
  HaltingRule(
    name="residual", field="tolerance", dtype="float32", never=0.0,
    halts=lambda values, limit: values.residual < limit,
    label="residual < {:g}", tried=(0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01),
    colour="#009E73", marker="^",
  ),
  HaltingRule(
    name="solved", field="", dtype="bool", never=False,
    halts=lambda values, limit: values.solved & limit, label="solved",
    tried=(True,), colour="k", marker="*",
  ),
)  # fmt: skip

HALTS = tuple(rule.name for rule in RULES)
# Selection rules, see `choose.RANKS`.
SELECTS = ("q", "vote", "residual", "first", "solved")


@dataclasses.dataclass(frozen=True)
class SolveConfig:
  """Settings of `Solver.solve`.

  A rollout is one run of the recursion on one puzzle. The first rollout of a
  puzzle has no noise and no view, so breadth 1 is plain inference.

  Attributes:
    depth: most supervision steps of a rollout; may exceed the depth of
      training. Models that are not recursive take one.
    breadth: K, rollouts of each puzzle.
    halt: rules that halt a rollout earlier, any of `HALTS`; empty for fixed
      depth.
    threshold: "q" halts when the halting logit (in HRM: minus the logit of
      "continue") exceeds this; 0 in training.
    patience: "unchanged" halts when the answer has been the same for this many
      steps.
    tolerance: "residual" halts when `|y' - y| / |y'|` is below this.
    initial_noise: standard deviation of noise on the initial `y` and `z`.
    cycle_noise: standard deviation of noise before each cycle ("Probabilistic
      Tiny Recursive Model", arXiv 2605.19943). Latents have RMS 1.
    views: whether rollouts see the puzzle under random symmetries of its task;
      their answers are mapped back.
    select: the chosen rollout: the "first" to halt, the largest "q", the
      smallest "residual", the most frequent answer ("vote", ties by mean q), or
      one "solved" by the task's rules. Ties of "first" and "solved" go by q.
    flops: budget of a puzzle over all its rollouts, which limits the depth; 0
      for none.
    seconds: budget of a call: once spent, running rollouts halt after their
      step and queued ones take one step. 0 for none.
    seed: of the noise and the views.

  Raises:
    ValueError: naming the field, its value and what was expected.
  """

  depth: int = 16
  breadth: int = 1
  halt: tuple[str, ...] = ()
  threshold: float = 0.0
  patience: int = 3
  tolerance: float = 0.01
  initial_noise: float = 0.0
  cycle_noise: float = 0.2
  views: bool = False
  select: str = "q"
  flops: float = 0.0
  seconds: float = 0.0
  seed: int = 0

  def __post_init__(self):
    for name in ("depth", "breadth", "patience"):
      if not 1 <= getattr(self, name) <= MOST:
        raise ValueError(
          f"{name}={getattr(self, name)}: must be from 1 to {MOST:,}"
        )
    for name in (
      "tolerance", "initial_noise", "cycle_noise", "flops", "seconds", "seed"
    ):  # fmt: skip
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name}={getattr(self, name)}: must be 0 or more, and finite"
        )
    if self.threshold != self.threshold:
      raise ValueError(f"threshold={self.threshold}: must be a number")
    if self.seed >= 2**32:
      raise ValueError(f"seed={self.seed}: must be below 2**32")
    for name in self.halt:
      if name not in HALTS:
        raise ValueError(
          f"halt={name!r}: must be some of {', '.join(HALTS)}, or nothing for "
          "a fixed depth"
        )
    if self.select not in SELECTS:
      raise ValueError(
        f"select={self.select!r}: must be one of {', '.join(SELECTS)}"
      )

  @property
  def is_noisy(self) -> bool:
    """Whether rollouts differ by noise."""
    return self.breadth > 1 and bool(self.initial_noise or self.cycle_noise)

  @property
  def shows_views(self) -> bool:
    """Whether rollouts differ by views."""
    return self.breadth > 1 and self.views

  def limit(self, rule: HaltingRule) -> Any:
    """The limit of a halting rule; `rule.never` if it is not in `halt`."""
    if rule.name not in self.halt:
      return rule.never
    return getattr(self, rule.field) if rule.field else True

  @property
  def halting_label(self) -> str:
    """The halting rules as text, such as "q > 0 or unchanged for 3"."""
    labels = [
      rule.label.format(self.limit(rule))
      for rule in RULES
      if rule.name in self.halt
    ]
    return " or ".join(labels) or "fixed"
