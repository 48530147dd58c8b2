"""The training step: whose turn it is, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_train

from trm_jax import evaluate, sharding, train
from trm_jax.core import losses
from trm_jax.core.halting import HaltingConfig
from trm_jax.data.batches import Table


def _taken_rows(recipe, table, steps):
  """Rows of the puzzles that slots took, step by step, without augmentation."""
  recipe = with_train(recipe, augment=False)
  lookup = {np.asarray(row).tobytes(): i for i, row in enumerate(table.inputs)}
  step = jax.jit(lambda s: train.train_step(s, table, recipe)[0])
  state = train.init_state(recipe)
  taken = []
  for _ in range(steps):
    fresh = np.asarray(state.carry.halted)
    state = step(state)
    inputs = np.asarray(state.carry.puzzles.inputs, np.uint8)[fresh]
    taken.append([lookup[row.tobytes()] for row in inputs])
  return taken, state


def test_the_queue_takes_every_row_once_an_epoch(recipe, table):
  taken, state = _taken_rows(recipe, table, 25)
  rows = np.concatenate(taken)
  count = table.num_rows
  assert len(rows) > 2 * count  # several epochs
  for first in range(0, len(rows) - count + 1, count):
    epoch = rows[first : first + count]
    np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
  # The stream stands exactly behind what was taken: nothing was wasted.
  behind = int(state.cursor.epoch) * count + int(state.cursor.position)
  assert behind == len(rows)


def test_discarding_moves_a_whole_batch_a_step(recipe, table):
  discard = with_train(recipe, refill="discard")
  taken, state = _taken_rows(discard, table, 6)
  count, batch = table.num_rows, recipe.train.batch_size
  behind = int(state.cursor.epoch) * count + int(state.cursor.position)
  assert behind == 6 * batch
  assert sum(map(len, taken)) < behind  # running slots kept theirs


def test_both_refills_agree_while_every_slot_halts(recipe, table):
  halting = HaltingConfig(max_steps=1)
  states = []
  for refill in ("queue", "discard"):
    changed = dataclasses.replace(
      with_train(recipe, refill=refill), halting=halting
    )
    step = jax.jit(lambda s, r=changed: train.train_step(s, table, r)[0])
    state = train.init_state(changed)
    for _ in range(3):
      state = step(state)
    states.append(state)
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_augmentation_is_a_function_of_seed_epoch_and_row(recipe, table):
  """Drawing anew from the same state gives the same puzzles, and legal ones."""
  state = train.init_state(recipe)
  first, _ = train.draw_puzzles(state, table, recipe)
  again, _ = train.draw_puzzles(state, table, recipe)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  plain, _ = train.draw_puzzles(state, table, with_train(recipe, augment=False))
  assert np.any(np.asarray(first.inputs) != np.asarray(plain.inputs))
  assert np.all(recipe.task.is_solution(first.inputs, first.labels))


def test_stored_label_zero_is_ignored():
  puzzles = train.as_puzzles(
    jnp.array([[1, 2]], jnp.uint8), jnp.array([[0, 3]], jnp.uint8), jnp.zeros(1)
  )
  np.testing.assert_array_equal(puzzles.labels, [[losses.IGNORE_LABEL, 3]])


def test_several_steps_in_one_dispatch_equal_single_ones(
  recipe, table, compiled_steps
):
  together, metrics = compiled_steps(train.init_state(recipe), table)
  step = jax.jit(lambda s: train.train_step(s, table, recipe))
  state = train.init_state(recipe)
  for k in range(recipe.train.steps_per_dispatch):
    state, single = step(state)
    np.testing.assert_allclose(metrics["loss"][k], single["loss"], rtol=1e-5)
  assert int(together.step) == int(state.step)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    together.params,
    state.params,
  )


def test_what_must_not_move_does_not(recipe, table, compiled_steps):
  before = train.init_state(recipe)
  after, _ = compiled_steps(before, table)
  jax.tree.map(
    np.testing.assert_array_equal, before.params.initial, after.params.initial
  )
  np.testing.assert_array_equal(before.key, after.key)
  moved = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)), before.params.weights,
    after.params.weights,
  )  # fmt: skip
  assert all(jax.tree.leaves(moved))
  assert np.any(after.params.puzzle_table)


def test_the_average_follows_the_weights(recipe, table):
  step = jax.jit(lambda s: train.train_step(s, table, recipe)[0])
  state = train.init_state(recipe)
  expected = state.ema
  for _ in range(3):
    state = step(state)
    expected = jax.tree.map(
      lambda e, w: 0.9 * e + 0.1 * w, expected, state.params.weights
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.ema,
    expected,
  )


@pytest.mark.parametrize(
  ("mixer", "positions"), [("mlp", "none"), ("attention", "rotary")]
)
def test_one_batch_is_learnt_by_heart(recipe, split, mixer, positions):
  """Law 10, with the paper's two layers."""
  count, depth = 8, 2
  few = Table.of(split.take(np.arange(count)))
  recipe = dataclasses.replace(
    with_train(
      recipe,
      augment=False,
      batch_size=count,
      steps=800,
      steps_per_dispatch=100,
    ),
    model=dataclasses.replace(
      recipe.model, width=32, layers=2, mixer=mixer, positions=positions
    ),
    halting=HaltingConfig(max_steps=depth, exploration=0.0),
    optim=dataclasses.replace(
      recipe.optim, lr=1e-3, weight_decay=0.0, schedule="cosine",
      lr_min_ratio=0.0,
    ),
  )  # fmt: skip
  few = jax.tree.map(jnp.asarray, few)
  steps = jax.jit(lambda s: train.train_steps(s, few, recipe))
  puzzles = train.as_puzzles(
    *jax.tree.map(
      lambda a: jnp.asarray(a[:count]),
      (split.inputs, split.labels, split.puzzle_ids),
    )
  )
  state = train.init_state(recipe)
  exact = 0.0
  for _ in range(8):
    state, _ = steps(state)
    scores, _ = evaluate.scorer(sharding.make_mesh())(
      state.params,
      evaluate.Batch(puzzles, jnp.ones(count, bool)),
      depth,
      recipe.model,
      recipe.task,
    )
    # Where it halts: nothing trains the steps behind that.
    exact = float(scores["halted_exact"][-1]) / count
    if exact == 1.0:
      break
  assert exact == 1.0
