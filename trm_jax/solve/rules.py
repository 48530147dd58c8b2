"""How inference is done: depth, breadth, halting, noise, selection."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple


class Values(NamedTuple):
  """What halting rules look at: arrays of one shape, of numpy or jax."""

  margin: Any  # the halting margin, see `rollout.Step`
  residual: Any  # how far `y` moved, likewise
  unchanged: Any  # for how many steps the answer has been the same
  solved: Any  # whether the answer solves the puzzle, where that is checked


class HaltingRule(NamedTuple):
  """When a rollout halts before its depth is reached."""

  name: str  # as in `SolveConfig.halt`
  field: str  # of `SolveConfig`, its limit; "" where it has none
  dtype: str  # of the limit
  never: Any  # the limit by which it never halts
  halts: Callable[[Values, Any], Any]  # (values, limit) -> bool
  label: str  # a format of the limit
  tried: tuple  # limits to choose from, the first to halt foremost
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
# Selection rules: which rollout answers, see `choose.RANKS`.
SELECTS = ("q", "vote", "residual", "first", "solved")


@dataclasses.dataclass(frozen=True)
class SolveConfig:
  """How puzzles are solved.

  A rollout is one run of the recursion on one puzzle. The first rollout of a
  puzzle is never perturbed: breadth 1 is plain inference, whatever the noise.

  Attributes:
    depth: supervision steps after which a rollout halts anyway; may exceed
      what was trained. Models that do not recur take one.
    breadth: K, rollouts of each puzzle.
    halt: what halts a rollout earlier, any of `HALTS`; nothing is fixed depth.
    threshold: "q" halts when the halting logit (in HRM, its lead over
      "continue") is above this; 0 is what training halts by.
    patience: "unchanged" halts when the answer has been the same for so many
      steps.
    tolerance: "residual" halts when `|y' - y| / |y'|` is below this.
    initial_noise: standard deviation of the noise added to the initial `y` and
      `z` of all rollouts of a puzzle but the first.
    cycle_noise: the same, before each cycle ("Probabilistic Tiny Recursive
      Model", arXiv 2605.19943). The norm of latents is 1 a channel.
    views: whether all rollouts but the first see the puzzle under a random
      symmetry of its task; their answers are mapped back.
    select: which rollout answers: the "first" to halt (ties: by q), the one
      with the largest "q" or the smallest "residual", one with the answer that
      most "vote" for (ties: by mean q), or one whose answer is "solved" by the
      task's rules (ties, and where none is: by q).
    flops: budget of a puzzle over all its rollouts; lowers the depth. 0 for
      none.
    seconds: budget of a whole call: when it is spent, running puzzles halt
      after their step, and waiting ones get a single step. 0 for none.
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
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
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
    """Whether rollouts differ by how they see the puzzle."""
    return self.breadth > 1 and self.views

  def limit(self, rule: HaltingRule) -> Any:
    """The limit of a halting rule; its `never` where it is not used."""
    if rule.name not in self.halt:
      return rule.never
    return getattr(self, rule.field) if rule.field else True

  @property
  def halting_label(self) -> str:
    """The halting rules in words, such as "q > 0 or unchanged for 3"."""
    labels = [
      rule.label.format(self.limit(rule))
      for rule in RULES
      if rule.name in self.halt
    ]
    return " or ".join(labels) or "fixed"
