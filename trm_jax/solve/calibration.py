"""From the halting logit to a probability that fits.

The head is trained to say whether the answer is right, and its sigmoid is
often too confident. A map of that one number, fitted on puzzles that the model
was not trained on, corrects it: either its temperature (Guo et al. 2017,
https://arxiv.org/abs/1706.04599), for which few puzzles suffice; or any map
that does not fall (isotonic regression, Zadrozny and Elkan 2002), which
corrects a shift or a bend as well and wants some hundred puzzles.

By the rule of succession (Laplace), n puzzles never give a confidence above
(n + 1) / (n + 2), nor one below 1 / (n + 2).
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

# Logits beyond are taken for these, infinite ones too: at any temperature
# their sigmoid is 0 or 1 in float64.
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
  puzzles: int  # how many it was fitted on, n
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
    """The least logit of at least this confidence; inf where there is none."""
    if self.kind == "isotonic":
      enough = np.flatnonzero(np.asarray(self.confidences) >= confidence)
      if not len(enough):
        return float("inf")
      last = enough[0]
      if last == 0:
        return -float("inf")  # confidence does not fall below that of a knot
      below, above = self.confidences[last - 1 : last + 1]
      low, high = self.logits[last - 1 : last + 1]
      return low + (confidence - below) / (above - below) * (high - low)
    least = 1 / (self.puzzles + 2)
    if not least < confidence <= 1 - least:
      return float("inf") if confidence > least else -float("inf")
    return float(self.temperature * special.logit(confidence))

  def to_json(self) -> dict[str, Any]:
    """The map as plain values, from which `read` makes the very same map."""
    values: dict[str, Any] = {"kind": self.kind, "puzzles": self.puzzles}
    if self.kind == "isotonic":
      knots = {"logits": self.logits, "confidences": self.confidences}
      return values | {name: list(knot) for name, knot in knots.items()}
    return values | {"temperature": self.temperature}


def fit(q: ArrayLike, right: ArrayLike, kind: str) -> Calibration:
  """Fits a map. The order of the puzzles does not matter.

  Args:
    q: [N] halting logits, 1 or more; infinite ones may be among them. Or
      [N, D], of several answers to each puzzle, which together count as one.
    right: bool of that shape, whether the answers were right.
    kind: "temperature", by maximum likelihood with T from 0.01 to 100; or
      "isotonic", by least squares, with a right and a wrong puzzle added
      beyond each end. A block of m right puzzles at an end thus gets
      (m + 1) / (m + 2), and not 1.

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
  broken = int(np.isnan(q).sum())
  if broken:
    raise UserError(
      f"calibration: {broken} of {len(q)} halting logits are NaN, so the model "
      "has diverged; choose an earlier checkpoint"
    )
  puzzles, q, right = len(q), q.ravel(), right.ravel()
  # Sums depend on the order of their terms; there is one order only.
  order = np.lexsort((right, q))
  q, right = q[order], right[order].astype(bool)
  if kind == "isotonic":
    return _fit_isotonic(q, right, puzzles)
  return Calibration(kind, puzzles, temperature=_fit_temperature(q, right))


def _as_logits(q: ArrayLike) -> np.ndarray:
  return np.asarray(q, np.float64).clip(-_LARGEST, _LARGEST)


def _fit_temperature(q: np.ndarray, right: np.ndarray) -> float:
  def slope(sharpness: float) -> float:
    """Of the negative log-likelihood, which is convex in 1 / T."""
    return float(np.mean((special.expit(sharpness * q) - right) * q))

  blunt, sharp = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
  if slope(blunt) >= 0:
    return _TEMPERATURES[1]
  if slope(sharp) <= 0:
    return _TEMPERATURES[0]
  found = optimize.root_scalar(slope, bracket=(blunt, sharp), xtol=1e-12)
  return float(np.clip(1 / found.root, *_TEMPERATURES))


def _fit_isotonic(
  q: np.ndarray, right: np.ndarray, puzzles: int
) -> Calibration:
  logits, first, counts = np.unique(q, return_index=True, return_counts=True)
  fractions = np.add.reduceat(right.astype(np.float64), first) / counts
  # Two puzzles beyond each end, of which one is right.
  fitted = optimize.isotonic_regression(
    np.concatenate([[0.5], fractions, [0.5]]),
    weights=np.concatenate([[2.0], counts * (puzzles / len(q)), [2.0]]),
  ).x[1:-1]
  # Within a block of equal values only its ends are needed.
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
  """Makes a map of what `Calibration.to_json` gave, read from a JSON file.

  Raises:
    UserError: it is something else; the message names the field.
  """

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
  """How often answers were right, by the confidence in them.

  The bins are K equal parts of [0, 1]. All arrays are [K]; what has no value
  in an empty bin is NaN.
  """

  confidence: np.ndarray  # float64, mean confidence of the bin
  fraction: np.ndarray  # float64, fraction of its answers that are right
  count: np.ndarray  # int64, its puzzles
  low: np.ndarray  # float64, lower end of Wilson's 95% interval
  high: np.ndarray  # float64, its upper end

  @property
  def error(self) -> float:
    """The expected calibration error, in [0, 1].

    It is the mean over the puzzles of |mean confidence - fraction right| of
    their bin.
    """
    off = np.abs(self.confidence - self.fraction)
    return float(np.nansum(off * self.count) / self.count.sum())


def reliability(
  confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> Reliability:
  """Compares confidence with the fraction of right answers, bin by bin.

  Args:
    confidence: [N] probabilities, N at least 1.
    right: bool [N], whether the answers were right.
    bins: K. Equal widths, and not equal counts, keep puzzles of one confidence
      in one bin.
  """
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
  """What calibration does to puzzles that it was not fitted on.

  Each of two random halves is judged by the map fitted on the other. The map
  to keep is `fit` of all puzzles, and at least as good.

  Args:
    q: [N] halting logits, 2 or more; or [N, D], of several answers to each
      puzzle, which are then all in the same half.
    right: bool of that shape, whether the answers were right.
    kind: see `fit`.
    seed: of the halves.

  Returns:
    Reliability over all answers before, of sigmoid(q), and after.

  Raises:
    UserError: there are fewer than 2 puzzles; or as `fit`.
  """
  q, right = np.asarray(q, np.float64), np.asarray(right)
  if len(q) < 2:
    raise UserError(
      f"calibration: {len(q)} puzzles; expected 2 or more, half of them to "
      "judge by"
    )
  # Which half a puzzle is in must not depend on the order of puzzles.
  order = np.lexsort((*right.reshape(len(q), -1).T, *q.reshape(len(q), -1).T))
  q, right = q[order], right[order]
  confidence = np.empty(q.shape)
  halves = np.array_split(np.random.default_rng(seed).permutation(len(q)), 2)
  for mine, others in (halves, halves[::-1]):
    confidence[mine] = fit(q[others], right[others], kind)(q[mine])
  before = special.expit(_as_logits(q))
  return (
    reliability(before.ravel(), right.ravel()),
    reliability(confidence.ravel(), right.ravel()),
  )
