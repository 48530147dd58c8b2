"""Depth schedules: which depth each step trains, and that it trains just that.

The training tests share one program of three depths, compiled once.
"""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny_model, with_train
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_jax.core import flops
from trm_jax.core.depth import DepthConfig
from trm_jax.train import step as train

STAGES = ((1, 1), (1, 2), (2, 1))
CURRICULUM = DepthConfig(
  schedule="curriculum", stages=STAGES, until=(0.25, 0.5)
)
RANDOM = DepthConfig(schedule="random", stages=STAGES, seed=3)


def test_a_curriculum_changes_where_its_shares_end():
  np.testing.assert_array_equal(
    CURRICULUM.choices(0, 12, total=12), [0] * 3 + [1] * 3 + [2] * 6
  )
  # A step in whose midst a stage would end still belongs to it.
  np.testing.assert_array_equal(
    CURRICULUM.choices(0, 10, total=10), [0] * 3 + [1] * 2 + [2] * 5
  )
  assert CURRICULUM.choices(0, 1, total=1)[0] == 0


def test_a_fixed_schedule_has_one_model():
  model = tiny_model()
  assert DepthConfig().models(model) == (model,)
  np.testing.assert_array_equal(DepthConfig().choices(7, 3, total=10), [0] * 3)


@pytest.mark.parametrize("family", ["trm", "hrm", "single_latent"])
def test_models_differ_in_depth_alone(family):
  model = tiny_model(family=family)
  expected = [
    dataclasses.replace(model, cycles=cycles, latent_steps=n)
    for cycles, n in STAGES
  ]
  assert list(RANDOM.models(model)) == expected


@settings(max_examples=50, deadline=None)
@given(
  st.sampled_from([CURRICULUM, RANDOM]),
  st.integers(0, 5000),
  st.lists(st.integers(0, 3000), min_size=1, max_size=4),
)
def test_a_choice_is_a_function_of_the_step_alone(schedule, first, counts):
  """However steps are dispatched; draws come in blocks of 1024."""
  total = 9000
  at_once = schedule.choices(first, sum(counts), total)
  assert at_once.dtype == np.int32
  parts = []
  for count in counts:
    parts.append(schedule.choices(first, count, total))
    first += count
  np.testing.assert_array_equal(np.concatenate(parts), at_once)


def test_random_depths_are_uniform_and_seeded():
  count = 30_000
  drawn = RANDOM.choices(0, count, count)
  shares = np.bincount(drawn) / count
  np.testing.assert_allclose(shares, 1 / 3, atol=0.01)
  follows = np.bincount(3 * drawn[:-1] + drawn[1:]) / count
  np.testing.assert_allclose(follows, 1 / 9, atol=0.01)  # of each other
  other = dataclasses.replace(RANDOM, seed=4).choices(0, count, count)
  assert np.mean(other == drawn) == pytest.approx(1 / 3, abs=0.01)
  # Blocks are drawn anew too.
  assert np.mean(drawn[:1024] == drawn[1024:2048]) < 0.5


@pytest.mark.parametrize(
  ("wrong", "pattern"),
  [
    (dict(schedule="steep"), "'steep': must be one of fixed, curriculum"),
    (dict(stages=STAGES), "stages=.*: must be empty for a 'fixed' schedule"),
    (dict(schedule="random"), r"stages=\(\): must be empty for a 'fixed'"),
    (dict(seed=-1), "seed=-1: must be from 0 to 4294967295"),
    (dict(until=(0.5,)), r"until=\(0.5,\): a 'fixed' .* needs 0"),
    (
      dict(schedule="random", stages=STAGES, until=(0.5,)),
      "until=.*'random' .* needs 0",
    ),
    (
      dict(schedule="random", stages=((1, 2), (0, 3))),
      "stages=.*: T and n must be at least 1",
    ),
    (
      dict(schedule="curriculum", stages=STAGES, until=(0.5,)),
      r"until=\(0.5,\): .* of 3 stages needs 2 rising fractions",
    ),
    (
      dict(schedule="curriculum", stages=STAGES, until=(0.5, 0.5)),
      "rising fractions",
    ),
    (
      dict(schedule="curriculum", stages=STAGES, until=(0.6, 0.4)),
      "rising fractions",
    ),
    (
      dict(schedule="curriculum", stages=STAGES, until=(0.5, 1.0)),
      r"fractions in \(0, 1\)",
    ),
    (
      dict(schedule="curriculum", stages=STAGES, until=(0.5, float("nan"))),
      r"fractions in \(0, 1\)",
    ),
  ],
)
def test_bad_settings_are_named(wrong, pattern):
  with pytest.raises(ValueError, match=pattern):
    DepthConfig(**wrong)


def test_families_without_such_depths_are_named():
  for family in ("transformer", "feedforward"):
    with pytest.raises(ValueError, match=f"family='{family}' has no cycles"):
      RANDOM.models(tiny_model(family=family))
  several = tiny_model(family="multi_latent", latent_steps=2)
  with pytest.raises(ValueError, match="n=2 latent steps, so n cannot change"):
    RANDOM.models(several)
  only_cycles = DepthConfig(schedule="random", stages=((1, 2), (3, 2)))
  assert [m.cycles for m in only_cycles.models(several)] == [1, 3]


@pytest.mark.parametrize("depth", [DepthConfig(), CURRICULUM, RANDOM])
def test_training_flops_are_the_sum_over_steps(recipe, depth):
  recipe = dataclasses.replace(recipe, depth=depth)
  steps = recipe.train.steps
  total = 0
  for step in range(steps):
    assert recipe.training_flops(step) == total
    (choice,) = recipe.choices(step, 1)
    one = flops.training_step(recipe.models[choice])
    total += one * recipe.train.batch_size
  assert recipe.training_flops(steps) == total


@pytest.fixture(scope="module")
def scheduled(recipe):
  """A recipe of three depths and 64 bits, two steps a dispatch."""
  wide = tiny_model(
    dtype="float64", param_dtype="float64", remat="none", mixer="attention",
    positions="rotary",
  )  # fmt: skip
  return dataclasses.replace(
    with_train(recipe, steps=8, steps_per_dispatch=2, augment=False),
    model=wide,
    depth=dataclasses.replace(CURRICULUM, until=(0.5, 0.75)),
  )


def _compile(function):
  # Compiles in half the time; what is computed is the same.
  return jax.jit(
    function, compiler_options={"xla_backend_optimization_level": 0}
  )


@pytest.fixture(scope="module")
def program(scheduled):
  return _compile(
    lambda state, table, choices: train.train_steps(
      state, table, scheduled, choices
    )
  )


@pytest.fixture(scope="module")
def state(scheduled):
  with jax.enable_x64(True):
    return _compile(lambda: train.init_state(scheduled))()


def test_one_program_trains_every_depth(scheduled, program, state, table):
  with jax.enable_x64(True):
    seen = []
    for step in range(0, scheduled.train.steps, 2):
      choices = scheduled.choices(step, 2)
      seen.extend(choices)
      state, metrics = program(state, table, choices)
      assert np.all(np.isfinite(metrics["loss"]))
    assert {*seen} == {0, 1, 2}
    assert int(state.step) == scheduled.train.steps
    assert program._cache_size() == 1


@pytest.mark.parametrize("choice", [0, 2])
def test_a_choice_trains_as_if_its_depth_were_fixed(
  scheduled, program, state, table, choice
):
  cycles, n = STAGES[choice]
  model = dataclasses.replace(scheduled.model, cycles=cycles, latent_steps=n)
  fixed = dataclasses.replace(scheduled, model=model, depth=DepthConfig())
  choices = np.full(2, choice, np.int32)
  with jax.enable_x64(True):
    ours = program(state, table, choices)
    expected = _compile(lambda s, t: train.train_steps(s, t, fixed))(
      state, table
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
    *jax.device_get((ours, expected)),
  )


def test_a_choice_is_needed_where_there_are_several(scheduled, state, table):
  with pytest.raises(AssertionError, match="choose among the depths"):
    train.train_steps(state, table, scheduled)
