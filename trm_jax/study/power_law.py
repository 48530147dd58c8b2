"""Fits saturating power laws of accuracy against compute, with 95% bands."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from trm_jax.core.family import FAMILIES
from trm_jax.study.statistics import Point

# Draws and seed of the bootstrap: the same points give the same band.
_DRAWS, _SEED = 200, 0

# Bounds of (top, drop, exponent). An exponent of 0 would be a flat line.
_LOWER, _UPPER = (0.0, 0.0, 0.01), (1.0, np.inf, 5.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A saturating power law: `top - drop * (x / scale) ** -exponent`."""

  family: str  # whose points were fitted
  top: float  # exact accuracy with unlimited compute
  drop: float  # how much lower it is at `scale`
  scale: float  # the smallest x of the points
  exponent: float  # how fast the gap shrinks
  points: int  # number of fitted points
  x: np.ndarray  # [N], from the smallest to the largest x, even on a log axis
  mean: np.ndarray  # [N], the curve, clipped to [0, 1]
  low: np.ndarray  # [N], lower edge of its 95% band
  high: np.ndarray  # [N], upper edge
  words: str  # a summary in words


def fit_family(points: Sequence[Point], family: str) -> Fit | str:
  """Fits a saturating power law to the best setting of one family.

  The best setting is the one with the highest accuracy; a law through all
  settings would describe none of them. Its means have equal weights.

  The band is a bootstrap over seeds and puzzles: each draw resamples the seeds,
  adds a binomial error to the accuracy of each, and fits again. All points
  share the drawn seeds and the direction of the error, because they are the
  same models on the same puzzles. The band does not include deviations from a
  power law; `Fit.words` has the root mean square distance of the points.

  Args:
    points: of any families, x > 0.
    family: which to fit.

  Returns:
    The fit, or a sentence why there is none.
  """
  points = [point for point in points if point.family == family]
  if points:
    best_setting = max(points, key=lambda point: point.mean).setting
    points = [point for point in points if point.setting == best_setting]
  name = FAMILIES[family].title
  x = np.array([point.x for point in points])
  distinct = len(np.unique(x))
  if distinct < 4:
    return (
      f"no fit for {name}: its best setting has {distinct} different amounts "
      "of compute, and three parameters need at least 4"
    )
  if max(p.low for p in points) <= min(p.high for p in points):
    return (
      f"no fit for {name}: a flat line passes through all its intervals, so "
      "that nothing can be said of the effect of compute"
    )
  scale = x.min()
  scaled = x / scale
  means = np.array([point.mean for point in points])
  best = _solve(scaled, means, _guess(scaled, means))
  if best is None:
    return f"no fit for {name}: the search for the parameters did not settle"
  grid = np.geomspace(1.0, scaled.max(), 100)
  curve = _law(grid, *best)
  if curve[-1] - curve[0] < 1e-3:
    return (
      f"no fit for {name}: its accuracy does not rise with compute, so that a "
      "saturating law has nothing to describe"
    )
  draws = [_solve(scaled, drawn, best) for drawn in _resample(points)]
  solutions = np.array([best] + [d for d in draws if d is not None])
  curves = np.array([_law(grid, *solution) for solution in solutions])
  low, high = np.percentile(curves, [2.5, 97.5], axis=0)
  top_low, top_high = np.percentile(solutions[:, 0], [2.5, 97.5])
  top, drop, exponent = best
  distance = np.sqrt(np.mean((_law(scaled, *best) - means) ** 2))
  return Fit(
    family=family,
    top=float(top),
    drop=float(drop),
    scale=float(scale),
    exponent=float(exponent),
    points=len(points),
    x=grid * scale,
    mean=np.clip(curve, 0, 1),
    low=np.clip(np.minimum(low, curve), 0, 1),
    high=np.clip(np.maximum(high, curve), 0, 1),
    words=(
      f"exact accuracy saturates at {100 * top:.0f}% "
      f"({100 * min(top_low, top):.0f} to {100 * max(top_high, top):.0f}); "
      f"what is missing {_pace(exponent)} (exponent {exponent:.2g}); "
      f"points lie {100 * distance:.1f} percentage points from this curve"
    ),
  )


def _law(x, top, drop, exponent):
  return top - drop * x**-exponent


def _slopes(x, top, drop, exponent):
  """Derivatives of `_law` with respect to its parameters, [N, 3]."""
  power = x**-exponent
  return np.stack([np.ones_like(x), -power, drop * power * np.log(x)], axis=1)


def _guess(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The best start on a grid of exponents, each with linear least squares."""
  guesses = []
  for exponent in np.geomspace(0.02, 4.0, 24):
    power = x**-exponent
    top = np.clip(np.polyfit(power, y, 1)[1], 0, 1)
    drop = max((top - y) @ power / (power @ power), 0.0)
    guesses.append((top, drop, exponent))
  errors = [np.sum((_law(x, *guess) - y) ** 2) for guess in guesses]
  return np.array(guesses[int(np.argmin(errors))])


def _solve(x: np.ndarray, y: np.ndarray, start: np.ndarray):
  """Least squares: (top, drop, exponent), or None if it does not converge."""
  with warnings.catch_warnings():
    # The covariance, which is not used, is singular where drop is 0.
    warnings.simplefilter("ignore", optimize.OptimizeWarning)
    try:
      return optimize.curve_fit(
        _law, x, y, p0=start, bounds=(_LOWER, _UPPER), jac=_slopes
      )[0]
    except RuntimeError:
      return None


def _resample(points: Sequence[Point]) -> np.ndarray:
  """Bootstrap draws of a setting's accuracies, [draws, points]."""
  rng = np.random.default_rng(_SEED)
  shape = _DRAWS, max(point.seeds for point in points)
  picks, errors = rng.random(shape), rng.standard_normal(shape)
  drawn = np.empty((_DRAWS, len(points)))
  for i, point in enumerate(points):
    pick, error = picks[:, : point.seeds], errors[:, : point.seeds]
    fractions = np.array(point.values)[(pick * point.seeds).astype(int)]
    if point.puzzles:
      fractions = fractions + error * np.sqrt(
        fractions * (1 - fractions) / point.puzzles
      )
    drawn[:, i] = np.clip(fractions, 0, 1).mean(axis=1)
  return drawn


def _pace(exponent: float) -> str:
  """The growth of compute that shrinks the gap tenfold, in words."""
  growth = 10 ** (1 / exponent)
  if growth > 1e6:
    return "hardly shrinks with compute"
  rounded = float(f"{growth:.2g}")
  digits = 0 if rounded >= 10 else 1
  return f"shrinks 10-fold for every {rounded:,.{digits}f}-fold compute"
