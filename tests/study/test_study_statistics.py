import dataclasses
import math

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st
from test_study_results import diverged, record, trial

from trm_jax.study import power_law, statistics
from trm_jax.study.statistics import Point

SEEDS = (0, 1, 2)


def point(x, mean, *, values=None, setting="a" * 12, family="trm", puzzles=0):
  """A point without an interval, unless it has several values."""
  values = tuple(values or [mean])
  return Point(
    setting=setting,
    family=family,
    label="TRM",
    x=float(x),
    mean=float(np.mean(values)),
    low=min(values),
    high=max(values),
    depth=1,
    values=values,
    weights=10,
    puzzles=puzzles,
  )


# --- intervals


def test_few_seeds_have_the_interval_of_their_puzzles():
  for shares, puzzles in (
    ([0.25], [20]),
    ([0.0], [20]),
    ([1.0], [7]),
    ([0.25, 0.75], [20, 20]),
    ([0.5, 1.0], [10, 30]),
  ):
    right = round(np.dot(shares, puzzles))
    test = scipy.stats.binomtest(right, sum(puzzles))
    expected = test.proportion_ci(0.95, method="wilson")
    found = statistics.interval(shares, puzzles)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
  # By hand: 10 of 20 right, (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1+z²/n).
  np.testing.assert_allclose(
    statistics.interval([0.5], [20]), (0.29930, 0.70070), atol=1e-5
  )


def test_three_seeds_have_the_interval_of_student():
  # By hand: mean 0.5, standard deviation 0.1, t of 2 degrees 4.302653.
  reach = 4.302653 * 0.1 / math.sqrt(3)
  np.testing.assert_allclose(
    statistics.interval([0.4, 0.5, 0.6], [2000] * 3),
    (0.5 - reach, 0.5 + reach),
    rtol=1e-6,
  )
  values = [0.61, 0.55, 0.7, 0.64, 0.58]
  expected = scipy.stats.t.interval(
    0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values)
  )
  np.testing.assert_allclose(
    statistics.interval(values, [900] * 5), expected, rtol=1e-9
  )
  # Seeds that agree by chance do not make few puzzles certain.
  wilson = scipy.stats.binomtest(0, 60).proportion_ci(0.95, method="wilson")
  np.testing.assert_allclose(
    statistics.interval([0.0] * 3, [20] * 3), wilson, atol=1e-15
  )


@hypothesis.given(
  st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 10**6)
)
def test_intervals_hold_their_mean_and_are_shares(values, puzzles):
  low, high = statistics.interval(values, [puzzles] * len(values))
  mean = float(np.mean(values))
  assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1


# --- points


def grid(setting="a" * 12, shift=0.0, **changes):
  """A setting trained with three seeds."""
  return [
    trial(
      setting=setting,
      seed=seed,
      depths=[record(d, d / 8 + seed / 32 + shift) for d in (1, 2, 3, 4)],
      learning=[
        record(2, step / 64 + seed / 32, step=step, training_flops=1e7 * step)
        for step in (0, 16, 32)
      ],
      **changes,
    )
    for seed in SEEDS
  ]


def test_points_gather_the_seeds_of_a_setting():
  first, second = grid(), grid("b" * 12, 0.25, fields={"width": 8})
  lost = diverged(setting="b" * 12, seed=9, fields={"width": 8})
  trials = [*second, *first, lost]
  points = statistics.depth_points(trials, iter([4, 1]))
  assert [(p.setting[0], p.x) for p in points] == [
    ("b", 1.0),
    ("b", 4.0),
    ("a", 1.0),
    ("a", 4.0),
  ]
  found = points[3]
  assert found.values == (0.5, 0.53125, 0.5625) and found.mean == 0.53125
  assert (found.low, found.high) == statistics.interval(found.values, [20] * 3)
  assert (found.seeds, found.depth, found.puzzles) == (3, 4, 20)
  assert found.weights == 1234
  assert found.label == statistics.labels(trials)["a" * 12]
  assert all(p.seeds == 3 for p in points)  # none from what diverged


def test_the_same_points_stand_over_inference_flops():
  by_depth = statistics.depth_points(grid(), [1, 3])
  by_flops = statistics.inference_points(grid(), iter([1, 3]))
  assert [p.x for p in by_flops] == [100.0, 300.0]
  assert [dataclasses.replace(p, x=p.depth) for p in by_flops] == by_depth


def test_training_points_follow_the_learning_of_all_seeds():
  lost = diverged(seed=9, learning=grid()[0].learning)
  points = statistics.training_points([*grid(), lost])
  # Step 0 has no place on a logarithmic axis.
  assert [p.x for p in points] == [1.6e8, 3.2e8]
  assert points[1].values == (0.5, 0.53125, 0.5625)
  assert all(p.depth == 2 for p in points)


def test_a_model_of_one_depth_is_always_shown():
  single = trial(family="feedforward", depths=[record(1)], learning=[])
  assert [p.x for p in statistics.depth_points([single], [8, 16])] == [1.0]
  assert statistics.depth_points(grid(), [8, 16]) == []
  assert statistics.training_points([single]) == []
  assert statistics.depth_points([diverged()], [1]) == []


def test_seeds_with_fewer_depths_count_where_they_are():
  shallow = trial(setting="a" * 12, seed=7)
  points = statistics.depth_points([*grid(), shallow], [3, 4])
  assert [p.seeds for p in points] == [4, 3]


# --- the front

PLACES = st.tuples(st.integers(1, 6), st.integers(0, 6))


@hypothesis.given(st.lists(PLACES, max_size=12))
def test_the_front_is_what_brute_force_finds(places):
  points = [
    point(x, mean / 6, setting=f"{i:012x}")
    for i, (x, mean) in enumerate(places)
  ]

  def beats(one, other):
    no_worse = one.x <= other.x and one.mean >= other.mean
    return no_worse and (one.x, one.mean) != (other.x, other.mean)

  expected = [p for p in points if not any(beats(q, p) for q in points)]
  found = statistics.pareto_front(points)
  assert sorted(found, key=points.index) == expected
  assert [p.x for p in found] == sorted(p.x for p in found)


# --- the fit


def law(x, top, drop, exponent, scale=1e9):
  return top - drop * (x / scale) ** -exponent


def drawn(parameters, *, seeds, puzzles, settings=2, count=8):
  """Points of settings that follow one law, as finite tests would see it."""
  rng = np.random.default_rng(0)
  points = []
  for k in range(settings):
    for x in np.geomspace(1e9, 1e12, count) * (1 + k):
      share = law(x, *parameters)
      values = (rng.binomial(puzzles, share, seeds) / puzzles).tolist()
      low, high = statistics.interval(values, [puzzles] * seeds)
      made = point(x, 0, values=values, setting=f"{k:012x}", puzzles=puzzles)
      points.append(dataclasses.replace(made, low=low, high=high))
  return points


@pytest.mark.parametrize(
  "parameters", [(0.97, 0.9, 0.72), (0.6, 0.5, 0.3), (1.0, 0.4, 2.0)]
)
def test_the_fit_recovers_the_law(parameters):
  xs = np.geomspace(1e9, 1e12, 9)
  others = [point(x, 0.5, family="hrm") for x in xs]
  points = [point(x, law(x, *parameters)) for x in xs]
  fit = power_law.fit_family([*others, *points[::-1]], "trm")
  assert isinstance(fit, power_law.Fit), fit
  np.testing.assert_allclose(
    (fit.top, fit.drop, fit.exponent), parameters, rtol=1e-4
  )
  assert (fit.family, fit.points, fit.scale) == ("trm", 9, 1e9)
  assert math.isclose(fit.x[0], 1e9) and math.isclose(fit.x[-1], 1e12)
  np.testing.assert_allclose(fit.mean, law(fit.x, *parameters), atol=1e-5)
  # One seed and no count of puzzles: there is nothing that could be otherwise.
  np.testing.assert_allclose(fit.high - fit.low, 0, atol=1e-5)


def test_the_fit_speaks_in_numbers():
  xs = np.geomspace(1e9, 1e12, 9)
  fit = power_law.fit_family(
    [point(x, law(x, 0.97, 0.9, 0.72)) for x in xs], "trm"
  )
  assert isinstance(fit, power_law.Fit)
  assert fit.words == (
    "exact accuracy saturates at 97% (97 to 97); what is missing shrinks "
    "10-fold for every 24-fold compute (exponent 0.72); points lie 0.0 "
    "percentage points from this curve"
  )


def test_the_fit_is_of_the_best_setting():
  xs = np.geomspace(1e9, 1e12, 9)
  best = [point(x, law(x, 0.97, 0.9, 0.72), setting="b" * 12) for x in xs]
  worse = [point(x, law(x, 0.6, 0.5, 0.3), setting="a" * 12) for x in xs]
  both = power_law.fit_family([*worse, *best], "trm")
  alone = power_law.fit_family(best, "trm")
  assert isinstance(both, power_law.Fit)
  assert isinstance(alone, power_law.Fit)
  assert both.words == alone.words
  assert both.points == 9


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_band_narrows_with_puzzles_and_holds_the_law(seeds):
  parameters = (0.9, 0.7, 0.5)
  widths = []
  for puzzles in (100, 10_000):
    points = drawn(parameters, seeds=seeds, puzzles=puzzles)
    fit = power_law.fit_family(points, "trm")
    assert isinstance(fit, power_law.Fit), fit
    assert np.all((fit.low >= 0) & (fit.high <= 1))
    assert np.all((fit.low <= fit.mean) & (fit.mean <= fit.high))
    truth = law(fit.x, *parameters)
    inside = (fit.low <= truth) & (truth <= fit.high)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(fit.mean, truth, atol=1.5 / math.sqrt(puzzles))
    widths.append(np.mean(fit.high - fit.low))
  assert widths[1] < widths[0] / 4


def test_the_band_widens_with_the_spread_of_seeds():
  xs = np.geomspace(1e9, 1e12, 6)

  def band(spread):
    points = [
      point(
        x, 0, values=[law(x, 0.8, 0.5, 0.5) + k * spread for k in (-1, 0, 1)]
      )
      for x in xs
    ]
    fit = power_law.fit_family(points, "trm")
    assert isinstance(fit, power_law.Fit), fit
    return np.mean(fit.high - fit.low)

  # A mean of three drawn seeds has the error spread * sqrt(2/9).
  expected = 2 * 1.96 * 0.05 * math.sqrt(2 / 9)
  assert expected * 0.7 < band(0.05) < expected * 1.3
  assert band(0.05) > 3 * band(0.01)


def test_the_fit_is_the_same_every_time():
  points = drawn((0.9, 0.7, 0.5), seeds=3, puzzles=200, settings=1)
  first, second = (power_law.fit_family(points, "trm") for _ in range(2))
  assert isinstance(first, power_law.Fit)
  assert isinstance(second, power_law.Fit)
  assert first.words == second.words
  np.testing.assert_array_equal(first.low, second.low)
  np.testing.assert_array_equal(first.high, second.high)


def test_where_there_is_no_fit_is_the_reason():
  xs = np.geomspace(1e9, 1e12, 8)
  rising = [point(x, law(x, 0.9, 0.5, 0.5)) for x in xs]
  for few in (rising[:3], rising[:3] * 4):
    assert "3 different amounts of compute" in power_law.fit_family(few, "trm")
  assert "no fit for HRM: its best setting has 0" in power_law.fit_family(
    rising, "hrm"
  )
  flat = [point(x, 0.4) for x in xs]
  assert "a flat line" in power_law.fit_family(flat, "trm")
  unsure = [dataclasses.replace(p, low=0.3, high=0.95) for p in rising]
  assert "a flat line" in power_law.fit_family(unsure, "trm")
  falling = [point(x, 1 - law(x, 0.9, 0.5, 0.5)) for x in xs]
  assert "does not rise" in power_law.fit_family(falling, "trm")


def test_a_rise_without_end_in_sight_is_told():
  points = [
    point(x, 0.05 * math.log10(x / 1e8)) for x in np.geomspace(1e9, 1e12, 8)
  ]
  fit = power_law.fit_family(points, "trm")
  assert isinstance(fit, power_law.Fit), fit
  assert "hardly shrinks with compute" in fit.words


# --- budgets and targets


def test_equal_flops_compares_the_best_within_a_budget():
  cheap, good, equal = point(10, 0.3), point(50, 0.6), point(60, 0.6)
  late = point(40, 0.9, family="feedforward")
  points = [good, late, equal, cheap]
  found = statistics.at_equal_flops(points, [100, 20, 5])
  assert list(found) == [5, 20, 100]
  assert list(found[20]) == ["trm", "feedforward"]
  assert found[5] == {"trm": None, "feedforward": None}
  assert found[20] == {"trm": cheap, "feedforward": None}
  assert found[100] == {"trm": good, "feedforward": late}
  assert statistics.at_equal_flops(points, [40])[40]["feedforward"] is late


@hypothesis.given(st.lists(st.floats(1.0, 1e20), min_size=1, max_size=8))
def test_budgets_by_default_reach_every_point(xs):
  points = [point(x, 0.5) for x in xs]
  budgets = list(statistics.at_equal_flops(points))
  assert 1 <= len(budgets) <= 5
  assert all(float(f"{b:.1e}") == b for b in budgets)  # two digits
  assert max(xs) <= budgets[-1] <= 1.1 * max(xs)
  assert budgets[0] >= min(xs)


def test_nothing_has_no_budgets():
  assert statistics.at_equal_flops([]) == {}
  assert statistics.at_equal_flops([], [5.0]) == {5.0: {}}


@hypothesis.given(
  target=st.floats(0.1, 0.9),
  slope=st.floats(0.05, 0.4),
  order=st.permutations(range(6)),
)
def test_targets_between_points_are_met_on_the_line(target, slope, order):
  def mean(x):
    return 0.05 + slope * math.log10(x / 1e9)

  xs = 1e9 * 10.0 ** np.array([0, 0.3, 1, 1.2, 2.1, 2.5])
  points = [point(xs[i], mean(xs[i])) for i in order]
  found = statistics.flops_to_reach(points, "trm", target)
  if mean(xs[-1]) < target:
    assert found is None
  else:
    assert math.isclose(mean(found), target, rel_tol=1e-9)


def test_targets_are_met_within_one_setting():
  slow = [point(10, 0.1), point(1000, 0.9)]
  fast = [point(20, 0.85, setting="b" * 12), point(30, 0.7, setting="b" * 12)]
  other = [point(1, 1.0, family="hrm", setting="c" * 12)]
  points = [*slow, *fast, *other]

  def reach(target):
    return statistics.flops_to_reach(points, "trm", target)

  # Half of the way on the axis of log(x), not on a line to the other setting.
  assert math.isclose(
    statistics.flops_to_reach(slow, "trm", 0.5) or 0, 100, rel_tol=1e-9
  )
  assert reach(0.05) == 10 and reach(0.85) == 20 and reach(0.9) == 1000
  assert reach(0.95) is None
  assert statistics.flops_to_reach(points, "transformer", 0.1) is None


# --- halting


@hypothesis.given(
  st.lists(
    st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(sum),
    min_size=1,
    max_size=4,
  )
)
def test_the_shares_that_halt_follow_from_mean_steps(counts):
  """`counts`: of each seed, how many puzzles halt at step 1, 2, 3 and 4."""
  trials = []
  for seed, halting in enumerate(counts):
    steps = np.repeat([1, 2, 3, 4], halting)
    trials.append(
      trial(
        seed=seed,
        depths=[
          record(d, d / 8, mean_steps=float(np.minimum(steps, d).mean()),
                 halted_exact_accuracy=d / 10)
          for d in (1, 2, 3, 4)
        ],
      )
    )  # fmt: skip
  (found,) = statistics.halting(trials)
  expected = np.mean([np.array(c) / sum(c) for c in counts], axis=0)
  np.testing.assert_allclose(found.fractions, expected, atol=1e-12)
  assert found.mean_steps[0] == 1
  np.testing.assert_allclose(found.accuracy, [0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(found.fixed_accuracy, np.array([1, 2, 3, 4]) / 8)
  for k in range(4):
    ends = statistics.interval([(k + 1) / 10] * len(counts), [20] * len(counts))
    assert (found.low[k], found.high[k]) == ends


def test_halting_leaves_out_what_does_not_halt():
  single = trial(setting="b" * 12, family="feedforward", depths=[record(1)])
  shallow = trial(setting="a" * 12, seed=9)
  found = statistics.halting([*grid(), shallow, single, diverged(seed=8)])
  assert [h.setting for h in found] == ["a" * 12]
  assert len(found[0].fractions) == 3
