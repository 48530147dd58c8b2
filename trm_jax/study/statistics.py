"""Numbers of a study: points with intervals, fronts and budgets."""

import dataclasses
import decimal
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats

from trm_jax.core.family import FAMILIES
from trm_jax.study.results import Scores, Trial, labels, scores_at


@dataclasses.dataclass(frozen=True)
class Point:
  """Exact accuracy of one setting at one x, over its seeds.

  Attributes:
    setting: digest of the setting.
    family: its model family.
    label: its short name.
    x: what the accuracy is plotted against: test depth, or FLOPs.
    mean: over the seeds, a fraction as `values`.
    low: lower end of the 95% interval, see `interval`.
    high: upper end.
    depth: supervision steps at which puzzles were scored.
    values: of each seed.
    weights: trained weights, without the puzzle table.
    puzzles: how many each seed was scored on; 0 if that is not known.
  """

  setting: str
  family: str
  label: str
  x: float
  mean: float
  low: float
  high: float
  depth: int
  values: tuple[float, ...]
  weights: int
  puzzles: int = 0

  @property
  def seeds(self) -> int:
    """How many seeds it is the mean of."""
    return len(self.values)


@dataclasses.dataclass(frozen=True)
class Halting:
  """How one setting halts when each puzzle stops where the q-head says so.

  All sequences have one entry for every depth from 1 to D: the rule with that
  many steps allowed. Means are over the seeds.

  Attributes:
    setting: digest of the setting.
    family: its model family.
    fractions: of the puzzles that use exactly 1, 2 ... D steps, with D allowed;
      the last holds those that were cut off there as well. They sum to 1.
    mean_steps: steps used.
    accuracy: exact accuracy under the rule.
    low: lower ends of its 95% intervals, see `interval`.
    high: upper ends.
    fixed_accuracy: exact accuracy where every puzzle takes all the steps.
  """

  setting: str
  family: str
  fractions: tuple[float, ...]
  mean_steps: tuple[float, ...]
  accuracy: tuple[float, ...]
  low: tuple[float, ...]
  high: tuple[float, ...]
  fixed_accuracy: tuple[float, ...]


def interval(
  values: Sequence[float], puzzles: Sequence[int]
) -> tuple[float, float]:
  """A 95% confidence interval of a mean fraction.

  It is Wilson's over the puzzles of all seeds: what other puzzles would give
  the same models. With 3 or more seeds it reaches as far as Student's t over
  the seeds too, what other seeds would give; of 1 or 2 that says nothing.

  Args:
    values: the fraction of each seed, in [0, 1].
    puzzles: how many each seed was scored on.

  Returns:
    Its ends, clipped to [0, 1].
  """
  fractions, n = np.asarray(values, float), len(values)
  z, total = stats.norm.ppf(0.975), np.sum(puzzles)
  pooled = np.average(fractions, weights=puzzles)
  shrink = 1 + z**2 / total
  centre = (pooled + z**2 / (2 * total)) / shrink
  spread = pooled * (1 - pooled) / total + z**2 / (4 * total**2)
  reach = z * np.sqrt(spread) / shrink
  # Round-off must not leave the fraction itself outside.
  low, high = min(centre - reach, pooled), max(centre + reach, pooled)
  if n >= 3:
    mean = fractions.mean()
    reach = stats.t.ppf(0.975, n - 1) * fractions.std(ddof=1) / np.sqrt(n)
    low, high = min(low, mean - reach), max(high, mean + reach)
  return float(max(low, 0.0)), float(min(high, 1.0))


def depth_points(trials: Sequence[Trial], depths: Iterable[int]) -> list[Point]:
  """Exact accuracy over test depth, at the depths of `scores_at`.

  As in all lists of points, trials that diverged are left out, settings come
  in the order of `trials`, and the points of each by rising x.
  """
  depths = set(depths)
  return _points(trials, lambda trial: scores_at(trial, depths), "depth")


def inference_points(
  trials: Sequence[Trial], depths: Iterable[int]
) -> list[Point]:
  """The same over inference FLOPs a puzzle, every puzzle at full depth."""
  depths = set(depths)
  return _points(
    trials, lambda trial: scores_at(trial, depths), "flops_per_puzzle"
  )


def training_points(trials: Sequence[Trial]) -> list[Point]:
  """The same over training FLOPs so far.

  An evaluation before the first step has no place on a logarithmic axis, and
  is left out.
  """
  return _points(
    trials,
    lambda trial: [s for s in trial.learning if s["training_flops"] > 0],
    "training_flops",
  )


def _points(
  trials: Sequence[Trial], scores_of: Callable[[Trial], list[Scores]], x: str
) -> list[Point]:
  """Gathers the seeds of each setting, depth and (in training) step."""
  names = labels(trials)
  order = list(names)
  found: dict[tuple, list[tuple[Trial, Scores]]] = {}
  for trial in trials:
    if trial.diverged_at is None:
      for scores in scores_of(trial):
        key = trial.setting, scores["depth"], scores.get("step")
        found.setdefault(key, []).append((trial, scores))
  points = []
  for seeds in found.values():
    trial, scores = seeds[0]
    values = [float(each["exact_accuracy"]) for _, each in seeds]
    puzzles = [each["puzzles"] for _, each in seeds]
    low, high = interval(values, puzzles)
    points.append(
      Point(
        setting=trial.setting,
        family=trial.family,
        label=names[trial.setting],
        x=float(scores[x]),
        mean=float(np.mean(values)),
        low=low,
        high=high,
        depth=scores["depth"],
        values=tuple(values),
        weights=trial.weights,
        puzzles=min(puzzles),
      )
    )
  return sorted(points, key=lambda p: (order.index(p.setting), p.x, p.depth))


def pareto_front(points: Sequence[Point]) -> list[Point]:
  """The points that no other beats, by rising x.

  One beats another if it is no worse in x and in mean, and better in one.
  """
  front: list[Point] = []
  for point in sorted(points, key=lambda p: (p.x, -p.mean)):
    # What is in the front costs no more, so its best must be surpassed.
    best = front[-1] if front else None
    is_equal = best and (point.x, point.mean) == (best.x, best.mean)
    if best is None or is_equal or point.mean > best.mean:
      front.append(point)
  return front


def at_equal_flops(
  points: Sequence[Point], budgets: Sequence[float] | None = None
) -> dict[float, dict[str, Point | None]]:
  """What each family gives for the same FLOPs.

  Args:
    points: over FLOPs.
    budgets: FLOPs. By default five, even on a log axis and rounded up to two
      digits, up to the largest x.

  Returns:
    budget -> family -> its point of the highest mean with x within the
    budget, the cheapest of equals; None where it has none.
  """
  if budgets is None:
    budgets = _budgets([point.x for point in points])
  return {
    budget: {
      family: max(
        (p for p in points if p.family == family and p.x <= budget),
        key=lambda p: (p.mean, -p.x),
        default=None,
      )
      for family in families(points)
    }
    for budget in sorted(budgets)
  }


def families(items: Iterable[Point | Halting | Trial]) -> list[str]:
  """The families of the items, in the order in which they are shown."""
  present = {item.family for item in items}
  return [family for family in FAMILIES if family in present]


def by_setting(points: Iterable[Point]) -> dict[str, list[Point]]:
  """The points of each setting by rising x."""
  rows: dict[str, list[Point]] = {}
  for point in sorted(points, key=lambda point: point.x):
    rows.setdefault(point.setting, []).append(point)
  return rows


def _budgets(xs: Sequence[float]) -> list[float]:
  if not xs:
    return []
  # Upwards, so that the last budget does not fall short of the last x.
  two_digits = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
  even = np.geomspace(min(xs), max(xs), 6)[1:].tolist()
  return sorted({float(two_digits.create_decimal(repr(x))) for x in even})


def flops_to_reach(
  points: Sequence[Point], family: str, target: float
) -> float | None:
  """The least FLOPs with which a family reaches an accuracy.

  Args:
    points: over FLOPs, x > 0.
    family: which family.
    target: exact accuracy in [0, 1].

  Returns:
    The smallest x, over its settings, at which the mean reaches the target,
    on a line in log(x) between neighbouring points of one setting. None if
    no setting reaches it.
  """
  reached = []
  for row in by_setting(p for p in points if p.family == family).values():
    first = next((k for k, p in enumerate(row) if p.mean >= target), None)
    if first is not None:
      below = row[first - 1] if first else None
      reached.append(_crossing(below, row[first], target))
  return min(reached, default=None)


def _crossing(below: Point | None, above: Point, target: float) -> float:
  """Where the line between two points in log(x) meets the target."""
  if below is None or above.mean == target:
    return above.x
  fraction = (target - below.mean) / (above.mean - below.mean)
  return below.x * (above.x / below.x) ** fraction


def halting(trials: Sequence[Trial]) -> list[Halting]:
  """How each setting halts, over the depths that all its seeds have.

  Left out are trials that diverged, and models with one depth, which have
  nothing to halt from.
  """
  settings: dict[str, list[Trial]] = {}
  for trial in trials:
    if len(trial.depths) > 1:  # of what diverged there is none
      settings.setdefault(trial.setting, []).append(trial)
  return [_halting(members) for members in settings.values()]


def _halting(trials: list[Trial]) -> Halting:
  deepest = min(len(trial.depths) for trial in trials)

  def over_seeds(name):
    """Float [seeds, D]."""
    return np.array([[s[name] for s in t.depths[:deepest]] for t in trials])

  accuracy = over_seeds("halted_exact_accuracy")
  puzzles = over_seeds("puzzles")
  mean_steps = over_seeds("mean_steps").mean(axis=0)
  # A puzzle that runs in step k adds 1 to the mean of k steps allowed.
  running = np.diff(mean_steps, prepend=0.0)
  fractions = np.clip(running - np.append(running[1:], 0.0), 0, 1)
  ends = [
    interval(values.tolist(), counts.tolist())
    for values, counts in zip(accuracy.T, puzzles.T, strict=True)
  ]
  return Halting(
    setting=trials[0].setting,
    family=trials[0].family,
    fractions=tuple((fractions / fractions.sum()).tolist()),
    mean_steps=tuple(mean_steps.tolist()),
    accuracy=tuple(accuracy.mean(axis=0).tolist()),
    low=tuple(low for low, _ in ends),
    high=tuple(high for _, high in ends),
    fixed_accuracy=tuple(over_seeds("exact_accuracy").mean(axis=0).tolist()),
  )
