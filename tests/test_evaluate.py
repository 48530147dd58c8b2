"""Evaluation: one pass gives what every depth gives by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax import evaluate, sharding, train
from trm_jax.core import halting, recursion


@pytest.fixture(scope="module")
def trained(recipe, table, compiled_steps):
  state = train.init_state(recipe)
  for _ in range(6):
    state, _ = compiled_steps(state, table)
  # A halting head that sometimes says yes makes the test worth its name.
  q_head = state.ema["q_head"]
  q_head = q_head | {"bias": q_head["bias"] * 0 + 0.2}
  q_head["kernel"] = jax.random.normal(
    jax.random.key(5), q_head["kernel"].shape
  )
  return state.params.replace(weights=state.ema | {"q_head": q_head})


def _by_hand(params, split, recipe, depth):
  """Answers and halting logits after each step, without a scan."""
  inputs = jnp.asarray(split.inputs, jnp.int32)
  rows = params.puzzle_table[split.puzzle_ids]
  latents = recursion.initial_latents(params.initial, len(inputs), recipe.model)
  step = jax.jit(
    lambda latents: halting.supervise(
      params.weights, rows, latents, inputs, recipe.model
    )
  )
  for _ in range(depth):
    latents, outputs = step(latents)
    answers = np.argmax(np.asarray(outputs.logits), -1)
    yield answers, np.asarray(outputs.q_halt)


def test_every_depth_equals_running_to_it(trained, split, recipe):
  depth = 6
  records = evaluate.evaluate(
    trained, split, recipe.model, recipe.task,
    depth=depth, batch_size=16, mesh=sharding.make_mesh(),
  )  # fmt: skip
  steps = list(_by_hand(trained, split, recipe, depth))
  halted_at = np.full(len(split), depth)
  for k in reversed(range(depth)):
    halted_at[steps[k][1] > 0] = k + 1
  assert len(np.unique(halted_at)) > 1
  for k, record in enumerate(records):
    answers, q_halt = steps[k]
    right = answers == split.labels
    exact = right.all(-1)
    assert record["depth"] == k + 1
    assert record["puzzles"] == len(split)  # 40 in batches of 16: padded
    assert record["cell_accuracy"] == pytest.approx(right.mean())
    assert record["exact_accuracy"] == pytest.approx(exact.mean())
    assert record["exact_accuracy_se"] == pytest.approx(
      np.std(exact) / np.sqrt(len(split))
    )
    assert record["cell_accuracy_se"] == pytest.approx(
      np.std(right.mean(-1)) / np.sqrt(len(split)), abs=1e-6
    )
    assert record["q_accuracy"] == pytest.approx(
      np.mean((q_halt >= 0) == exact)
    )
    used = np.minimum(halted_at, k + 1)
    assert record["mean_steps"] == pytest.approx(used.mean())
    kept = [(steps[d - 1][0][i] == split.labels[i]).all()
            for i, d in enumerate(used)]  # fmt: skip
    assert record["halted_exact_accuracy"] == pytest.approx(np.mean(kept))
    legal = recipe.task.is_solution(split.inputs, jnp.asarray(answers))
    assert record["legal_rate"] == pytest.approx(float(np.mean(legal)))


def test_the_chosen_part_is_seeded_and_without_repeats():
  rows = evaluate.choose_rows(1000, 50, seed=3)
  np.testing.assert_array_equal(rows, evaluate.choose_rows(1000, 50, seed=3))
  assert len(np.unique(rows)) == 50
  assert np.any(rows != evaluate.choose_rows(1000, 50, seed=4))
  np.testing.assert_array_equal(
    evaluate.choose_rows(7, 0, seed=3), np.arange(7)
  )
  np.testing.assert_array_equal(
    evaluate.choose_rows(7, 99, seed=3), np.arange(7)
  )
