"""Calibration: maps the halting logit to the probability of a right answer.

The sigmoid of the logit is often too confident. Two maps, fitted on held-out
puzzles, correct it: a temperature (Guo et al. 2017, arXiv 1706.04599), which
needs few puzzles, and isotonic regression (Zadrozny and Elkan 2002), which also
corrects shifts and bends and needs some hundred puzzles.

By Laplace's rule of succession, a map fitted on n puzzles gives confidences
from 1 / (n + 2) to (n + 1) / (n + 2).
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from trm_jax.errors import UserError

KINDS = ("temperature", "isotonic")

# Logits are clipped to +-this: at any temperature the sigmoid is 0 or 1 there.
_LARGEST = 1e4
_TEMPERATURES = (0.01, 100.0)
_MOST_KNOTS = 10_000
_MOST_PUZZLES = 2**53


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A map from halting logits to probabilities.

  An isotonic map is linear between its knots, and constant beyond them.
  """

  kind: str  # one of `KINDS`
  puzzles: int  # n, the number it was fitted on
  temperature: float = 1.0  # T of sigmoid(q / T)
  logits: tuple[float, ...] = ()  # of the knots, rising
  confidences: tuple[float, ...] = ()  # of the knots, in (0, 1), not falling

  def __call__(self, q: ArrayLike) -> np.ndarray:
    """The probability that each answer is right, float64; NaN stays NaN."""
    q = _as_logits(q)
    if self.kind == "isotonic":
      return np.interp(q, self.logits, self.confidences)
    least = 1 / (self.puzzles + 2)
    return special.expit(q / self.temperature).clip(least, 1 - least)

  def threshold(self, confidence: float) -> float:
    """The least logit of at least this confidence; inf if there is none."""
    if self.kind == "isotonic":
      reached = np.flatnonzero(np.asarray(self.confidences) >= confidence)
      if not len(reached):
        return float("inf")
      knot = reached[0]
      if knot == 0:
        return -float("inf")  # the map is constant below its first knot
      below, above = self.confidences[knot - 1 : knot + 1]
      low, high = self.logits[knot - 1 : knot + 1]
      return low + (confidence - below) / (above - below) * (high - low)
    least = 1 / (self.puzzles + 2)
    if not least < confidence <= 1 - least:
      return float("inf") if confidence > least else -float("inf")
    return float(self.temperature * special.logit(confidence))

  def to_json(self) -> dict[str, Any]:
    """The map as plain values for `read`."""
    values: dict[str, Any] = {"kind": self.kind, "puzzles": self.puzzles}
    if self.kind == "isotonic":
      knots = {"logits": self.logits, "confidences": self.confidences}
      return values | {name: list(knot) for name, knot in knots.items()}
    return values | {"temperature": self.temperature}


def fit(q: ArrayLike, right: ArrayLike, kind: str) -> Calibration:
  """Fits a map; the result does not depend on the order of the puzzles.

  Args:
    q: halting logits [N], N at least 1; or [N, D], D answers to each puzzle,
      which together weigh as much as one. Infinite logits are allowed.
    right: bool, same shape as `q`, whether the answers were right.
    kind: "temperature", by maximum likelihood with T from 0.01 to 100; or
      "isotonic", by least squares, with a right and a wrong puzzle added
      beyond each end: a block of m right puzzles at an end gets
      (m + 1) / (m + 2) instead of 1.

  Raises:
    UserError: there is no puzzle, a logit is NaN, or there is no such kind.
  """
  if kind not in KINDS:
    raise UserError(
      f"calibration of kind {kind!r}: must be one of {', '.join(KINDS)}"
    )
  q, right = _as_logits(q), np.asarray(right)
  if not q.size:
    raise UserError(
      "calibration: there is no puzzle to fit on; give it puzzles with labels"
    )
  if broken := int(np.isnan(q).sum()):
    raise UserError(
      f"calibration: {broken} of {len(q)} halting logits are NaN, so the model "
      "has diverged; choose an earlier checkpoint"
    )
  puzzles, q, right = len(q), q.ravel(), right.ravel()
  # Floating point sums depend on the order of their terms.
  order = np.lexsort((right, q))
  q, right = q[order], right[order].astype(bool)
  if kind == "isotonic":
    return _fit_isotonic(q, right, puzzles)
  return Calibration(kind, puzzles, temperature=_fit_temperature(q, right))


def _as_logits(q: ArrayLike) -> np.ndarray:
  return np.asarray(q, np.float64).clip(-_LARGEST, _LARGEST)


def _fit_temperature(q: np.ndarray, right: np.ndarray) -> float:
  def slope(sharpness: float) -> float:
    """Derivative of the negative log-likelihood, which is convex in 1 / T."""
    return float(np.mean((special.expit(sharpness * q) - right) * q))

  least, most = _TEMPERATURES
  if slope(1 / most) >= 0:
    return most
  if slope(1 / least) <= 0:
    return least
  found = optimize.root_scalar(slope, bracket=(1 / most, 1 / least), xtol=1e-12)
  return float(np.clip(1 / found.root, least, most))


def _fit_isotonic(
  q: np.ndarray, right: np.ndarray, puzzles: int
) -> Calibration:
  logits, first, counts = np.unique(q, return_index=True, return_counts=True)
  fractions = np.add.reduceat(right.astype(np.float64), first) / counts
  # Beyond each end, two puzzles of which one is right.
  fitted = optimize.isotonic_regression(
    np.concatenate([[0.5], fractions, [0.5]]),
    weights=np.concatenate([[2.0], counts * (puzzles / len(q)), [2.0]]),
  ).x[1:-1]
  # Of a block of equal values only the ends are needed.
  rises = np.diff(fitted) > 0
  knots = np.flatnonzero(np.append(True, rises) | np.append(rises, True))
  if len(knots) > _MOST_KNOTS:
    thinned = np.linspace(0, len(knots) - 1, _MOST_KNOTS).round().astype(int)
    knots = knots[thinned]
  return Calibration(
    "isotonic",
    puzzles,
    logits=tuple(logits[knots].tolist()),
    confidences=tuple(fitted[knots].tolist()),
  )


def read(value: Any) -> Calibration:
  """The inverse of `Calibration.to_json`; raises UserError on other values."""

  def check(holds: Any, field: str, found: Any, expected: str):
    if not holds:
      raise UserError(
        f"calibration: {field} is {reprlib.repr(found)}; expected {expected}. "
        "Measure the calibration of the model again."
      )

  def is_number(found: Any, least: float, most: float) -> bool:
    # NaN is in no range.
    return type(found) in (int, float) and least <= found <= most

  def numbers(field: str, least: float, most: float) -> tuple[float, ...]:
    found = value.get(field)
    is_list = isinstance(found, list)
    check(
      is_list and 1 <= len(found) <= _MOST_KNOTS, field,
      f"{len(found):,} values" if is_list else found,
      f"a list of 1 to {_MOST_KNOTS:,} numbers",
    )  # fmt: skip
    for one in found:
      check(
        is_number(one, least, most), f"one of {field}", one,
        f"a number from {least:g} to {most:g}",
      )  # fmt: skip
    return tuple(map(float, found))

  check(isinstance(value, Mapping), "it", value, "an object")
  kind, puzzles = value.get("kind"), value.get("puzzles")
  check(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
  check(
    type(puzzles) is int and 1 <= puzzles <= _MOST_PUZZLES, "puzzles", puzzles,
    "a whole number of 1 or more",
  )  # fmt: skip
  if kind == "temperature":
    least, most = _TEMPERATURES
    temperature = value.get("temperature")
    check(
      is_number(temperature, least, most), "temperature", temperature,
      f"a number from {least:g} to {most:g}",
    )  # fmt: skip
    return Calibration(kind, puzzles, temperature=float(temperature))
  logits = numbers("logits", -_LARGEST, _LARGEST)
  confidences = numbers("confidences", 0.0, 1.0)
  check(
    len(logits) == len(confidences), "knots",
    f"{len(logits)} logits and {len(confidences)} confidences",
    "as many of each",
  )  # fmt: skip
  check((np.diff(logits) > 0).all(), "logits", logits, "rising numbers")
  check(
    (np.diff(confidences) >= 0).all(), "confidences", confidences,
    "numbers that do not fall",
  )  # fmt: skip
  check(
    confidences[0] > 0 and confidences[-1] < 1, "confidences", confidences,
    "numbers between 0 and 1",
  )  # fmt: skip
  return Calibration(kind, puzzles, logits=logits, confidences=confidences)


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
  """How often answers were right, by confidence.

  All arrays are [K], one value for each of K equal parts of [0, 1]; means and
  intervals of empty bins are NaN.
  """

  confidence: np.ndarray  # float64, mean confidence
  fraction: np.ndarray  # float64, fraction of answers that are right
  count: np.ndarray  # int64, answers
  low: np.ndarray  # float64, lower end of Wilson's 95% interval
  high: np.ndarray  # float64, upper end

  @property
  def error(self) -> float:
    """Expected calibration error: mean |confidence - fraction| by count."""
    off = np.abs(self.confidence - self.fraction)
    return float(np.nansum(off * self.count) / self.count.sum())


def reliability(
  confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> Reliability:
  """Compares confidences [N] with whether answers are right, bool [N]."""
  confidence = np.asarray(confidence, np.float64)
  places = np.minimum((confidence * bins).astype(int), bins - 1)
  count = np.bincount(places, minlength=bins)
  hits = np.bincount(places, right, bins)
  with np.errstate(invalid="ignore"):
    mean = np.bincount(places, confidence, bins) / count
    fraction = hits / count
  ends = np.full((bins, 2), np.nan)
  for place in np.flatnonzero(count):
    test = stats.binomtest(int(hits[place]), int(count[place]))
    interval = test.proportion_ci(0.95, method="wilson")
    ends[place] = interval.low, interval.high
  return Reliability(mean, fraction, count, ends[:, 0], ends[:, 1])


def evaluate_fit(
  q: ArrayLike, right: ArrayLike, kind: str, seed: int
) -> tuple[Reliability, Reliability]:
  """Cross-validates calibration on two random halves of the puzzles.

  Each half is calibrated by the map fitted on the other; arguments and errors
  are as in `fit`. Returns the reliability of sigmoid(q), and of the calibrated
  confidences.
  """
  q, right = np.asarray(q, np.float64), np.asarray(right)
  if len(q) < 2:
    raise UserError(
      f"calibration: {len(q)} puzzles; expected 2 or more, half of them to "
      "judge by"
    )
  # The halves must not depend on the order of the puzzles.
  order = np.lexsort((*right.reshape(len(q), -1).T, *q.reshape(len(q), -1).T))
  q, right = q[order], right[order]
  confidence = np.empty(q.shape)
  halves = np.array_split(np.random.default_rng(seed).permutation(len(q)), 2)
  for tested, fitted in (halves, halves[::-1]):
    confidence[tested] = fit(q[fitted], right[fitted], kind)(q[tested])
  before = special.expit(_as_logits(q))
  return (
    reliability(before.ravel(), right.ravel()),
    reliability(confidence.ravel(), right.ravel()),
  )
