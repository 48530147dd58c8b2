"""Numbers of a study: points with intervals, fronts and budgets."""

import dataclasses
import decimal
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats

from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.study.results import (
  Cell,
  Record,
  labels,
  records_at,
)


@dataclasses.dataclass(frozen=True)
class Point:
  """Exact accuracy of one setting at one x, over its seeds.

  Attributes:
    setting: digest of the setting.
    family: its model family.
    label: its short name.
    x: what the point stands over: test depth, or FLOPs.
    mean: over the seeds, as the shares below in [0, 1].
    low: lower end of the 95% interval, see `interval`.
    high: upper end.
    seeds: how many.
    depth: supervision steps at which puzzles were scored.
    values: of each seed.
    weights: trained weights, without the puzzle table.
    training_flops: spent until this was measured, over the batch.
    inference_flops: a puzzle, at this depth.
    puzzles: how many each seed was scored on; 0 if that is not known.
  """

  setting: str
  family: str
  label: str
  x: float
  mean: float
  low: float
  high: float
  seeds: int
  depth: int
  values: tuple[float, ...]
  weights: int
  training_flops: float
  inference_flops: float
  puzzles: int = 0


@dataclasses.dataclass(frozen=True)
class Halting:
  """How one setting halts when each puzzle stops where the q-head says so.

  All sequences have one entry for every depth from 1 to D: the rule with that
  many steps allowed. Means are over the seeds.

  Attributes:
    setting: digest of the setting.
    family: its model family.
    label: its short name.
    seeds: how many.
    shares: of the puzzles that use exactly 1, 2 ... D steps, with D allowed;
      the last holds those that were cut off there as well. They sum to 1.
    mean_steps: steps used.
    accuracy: exact accuracy under the rule.
    low: lower ends of its 95% intervals, see `interval`.
    high: upper ends.
    fixed_accuracy: exact accuracy where every puzzle takes all the steps.
    flops: mean inference FLOPs a puzzle under the rule.
  """

  setting: str
  family: str
  label: str
  seeds: int
  shares: tuple[float, ...]
  mean_steps: tuple[float, ...]
  accuracy: tuple[float, ...]
  low: tuple[float, ...]
  high: tuple[float, ...]
  fixed_accuracy: tuple[float, ...]
  flops: tuple[float, ...]


def interval(
  values: Sequence[float], puzzles: Sequence[int]
) -> tuple[float, float]:
  """A 95% confidence interval of a mean share.

  It is Wilson's over the puzzles of all seeds: what other puzzles would give
  the same models. With 3 or more seeds it reaches as far as Student's t over
  the seeds too, what other seeds would give; of 1 or 2 that says nothing.

  Args:
    values: the share of each seed, in [0, 1].
    puzzles: how many each seed was scored on.

  Returns:
    Its ends, clipped to [0, 1].
  """
  shares = np.asarray(values, float)
  n = len(shares)
  z, total = stats.norm.ppf(0.975), np.sum(puzzles)
  share = np.average(shares, weights=puzzles)
  shrink = 1 + z**2 / total
  centre = (share + z**2 / (2 * total)) / shrink
  spread = share * (1 - share) / total + z**2 / (4 * total**2)
  reach = z * np.sqrt(spread) / shrink
  # Round-off must not leave the share itself outside.
  low, high = min(centre - reach, share), max(centre + reach, share)
  if n >= 3:
    mean = shares.mean()
    reach = stats.t.ppf(0.975, n - 1) * shares.std(ddof=1) / np.sqrt(n)
    low, high = min(low, mean - reach), max(high, mean + reach)
  return float(max(low, 0.0)), float(min(high, 1.0))


def depth_points(cells: Sequence[Cell], depths: Iterable[int]) -> list[Point]:
  """Exact accuracy over test depth, at the depths of `records_at`.

  As in all lists of points, cells that diverged are left out, settings come
  in the order of `cells`, and the points of each by rising x.
  """
  depths = list(depths)
  return _points(cells, lambda cell: records_at(cell, depths), "depth")


def inference_points(
  cells: Sequence[Cell], depths: Iterable[int]
) -> list[Point]:
  """The same over inference FLOPs a puzzle, every puzzle at full depth."""
  depths = list(depths)
  return _points(
    cells, lambda cell: records_at(cell, depths), "flops_per_puzzle"
  )


def training_points(cells: Sequence[Cell]) -> list[Point]:
  """The same over training FLOPs so far.

  An evaluation before the first step has no place on a logarithmic axis, and
  is left out.
  """
  return _points(
    cells,
    lambda cell: [r for r in cell.learning if r["training_flops"] > 0],
    "training_flops",
  )


def _points(
  cells: Sequence[Cell], records_of: Callable[[Cell], list[Record]], x: str
) -> list[Point]:
  """Gathers the seeds of each setting, depth and (in training) step."""
  names = labels(cells)
  settings = list(names)
  found: dict[tuple, list[tuple[Cell, Record]]] = {}
  for cell in cells:
    if cell.diverged_at is None:
      for record in records_of(cell):
        key = settings.index(cell.setting), record["depth"], record.get("step")
        found.setdefault(key, []).append((cell, record))
  points = []
  for seeds in found.values():
    cell, record = seeds[0]
    values = [float(r["exact_accuracy"]) for _, r in seeds]
    puzzles = [r["puzzles"] for _, r in seeds]
    low, high = interval(values, puzzles)
    # Every supervision step costs the same.
    per_step = cell.depths[0]["flops_per_puzzle"]
    points.append(
      Point(
        setting=cell.setting,
        family=cell.family,
        label=names[cell.setting],
        x=float(record[x]),
        mean=float(np.mean(values)),
        low=low,
        high=high,
        seeds=len(seeds),
        depth=record["depth"],
        values=tuple(values),
        weights=cell.weights,
        training_flops=float(record.get("training_flops", cell.training_flops)),
        inference_flops=float(per_step * record["depth"]),
        puzzles=min(puzzles),
      )
    )
  return sorted(points, key=lambda p: (settings.index(p.setting), p.x, p.depth))


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

  Raises:
    UserError: for a budget that is not a finite number above 0.
  """
  if budgets is None:
    budgets = _budgets([point.x for point in points])
  for budget in budgets:
    if not 0 < budget < np.inf:
      raise UserError(
        f"a budget of {budget!r} FLOPs: must be a finite number above 0"
      )
  families = [f for f in FAMILIES if any(p.family == f for p in points)]
  return {
    budget: {
      family: max(
        (p for p in points if p.family == family and p.x <= budget),
        key=lambda p: (p.mean, -p.x),
        default=None,
      )
      for family in families
    }
    for budget in sorted(budgets)
  }


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

  Raises:
    UserError: for a target outside [0, 1].
  """
  if not 0 <= target <= 1:
    raise UserError(
      f"a target accuracy of {target!r}: must be a share from 0 to 1, as in "
      "0.8 for 80%"
    )
  settings: dict[str, list[Point]] = {}
  for point in points:
    if point.family == family:
      settings.setdefault(point.setting, []).append(point)
  reached = []
  for members in settings.values():
    members.sort(key=lambda p: p.x)
    previous = None
    for point in members:
      if point.mean >= target:
        reached.append(_crossing(previous, point, target))
        break
      previous = point
  return min(reached, default=None)


def _crossing(below: Point | None, above: Point, target: float) -> float:
  """Where the line between two points in log(x) meets the target."""
  if below is None or above.mean == target:
    return above.x
  share = (target - below.mean) / (above.mean - below.mean)
  return below.x * (above.x / below.x) ** share


def halting(cells: Sequence[Cell]) -> list[Halting]:
  """How each setting halts, over the depths that all its seeds have.

  Left out are cells that diverged, and models with one depth, which have
  nothing to halt from.
  """
  names = labels(cells)
  settings: dict[str, list[Cell]] = {}
  for cell in cells:
    if len(cell.depths) > 1:  # of what diverged there is none
      settings.setdefault(cell.setting, []).append(cell)
  return [
    _halting(names[setting], members) for setting, members in settings.items()
  ]


def _halting(label: str, cells: list[Cell]) -> Halting:
  deepest = min(len(cell.depths) for cell in cells)

  def over_seeds(name):
    """Float [seeds, D]."""
    return np.array([[r[name] for r in c.depths[:deepest]] for c in cells])

  steps = over_seeds("mean_steps")
  accuracy = over_seeds("halted_exact_accuracy")
  puzzles = over_seeds("puzzles")
  depths = np.arange(1, deepest + 1)
  per_step = over_seeds("flops_per_puzzle")[0] / depths
  mean_steps = steps.mean(axis=0)
  # A puzzle that runs in step k adds 1 to the mean of k steps allowed.
  running = np.diff(mean_steps, prepend=0.0)
  shares = np.clip(running - np.append(running[1:], 0.0), 0, 1)
  ends = [
    interval(values.tolist(), counts.tolist())
    for values, counts in zip(accuracy.T, puzzles.T, strict=True)
  ]
  return Halting(
    setting=cells[0].setting,
    family=cells[0].family,
    label=label,
    seeds=len(cells),
    shares=tuple((shares / shares.sum()).tolist()),
    mean_steps=tuple(mean_steps.tolist()),
    accuracy=tuple(accuracy.mean(axis=0).tolist()),
    low=tuple(low for low, _ in ends),
    high=tuple(high for _, high in ends),
    fixed_accuracy=tuple(over_seeds("exact_accuracy").mean(axis=0).tolist()),
    flops=tuple((mean_steps * per_step).tolist()),
  )
