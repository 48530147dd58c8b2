"""Statistics of a study: means with intervals, Pareto fronts and budgets."""

import dataclasses
import decimal
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats

from trm_jax.core.family import FAMILIES
from trm_jax.study.results import Scores, Trial, labels, scores_at


@dataclasses.dataclass(frozen=True)
class Point:
  """Exact accuracy of one setting at one x, over its seeds."""

  setting: str  # digest of the setting
  family: str
  label: str  # the setting's short name
  x: float  # test depth, or FLOPs
  mean: float  # of `values`
  low: float  # lower end of the 95% interval, see `interval`
  high: float  # upper end
  depth: int  # supervision steps of the evaluation
  values: tuple[float, ...]  # exact accuracy of each seed, in [0, 1]
  weights: int  # number of trained weights, without the puzzle table
  puzzles: int = 0  # number of test puzzles of each seed; 0 if unknown

  @property
  def seeds(self) -> int:
    """The number of seeds."""
    return len(self.values)


@dataclasses.dataclass(frozen=True)
class Halting:
  """Scores of one setting when each puzzle stops as its q-head says.

  Each sequence has D entries, for at most 1, 2 ... D steps. Means are over the
  seeds.
  """

  setting: str  # digest of the setting
  family: str
  # Of the puzzles that use exactly 1, 2 ... D steps, with D allowed; the last
  # includes those that do not halt. They sum to 1.
  fractions: tuple[float, ...]
  mean_steps: tuple[float, ...]
  accuracy: tuple[float, ...]  # exact accuracy with halting
  low: tuple[float, ...]  # lower ends of its 95% intervals, see `interval`
  high: tuple[float, ...]  # upper ends
  fixed_accuracy: tuple[float, ...]  # if every puzzle takes all steps


def interval(
  values: Sequence[float], puzzles: Sequence[int]
) -> tuple[float, float]:
  """A 95% confidence interval of a mean fraction.

  It is Wilson's interval over the puzzles of all seeds, which covers the choice
  of puzzles. With 3 or more seeds it is joined with Student's t interval over
  the seeds, which covers the choice of seeds.

  Args:
    values: the fraction of each seed, in [0, 1].
    puzzles: number of puzzles of each seed.

  Returns:
    Its ends, clipped to [0, 1].
  """
  fractions, n = np.asarray(values, float), len(values)
  z, total = stats.norm.ppf(0.975), np.sum(puzzles)
  pooled = np.average(fractions, weights=puzzles)
  shrink = 1 + z**2 / total
  centre = (pooled + z**2 / (2 * total)) / shrink
  variance = pooled * (1 - pooled) / total + z**2 / (4 * total**2)
  radius = z * np.sqrt(variance) / shrink
  # Rounding must not exclude the fraction itself.
  low, high = min(centre - radius, pooled), max(centre + radius, pooled)
  if n >= 3:
    mean = fractions.mean()
    radius = stats.t.ppf(0.975, n - 1) * fractions.std(ddof=1) / np.sqrt(n)
    low, high = min(low, mean - radius), max(high, mean + radius)
  return float(max(low, 0.0)), float(min(high, 1.0))


def depth_points(trials: Sequence[Trial], depths: Iterable[int]) -> list[Point]:
  """Exact accuracy against test depth, at the depths of `scores_at`.

  As in all lists of points, diverged trials are left out, settings have the
  order of `trials`, and the points of each are sorted by x.
  """
  depths = set(depths)
  return _points(trials, lambda trial: scores_at(trial, depths), "depth")


def inference_points(
  trials: Sequence[Trial], depths: Iterable[int]
) -> list[Point]:
  """Exact accuracy against inference FLOPs per puzzle at full depth."""
  depths = set(depths)
  return _points(
    trials, lambda trial: scores_at(trial, depths), "flops_per_puzzle"
  )


def training_points(trials: Sequence[Trial]) -> list[Point]:
  """Exact accuracy against training FLOPs, after at least one step."""
  return _points(
    trials,
    lambda trial: [s for s in trial.learning if s["training_flops"] > 0],
    "training_flops",
  )


def _points(
  trials: Sequence[Trial], scores_of: Callable[[Trial], list[Scores]], x: str
) -> list[Point]:
  """Groups scores by setting, depth and (in training) step."""
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
  """The points that no other dominates, sorted by x.

  A point dominates another if it is no worse in x and mean, and better in one.
  """
  front: list[Point] = []
  for point in sorted(points, key=lambda p: (p.x, -p.mean)):
    # Points of the front cost no more, so the mean must exceed their best.
    best = front[-1] if front else None
    is_equal = best and (point.x, point.mean) == (best.x, best.mean)
    if best is None or is_equal or point.mean > best.mean:
      front.append(point)
  return front


def at_equal_flops(
  points: Sequence[Point], budgets: Sequence[float] | None = None
) -> dict[float, dict[str, Point | None]]:
  """The best point of each family within the same budgets.

  Args:
    points: with x in FLOPs.
    budgets: FLOPs. By default five, even on a log axis and rounded up to two
      digits, up to the largest x.

  Returns:
    budget -> family -> its point of the highest mean with x within the
    budget, the cheapest of equals; None if there is none.
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
  """The families of the items, in the order of `FAMILIES`."""
  present = {item.family for item in items}
  return [family for family in FAMILIES if family in present]


def by_setting(points: Iterable[Point]) -> dict[str, list[Point]]:
  """Digest of each setting -> its points, sorted by x."""
  rows: dict[str, list[Point]] = {}
  for point in sorted(points, key=lambda point: point.x):
    rows.setdefault(point.setting, []).append(point)
  return rows


def _budgets(xs: Sequence[float]) -> list[float]:
  if not xs:
    return []
  # Rounded up, so that the last budget includes the last x.
  two_digits = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
  even = np.geomspace(min(xs), max(xs), 6)[1:].tolist()
  return sorted({float(two_digits.create_decimal(repr(x))) for x in even})


def flops_to_reach(
  points: Sequence[Point], family: str, target: float
) -> float | None:
  """The least FLOPs with which a family reaches an accuracy.

  Args:
    points: with x > 0 in FLOPs.
    family: the family.
    target: exact accuracy in [0, 1].

  Returns:
    The smallest x at which the mean of a setting reaches the target,
    interpolated linearly in log(x). None if no setting reaches it.
  """
  reached = []
  for row in by_setting(p for p in points if p.family == family).values():
    first = next((k for k, p in enumerate(row) if p.mean >= target), None)
    if first is not None:
      below = row[first - 1] if first else None
      reached.append(_crossing(below, row[first], target))
  return min(reached, default=None)


def _crossing(below: Point | None, above: Point, target: float) -> float:
  """The x at which the line between two points in log(x) meets the target."""
  if below is None or above.mean == target:
    return above.x
  fraction = (target - below.mean) / (above.mean - below.mean)
  return below.x * (above.x / below.x) ** fraction


def halting(trials: Sequence[Trial]) -> list[Halting]:
  """Halting of each setting, at the depths that all its seeds have.

  Diverged trials and models with one depth are left out.
  """
  settings: dict[str, list[Trial]] = {}
  for trial in trials:
    if len(trial.depths) > 1:  # empty if diverged
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
  # With k steps allowed instead of k - 1, puzzles running in step k use 1 more.
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
