"""The carry: who is refilled, who halts, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import halting
from trm_jax.core.halting import HaltingConfig, Puzzles
from trm_jax.core.model import Latents


def _puzzles(value: int, batch: int = 4) -> Puzzles:
  config = tiny_model()
  tokens = jnp.full((batch, config.seq_len), value, jnp.int32)
  ids = jnp.full((batch,), value, jnp.int32)
  return Puzzles(inputs=tokens, labels=tokens, puzzle_ids=ids)


def _initial(value: float) -> Latents:
  vector = jnp.full((1, 1, tiny_model().width), value)
  return Latents(y=vector, z=-vector)


def test_refill_replaces_halted_slots_and_only_those():
  carry = halting.initial_carry(4, tiny_model())
  assert bool(carry.halted.all())
  carry = halting.refill(carry, _puzzles(1), _initial(0.5))
  carry = carry.replace(
    halted=jnp.array([True, False, False, True]), steps=jnp.arange(4) + 1
  )
  carry = halting.refill(carry, _puzzles(2), _initial(0.25))
  np.testing.assert_array_equal(carry.steps, [0, 2, 3, 0])
  np.testing.assert_array_equal(carry.puzzles.puzzle_ids, [2, 1, 1, 2])
  np.testing.assert_array_equal(carry.puzzles.inputs[:, 0], [2, 1, 1, 2])
  np.testing.assert_array_equal(
    carry.latents.y[:, 0, 0], [0.25, 0.5, 0.5, 0.25]
  )
  np.testing.assert_array_equal(
    carry.latents.z[:, 3, 1], [-0.25, -0.5, -0.5, -0.25]
  )


def test_halting_rule():
  settings = HaltingConfig(max_steps=5)
  carry = halting.initial_carry(6, tiny_model())
  carry = carry.replace(steps=jnp.array([0, 0, 2, 2, 4, 4]))
  q_halt = jnp.array([1.0, -1.0, 1.0, 0.0, -1.0, 1.0])
  minimum = jnp.array([0, 0, 4, 0, 0, 5])
  after = halting.finish_step(
    carry, carry.latents, q_halt > 0, minimum, settings
  )
  np.testing.assert_array_equal(after.steps, [1, 1, 3, 3, 5, 5])
  # wants to; does not; must wait; 0 is not above 0; too long; too long
  np.testing.assert_array_equal(
    after.halted, [True, False, False, False, True, True]
  )


def test_exploration_is_drawn_per_slot_within_its_range():
  settings = HaltingConfig(max_steps=6, exploration=0.3)
  drawn = halting.draw_minimum_steps(jax.random.key(0), 20_000, settings)
  drawn = np.asarray(drawn)
  explored = drawn[drawn > 0]
  assert len(explored) / len(drawn) == pytest.approx(0.3, abs=0.02)
  values, counts = np.unique(explored, return_counts=True)
  np.testing.assert_array_equal(values, [2, 3, 4, 5, 6])
  np.testing.assert_allclose(counts / len(explored), 0.2, atol=0.02)


def test_without_exploration_there_is_no_minimum():
  settings = HaltingConfig(max_steps=6, exploration=0.0)
  drawn = halting.draw_minimum_steps(jax.random.key(0), 1000, settings)
  assert not np.any(drawn)


def test_a_single_step_always_halts():
  settings = HaltingConfig(max_steps=1, exploration=1.0)
  carry = halting.initial_carry(8, tiny_model())
  minimum = halting.draw_minimum_steps(jax.random.key(0), 8, settings)
  q_halt = jnp.full((8,), -9.0)
  after = halting.finish_step(
    carry, carry.latents, q_halt > 0, minimum, settings
  )
  assert bool(after.halted.all())
