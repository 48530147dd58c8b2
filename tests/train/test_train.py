"""The training step: which puzzles it draws, and that it learns."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model, with_train

from trm_jax.core import network, recursion
from trm_jax.core.halting import HaltingConfig, Puzzles
from trm_jax.data.batches import Table
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.train import step as train


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
  puzzles = Puzzles.of(
    jnp.array([[1, 2]], jnp.uint8), jnp.array([[0, 3]], jnp.uint8), jnp.zeros(1)
  )
  np.testing.assert_array_equal(puzzles.labels, [[0, 3]])


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


def test_a_seed_in_place_of_the_recipes(recipe):
  ours = train.init_state(recipe, seed=3)
  expected = train.init_state(with_train(recipe, seed=3))
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
  assert int(ours.seed) == 3
  weights = train.init_state(recipe).params.weights["blocks"]
  assert jax.tree.all(
    jax.tree.map(
      lambda a, b: bool(jnp.any(a != b)), ours.params.weights["blocks"], weights
    )
  )


def test_what_must_not_move_does_not(recipe, table, compiled_steps):
  before = train.init_state(recipe)
  after, _ = compiled_steps(before, table)
  jax.tree.map(
    np.testing.assert_array_equal, before.params.initial, after.params.initial
  )
  np.testing.assert_array_equal(before.seed, after.seed)
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


def _same_puzzle_everywhere(table, batch):
  row = jnp.zeros(batch, jnp.int32)
  return Puzzles.of(table.inputs[row], table.labels[row], row)


def _logits_of_a_first_step(recipe, table, **changes):
  """Each slot is given the same puzzle; a function of the run's seed."""
  recipe = dataclasses.replace(
    recipe, model=dataclasses.replace(recipe.model, **changes)
  )
  params = network.init(jax.random.key(0), recipe.model)
  incoming = _same_puzzle_everywhere(table, recipe.train.batch_size)

  @jax.jit  # of the logits alone, so nothing is differentiated
  def first_step(seed, step):
    state = train.state_from_params(params, recipe, seed).replace(step=step)
    return train.learn(state, incoming, recipe)[1].outputs.logits

  return lambda seed, step=0: np.asarray(first_step(seed, step))


def test_without_noise_a_step_is_the_same_in_every_slot_and_run(recipe, table):
  logits = _logits_of_a_first_step(recipe, table)
  np.testing.assert_allclose(logits(0), logits(1), rtol=0, atol=0)
  np.testing.assert_allclose(logits(0)[1:], logits(0)[:-1], atol=1e-5)


@pytest.mark.parametrize("changes", [{"initial_std": 1.0}, {"path_noise": 0.1}])
def test_noise_differs_by_slot_step_and_run(recipe, table, changes):
  logits = _logits_of_a_first_step(recipe, table, **changes)
  first = logits(0)
  np.testing.assert_array_equal(first, logits(0))
  for other in (first[::-1], logits(1), logits(0, step=1)):
    assert np.all(np.any(np.abs(first - other) > 1e-2, axis=(1, 2)))


@pytest.mark.parametrize("family", ["trm", "single_latent", "multi_latent"])
def test_a_random_start_has_the_stated_deviation(family):
  config = tiny_model(family=family, initial_std=0.5)
  vectors = network.shapes(config).initial
  drawn = jax.tree.leaves(
    jax.jit(lambda key: recursion.initial_latents(vectors, 64, config, key))(
      jax.random.key(1)
    )
  )
  for leaf in drawn:
    assert np.std(leaf) == pytest.approx(0.5, rel=0.03)
    assert np.mean(leaf) == pytest.approx(0, abs=0.02)
    assert np.max(np.abs(leaf)) < 1.2  # truncated
    assert len(np.unique(leaf)) > 0.9 * leaf.size  # by slot, token and channel
  for one, other in itertools.combinations(map(np.ravel, drawn), 2):
    assert abs(np.mean(one * other[: one.size])) < 0.02


def test_evaluation_has_no_path_noise_and_always_the_same_start(recipe, table):
  puzzles = _same_puzzle_everywhere(table, 8)
  params = network.init(jax.random.key(0), recipe.model)

  def answers(**changes):
    model = dataclasses.replace(recipe.model, **changes)
    refine = jax.jit(lambda: evaluate.refine(params, puzzles, 2, model)[0])
    np.testing.assert_array_equal(refine(), refine())
    return np.asarray(refine())  # [D, B, S]

  plain = answers()
  np.testing.assert_array_equal(plain, answers(path_noise=0.5))
  np.testing.assert_array_equal(plain[:, 1:], plain[:, :-1])
  start = answers(initial_std=1.0)
  # One start for all: answers do not depend on the place in a batch.
  np.testing.assert_array_equal(start[:, 1:], start[:, :-1])


def test_registers_are_learnt_in_place_of_a_puzzle_table(recipe, table):
  with pytest.raises(ValueError, match=r"registers=2: .* set puzzle_emb_ndim"):
    dataclasses.replace(recipe.model, registers=2)
  model = dataclasses.replace(
    recipe.model, registers=2, puzzle_emb_ndim=0, family="feedforward"
  )
  recipe = dataclasses.replace(recipe, model=model)
  incoming = _same_puzzle_everywhere(table, recipe.train.batch_size)

  @jax.jit
  def step():
    before = train.init_state(recipe)
    after, learned = train.learn(before, incoming, recipe)
    return before.params, after.params, learned

  before, after, learned = step()
  assert before.weights["embed"]["registers"].shape == (2, model.width)
  assert np.all(np.any(learned.gradients["embed"]["registers"], axis=1))
  moved = after.weights["embed"]["registers"]
  assert np.all(np.any(before.weights["embed"]["registers"] != moved, axis=1))
  assert learned.outputs.logits.shape[1] == model.seq_len  # they are cut off
  assert after.puzzle_table.size == 0


_LEARNERS = {
  "mlp": {},
  "attention": dict(mixer="attention", positions="rotary"),
  "hrm": dict(family="hrm", layers=1),
  "feedforward": dict(family="feedforward"),
  # Scored are answers that it writes, not those that it is told.
  "autoregressive": dict(
    family="autoregressive", mixer="attention", positions="learned",
    puzzle_emb_ndim=0, registers=2,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", _LEARNERS)
def test_one_batch_is_learnt_by_heart(recipe, split, name):
  """Law 10, with the paper's two layers."""
  changes = dict(width=32, layers=2) | _LEARNERS[name]
  model = dataclasses.replace(recipe.model, **changes)
  count, depth = 8, 2 if model.is_recursive else 1
  few = Table.of(split.take(np.arange(count)))
  recipe = dataclasses.replace(
    with_train(
      recipe,
      augment=False,
      batch_size=count,
      steps=800,
      steps_per_dispatch=100,
      loss="softmax" if name == "autoregressive" else "stablemax",
    ),
    model=model,
    halting=HaltingConfig(max_steps=depth, exploration=0.0),
    optim=dataclasses.replace(
      recipe.optim, lr=1e-3, weight_decay=0.0, schedule="cosine",
      lr_min_ratio=0.0,
    ),
  )  # fmt: skip
  few = jax.tree.map(jnp.asarray, few)
  steps = jax.jit(lambda s: train.train_steps(s, few, recipe))
  puzzles = Puzzles.of(
    *jax.tree.map(
      lambda a: jnp.asarray(a[:count]),
      (split.inputs, split.labels, split.puzzle_ids),
    )
  )
  state = jax.jit(lambda: train.init_state(recipe))()
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
