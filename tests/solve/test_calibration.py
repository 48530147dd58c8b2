"""Confidence is honest, never surer than the puzzles allow, and bounded."""

import fractions
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special

from trm_jax.errors import UserError
from trm_jax.solve import calibration
from trm_jax.solve.calibration import KINDS, Calibration

# Logits as heads give them, with ties and the odd infinity.
LOGITS = st.one_of(
  st.integers(-6, 6).map(float),
  st.floats(-30, 30),
  st.sampled_from([np.inf, -np.inf, 1e30]),
)
PUZZLES = st.lists(st.tuples(LOGITS, st.booleans()), min_size=1, max_size=60)


def sample(count, temperature, seed=0):
  """Logits, and answers that are right as often as sigmoid(q / T) says."""
  rng = np.random.default_rng(seed)
  q = rng.normal(1, 6, count)
  return q, rng.random(count) < special.expit(q / temperature)


def split(puzzles):
  q, right = zip(*puzzles, strict=True)
  return np.array(q), np.array(right)


# Fitting.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_that_made_the_answers_is_found(temperature):
  q, right = sample(40_000, temperature)
  found = calibration.fit(q, right, "temperature").temperature
  assert found == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_the_likeliest():
  q, right = sample(300, 3.0)
  best = calibration.fit(q, right, "temperature").temperature

  def surprise(temperature):
    signed = np.where(right, q, -q) / temperature
    return -special.log_expit(signed).sum()

  for factor in (0.9, 0.99, 1.01, 1.1):
    assert surprise(best) < surprise(best * factor)


def test_an_isotonic_map_finds_what_no_temperature_can():
  """A head that is right three times in four, whatever it says below 2."""
  rng = np.random.default_rng(0)
  q = rng.uniform(-5, 5, 20_000)
  truth = np.where(q < 2, 0.3, 0.9)
  right = rng.random(len(q)) < truth
  errors = {}
  for kind in KINDS:
    found = calibration.fit(q, right, kind)
    errors[kind] = abs(found(q) - truth).mean()
  assert errors["isotonic"] < 0.02 < 0.1 < errors["temperature"]


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(puzzles=PUZZLES, kind=st.sampled_from(KINDS), data=st.data())
def test_maps_rise_within_what_the_puzzles_allow(puzzles, kind, data):
  q, right = split(puzzles)
  found = calibration.fit(q, right, kind)
  grid = np.sort(np.concatenate([q, np.linspace(-40, 40, 200), [np.inf]]))
  confidence = found(grid)
  assert confidence.dtype == np.float64
  assert (np.diff(confidence) >= 0).all()
  n = len(q)
  assert confidence.min() >= 1 / (n + 2) - 1e-12
  assert confidence.max() <= (n + 1) / (n + 2) + 1e-12
  order = data.draw(st.permutations(range(n)))
  assert calibration.fit(q[order], right[order], kind) == found
  assert calibration.read(json.loads(json.dumps(found.to_json()))) == found


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(puzzles=PUZZLES)
def test_isotonic_maps_are_idempotent_and_honest_where_fitted(puzzles):
  q, right = split(puzzles)
  confidence = calibration.fit(q, right, "isotonic")(q)
  again = calibration.fit(confidence, right, "isotonic")(confidence)
  np.testing.assert_allclose(again, confidence, atol=1e-9)
  # All that is off are the puzzles added beyond the ends.
  error = calibration.reliability(confidence, right).error
  assert error <= 2 / len(q)
  before = calibration.reliability(special.expit(q), right).error
  assert error <= before + 2 / len(q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("all_right", [True, False])
@pytest.mark.parametrize("count", [1, 50])
def test_all_right_or_all_wrong(kind, all_right, count):
  q = np.linspace(1, 9, count) * (1 if all_right else -1)
  found = calibration.fit(q, np.full(count, all_right), kind)
  surest = found(np.inf) if all_right else 1 - found(-np.inf)
  assert surest == pytest.approx((count + 1) / (count + 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_knows_nothing_is_not_believed(kind):
  rng = np.random.default_rng(1)
  q, right = rng.normal(0, 9, 5000), rng.random(5000) < 0.5
  found = calibration.fit(q, right, kind)
  assert abs(found(q) - 0.5).mean() < 0.05


def test_infinite_logits_are_the_largest():
  q, right = sample(200, 1.0)
  q[:2], right[:2] = [np.inf, -np.inf], [True, False]
  for kind in KINDS:
    found = calibration.fit(q, right, kind)
    assert found(np.inf) == found(1e30) >= found(100.0)
    assert np.isnan(found([np.nan, 1.0])).tolist() == [True, False]
    assert found(np.zeros((2, 3), np.float32)).shape == (2, 3)


def test_maps_of_very_many_steps_are_thinned():
  """A block for each fraction: more than a file may hold."""
  fractions_of_150 = {
    fractions.Fraction(k, m) for m in range(1, 150) for k in range(m + 1)
  }
  shares = sorted(fractions_of_150)
  # Each block of two logits that must pool: the right ones come first.
  q, right = [], []
  for place, share in enumerate(shares):
    k, m = share.numerator, share.denominator
    q += [2 * place / 10] * k + [(2 * place + 1) / 10] * (m - k)
    right += [True] * k + [False] * (m - k)
  found = calibration.fit(q, right, "isotonic")
  assert len(found.logits) == 10_000 < 2 * len(shares) - 2
  assert calibration.read(found.to_json()) == found
  gap = found(q[0]), found(q[-1])
  assert gap == (found.confidences[0], found.confidences[-1])


@pytest.mark.parametrize(
  ("q", "right", "kind", "told"),
  [
    ([], [], "isotonic", "no puzzle"),
    ([0.0, np.nan], [True, False], "temperature", "1 of 2 .* NaN"),
    ([0.0], [True], "platt", "one of temperature, isotonic"),
  ],
)
def test_what_cannot_be_fitted(q, right, kind, told):
  with pytest.raises(UserError, match=told):
    calibration.fit(q, right, kind)


# Reading.

GOOD = {
  "kind": "isotonic",
  "puzzles": 9,
  "logits": [-1.5, 0, 2.0],
  "confidences": [0.25, 0.5, 0.5],
}
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(10**400), 10**400)
  | st.floats()
  | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(list(GOOD)), inner, max_size=4)
  ),
  max_leaves=8,
)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(value=JSON, field=st.sampled_from([*GOOD, "temperature"]))
def test_malformed_json_is_one_clear_error(value, field):
  temperature = {"kind": "temperature", "puzzles": 3, "temperature": 2.0}
  for whole in (value, GOOD | {field: value}, temperature | {field: value}):
    try:
      found = calibration.read(whole)
    except UserError as error:
      assert str(error).startswith("calibration: ")
      assert len(str(error)) < 1000
    else:
      confidence = found([-np.inf, -1.0, 0.0, 1.0, np.inf])
      assert (np.diff(confidence) >= 0).all()
      assert 0 < confidence[0] <= confidence[-1] < 1


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"kind": "platt"}, "kind is 'platt'"),
    ({"kind": ["isotonic"]}, "kind"),
    ({"puzzles": 0}, "puzzles is 0"),
    ({"puzzles": True}, "puzzles is True"),
    ({"logits": [0.0, 0.0, 1.0]}, "rising"),
    ({"logits": [0.0, 1.0]}, "2 logits and 3 confidences"),
    ({"logits": [0.0, 1.0, float("inf")]}, "one of logits is inf"),
    ({"logits": [0.0, 1.0, "2"]}, "one of logits is '2'"),
    ({"logits": [], "confidences": []}, "0 values"),
    ({"logits": list(range(10_001))}, "10,001 values"),
    ({"confidences": [0.5, 0.4, 0.6]}, "do not fall"),
    ({"confidences": [0.0, 0.4, 0.6]}, "between 0 and 1"),
    ({"confidences": [0.3, float("nan"), 0.6]}, "one of confidences is nan"),
    ({"kind": "temperature"}, "temperature is None"),
    ({"kind": "temperature", "temperature": 0}, "temperature is 0"),
    ({"kind": "temperature", "temperature": 10**400}, "from 0.01 to 100"),
  ],
)
def test_what_is_malformed_is_named(changes, told):
  with pytest.raises(UserError, match=told):
    calibration.read(GOOD | changes)


def test_reading_what_is_whole():
  assert calibration.read(GOOD | {"note": "of another's"}) == Calibration(
    "isotonic", 9, logits=(-1.5, 0.0, 2.0), confidences=(0.25, 0.5, 0.5)
  )
  np.testing.assert_allclose(
    calibration.read(GOOD)([-9, -0.75, 0, 1, 9]), [0.25, 0.375, 0.5, 0.5, 0.5]
  )


# Judging.


def test_error_by_hand():
  confidence = [0.05, 0.15, 0.15, 0.95, 1.0, 0.999]
  right = [False, True, False, True, True, False]
  found = calibration.reliability(confidence, right)
  assert found.count.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 3]
  np.testing.assert_allclose(found.fraction[[0, 1, 9]], [0, 0.5, 2 / 3])
  assert np.isnan(found.fraction[2:9]).all() and np.isnan(found.low[2:9]).all()
  expected = (1 * 0.05 + 2 * 0.35 + 3 * abs((0.95 + 1 + 0.999) / 3 - 2 / 3)) / 6
  assert found.error == pytest.approx(expected)
  assert calibration.reliability(confidence, right, 1).error == pytest.approx(
    abs(np.mean(confidence) - 0.5)
  )


def test_intervals_hold_the_share_and_shrink():
  rng = np.random.default_rng(0)
  widths = []
  for count in (30, 3000):
    confidence = rng.random(count)
    found = calibration.reliability(confidence, rng.random(count) < confidence)
    held = found.count > 0
    assert (found.low[held] <= found.fraction[held]).all()
    assert (found.fraction[held] <= found.high[held]).all()
    widths.append(np.nanmean(found.high - found.low))
  assert widths[1] < widths[0] / 4


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_helps_puzzles_it_was_not_fitted_on(kind):
  q, right = sample(2000, 6.0)
  before, after = calibration.evaluate_fit(q, right, kind, seed=0)
  assert after.error < 0.05 < 0.15 < before.error
  assert before.count.sum() == after.count.sum() == 2000
  same = calibration.evaluate_fit(q, right, kind, seed=0)[1]
  other = calibration.evaluate_fit(q, right, kind, seed=1)[1]
  assert same.error == after.error != other.error


def test_what_was_fitted_is_not_what_is_judged():
  """On noise, a map may look good where it was fitted, and nowhere else."""
  rng = np.random.default_rng(0)
  q, right = rng.normal(size=60), rng.random(60) < 0.5
  confidence = calibration.fit(q, right, "isotonic")(q)
  fitted = calibration.reliability(confidence, right).error
  _, judged = calibration.evaluate_fit(q, right, "isotonic", seed=0)
  assert judged.error > 2 * fitted
  with pytest.raises(UserError, match="2 or more"):
    calibration.evaluate_fit([0.0], [True], "isotonic", seed=0)


def test_several_answers_of_a_puzzle_are_judged_together():
  """In different halves, one would tell what the other is worth."""
  random = np.random.default_rng(0)
  q = random.normal(0, 3, 400)
  right = random.random(400) < 1 / (1 + np.exp(-q / 2))
  _, one = calibration.evaluate_fit(q, right, "temperature", seed=0)
  twice = np.stack([q, q], 1), np.stack([right, right], 1)
  _, two = calibration.evaluate_fit(*twice, "temperature", seed=0)
  np.testing.assert_array_equal(two.count, 2 * one.count)
  np.testing.assert_allclose(two.confidence, one.confidence, atol=1e-3)
