"""From the halting head's logit to an honest probability.

The head is trained to say whether the answer is right, and its sigmoid is
often too sure of itself. A map of that one number, fitted on puzzles that the
model was not trained on, mends this: either its temperature (Guo et al. 2017,
https://arxiv.org/abs/1706.04599), one number that few puzzles suffice for; or
any map that does not fall (isotonic regression, Zadrozny and Elkan 2002), which
mends a shift or a bend as well and wants some hundred puzzles.

No map is surer than the puzzles behind it allow. By the rule of succession
(Laplace), of which the next is right with probability (n + 1) / (n + 2) after
n right ones, n puzzles never give a confidence beyond that, nor one below
1 / (n + 2).
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

  Attributes:
    kind: one of `KINDS`.
    puzzles: how many it was fitted on, n.
    temperature: T of sigmoid(q / T); 1 in an isotonic map.
    logits: of an isotonic map, its knots, rising.
    confidences: their probabilities, in (0, 1), not falling. Between knots
      the map is linear, beyond them it is constant.
  """

  kind: str
  puzzles: int
  temperature: float = 1.0
  logits: tuple[float, ...] = ()
  confidences: tuple[float, ...] = ()

  def __call__(self, q: ArrayLike) -> np.ndarray:
    """The probability that each answer is right.

    Args:
      q: halting logits, of any shape; infinite ones may be among them.

    Returns:
      float64 of that shape, in [1 / (n + 2), (n + 1) / (n + 2)]; NaN where q
      is NaN.
    """
    q = _as_logits(q)
    if self.kind == "isotonic":
      return np.interp(q, self.logits, self.confidences)
    least = 1 / (self.puzzles + 2)
    return special.expit(q / self.temperature).clip(least, 1 - least)

  def threshold(self, confidence: float) -> float:
    """The least logit that deserves a confidence; inf where none does."""
    if self.kind == "isotonic":
      enough = np.flatnonzero(np.asarray(self.confidences) >= confidence)
      if not len(enough):
        return float("inf")
      last = enough[0]
      if last == 0:
        return -float("inf")  # confidence does not fall below that of a knot
      below, above = self.confidences[last - 1 : last + 1]
      share = (confidence - below) / (above - below)
      low, high = self.logits[last - 1 : last + 1]
      return low + share * (high - low)
    if confidence > 1 - 1 / (self.puzzles + 2):
      return float("inf")
    if confidence <= 1 / (self.puzzles + 2):
      return -float("inf")
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
    right: bool of that shape, whether the answers were right; all or none may
      be.
    kind: "temperature", by maximum likelihood with T from 0.01 to 100; or
      "isotonic", by least squares, with a right and a wrong puzzle added
      beyond each end. A block of m right puzzles at an end thus gets
      (m + 1) / (m + 2), and not 1.

  Returns:
    The map.

  Raises:
    UserError: there is no puzzle, a logit is NaN, or there is no such kind.
  """
  if kind not in KINDS:
    raise UserError(
      f"calibration of kind {kind!r}: must be one of {', '.join(KINDS)}"
    )
  puzzles = len(np.atleast_1d(q))
  q, right = _answers(q, right)
  if kind == "isotonic":
    return _fit_isotonic(q, right, puzzles)
  return Calibration(kind, puzzles, temperature=_fit_temperature(q, right))


def _answers(q: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """All answers of all puzzles, in one row, checked and in order."""
  q, right = _as_logits(q), np.asarray(right)
  if q.ndim not in (1, 2) or right.shape != q.shape:
    raise UserError(
      f"calibration: logits {q.shape} and answers {right.shape}; expected one "
      "of each a puzzle"
    )
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
  q, right = q.ravel(), right.ravel()
  # Sums depend on the order of their terms; there is one order only.
  order = np.lexsort((right, q))
  return q[order], right[order].astype(bool)


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
  shares = np.add.reduceat(right.astype(np.float64), first) / counts
  # Two puzzles beyond each end, of which one is right.
  fitted = optimize.isotonic_regression(
    np.concatenate([[0.5], shares, [0.5]]),
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
  """Makes a map of what `Calibration.to_json` gave.

  Args:
    value: what was read from a JSON file. Other keys are passed over.

  Returns:
    The map.

  Raises:
    UserError: it is something else; the message names the field.
  """
  if not isinstance(value, Mapping):
    raise _malformed("it", value, "an object, as calibration wrote it")
  kind, puzzles = value.get("kind"), value.get("puzzles")
  if kind not in KINDS:
    raise _malformed("kind", kind, f"one of {', '.join(KINDS)}")
  if type(puzzles) is not int or not 1 <= puzzles <= _MOST_PUZZLES:
    raise _malformed("puzzles", puzzles, "a whole number of 1 or more")
  if kind == "isotonic":
    logits = _numbers(value, "logits", -_LARGEST, _LARGEST)
    confidences = _numbers(value, "confidences", 0.0, 1.0)
    if len(logits) != len(confidences):
      raise UserError(
        f"calibration: {len(logits)} logits and {len(confidences)} "
        f"confidences; expected as many of each. {_MEND}"
      )
    if not (np.diff(logits) > 0).all():
      raise _malformed("logits", value["logits"], "rising numbers")
    if not (np.diff(confidences) >= 0).all():
      raise _malformed(
        "confidences", value["confidences"], "numbers that do not fall"
      )
    if confidences[0] == 0 or confidences[-1] == 1:
      raise _malformed(
        "confidences", value["confidences"], "numbers between 0 and 1"
      )
    return Calibration(kind, puzzles, logits=logits, confidences=confidences)
  temperature = value.get("temperature")
  if not _is_number(temperature, *_TEMPERATURES):
    least, most = _TEMPERATURES
    raise _malformed(
      "temperature", temperature, f"a number from {least:g} to {most:g}"
    )
  return Calibration(kind, puzzles, temperature=float(value["temperature"]))


_MEND = "Measure the calibration of the model again."


def _malformed(field: str, value: Any, expected: str) -> UserError:
  return UserError(
    f"calibration: {field} is {reprlib.repr(value)}; expected {expected}. "
    f"{_MEND}"
  )


def _numbers(
  value: Mapping[str, Any], field: str, least: float, most: float
) -> tuple[float, ...]:
  numbers = value.get(field)
  if not isinstance(numbers, list) or not 1 <= len(numbers) <= _MOST_KNOTS:
    found = f"{len(numbers):,} values" if isinstance(numbers, list) else numbers
    raise _malformed(field, found, f"a list of 1 to {_MOST_KNOTS:,} numbers")
  for number in numbers:
    if not _is_number(number, least, most):
      raise _malformed(
        f"one of {field}", number, f"a number from {least:g} to {most:g}"
      )
  return tuple(float(number) for number in numbers)


def _is_number(value: Any, least: float, most: float) -> bool:
  """Whether it is one, and in a range: NaN and infinity are in none."""
  return type(value) in (int, float) and least <= value <= most


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
  """How often answers were right, by the confidence in them.

  The bins are K equal parts of [0, 1]. All arrays are [K]; what has no value
  in an empty bin is NaN.

  Attributes:
    confidence: float64, mean confidence of the bin.
    share: float64, share of its answers that are right.
    count: int64, its puzzles.
    low: float64, lower end of Wilson's 95% interval of the share.
    high: float64, upper end.
  """

  confidence: np.ndarray
  share: np.ndarray
  count: np.ndarray
  low: np.ndarray
  high: np.ndarray

  @property
  def error(self) -> float:
    """The expected calibration error: how far the bins are off, on average.

    It is the mean over the puzzles of |mean confidence - share right| of
    their bin, in [0, 1].
    """
    off = np.abs(self.confidence - self.share)
    return float(np.nansum(off * self.count) / self.count.sum())


def reliability(
  confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> Reliability:
  """Compares confidence with the share of right answers, bin by bin.

  Args:
    confidence: [N] probabilities, N at least 1.
    right: bool [N], whether the answers were right.
    bins: K, equal parts of [0, 1]. Equal widths, and not equal counts, keep
      puzzles of one confidence in one bin.

  Returns:
    The bins.

  Raises:
    UserError: there is no puzzle, or a confidence is not in [0, 1].
  """
  confidence, right = np.asarray(confidence, np.float64), np.asarray(right)
  if confidence.ndim != 1 or right.shape != confidence.shape or not right.size:
    raise UserError(
      f"reliability: confidences {confidence.shape} and answers {right.shape}; "
      "expected one of each a puzzle, and 1 puzzle or more"
    )
  wrong = ~((confidence >= 0) & (confidence <= 1))
  if wrong.any():
    raise UserError(
      f"reliability: a confidence of {confidence[wrong][0]}; expected "
      "probabilities, from 0 to 1"
    )
  places = np.minimum((confidence * bins).astype(int), bins - 1)
  count = np.bincount(places, minlength=bins)
  hits = np.bincount(places, right, bins)
  with np.errstate(invalid="ignore"):
    mean = np.bincount(places, confidence, bins) / count
    share = hits / count
  ends = np.full((bins, 2), np.nan)
  for place in np.flatnonzero(count):
    test = stats.binomtest(int(hits[place]), int(count[place]))
    interval = test.proportion_ci(0.95, method="wilson")
    ends[place] = interval.low, interval.high
  return Reliability(mean, share, count, ends[:, 0], ends[:, 1])


def expected_calibration_error(
  confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> float:
  """`Reliability.error` over bins of equal width, see `reliability`."""
  return reliability(confidence, right, bins).error


def evaluate_fit(
  q: ArrayLike, right: ArrayLike, kind: str, seed: int, bins: int = 10
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
    bins: see `reliability`.

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
    found = fit(q[others], right[others], kind)
    confidence[mine] = found(q[mine])
  before = special.expit(_as_logits(q))
  return (
    reliability(before.ravel(), right.ravel(), bins),
    reliability(confidence.ravel(), right.ravel(), bins),
  )
