"""Law 4: many devices compute what one computes."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from trm_jax import sharding, train
from trm_jax.errors import UserError


def _after_two_dispatches(recipe, table, mesh):
  shapes = jax.eval_shape(lambda: train.init_state(recipe))
  placed = sharding.shardings(shapes, mesh)
  init = jax.jit(lambda: train.init_state(recipe), out_shardings=placed)
  steps = jax.jit(
    lambda state, table: train.train_steps(state, table, recipe),
    out_shardings=(placed, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  everywhere = sharding.put(table, sharding.replicated(mesh))
  state = init()
  for _ in range(2):
    state, _ = steps(state, everywhere)
  return state


@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4)])
def test_eight_devices_equal_one(recipe, table, compiled_steps, data, model):
  state = train.init_state(recipe)
  for _ in range(2):
    state, _ = compiled_steps(state, table)
  mesh = sharding.make_mesh(data, model)
  spread = _after_two_dispatches(recipe, table, mesh)
  latents = spread.carry.latents.y.sharding
  assert latents.spec[0] == "data"
  if model > 1:
    gate_up = spread.params.weights["blocks"]["block_0"]["mlp"]["gate_up"]
    assert gate_up.sharding.spec == P(None, None, "model")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    jax.device_get(spread.params),
    jax.device_get(state.params),
  )
  # What is counted, not computed, is the same to the bit.
  for name in ("cursor", "step", "key"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(spread, name), getattr(state, name)
    )
  np.testing.assert_array_equal(spread.carry.steps, state.carry.steps)
  np.testing.assert_array_equal(
    spread.carry.puzzles.inputs, state.carry.puzzles.inputs
  )


def test_an_axis_that_does_not_divide_is_dropped():
  mesh = sharding.make_mesh(4, 2)
  tree = {
    "puzzle_table": np.zeros((16, 3)),
    "carry": {"y": np.zeros((8, 2)), "odd": np.zeros((3,))},
    "mlp": {"gate_up": np.zeros((4, 2, 6)), "down": np.zeros((5, 4))},
    "step": np.zeros(()),
  }
  specs = jax.tree.map(lambda s: s.spec, sharding.shardings(tree, mesh))
  assert specs["puzzle_table"] == P(("data", "model"), None)
  assert specs["carry"] == {"y": P("data"), "odd": P(None)}
  assert specs["mlp"] == {
    "gate_up": P(None, None, "model"),
    "down": P(None, None),
  }
  assert specs["step"] == P()


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(UserError, match="data=3 x model=1, but there are 8"):
    sharding.make_mesh(3)
  with pytest.raises(UserError, match="model=3"):
    sharding.make_mesh(-1, 3)
  mesh = sharding.make_mesh()
  with pytest.raises(UserError, match="try 8 or 16"):
    sharding.check_batch("config.train.batch_size", 12, mesh)


def test_the_batch_is_the_only_thing_shared_on_a_data_mesh(recipe):
  shapes = jax.eval_shape(lambda: train.init_state(recipe))
  placed = sharding.shardings(shapes, sharding.make_mesh())
  named = jax.tree_util.tree_leaves_with_path(placed)
  shared = {
    jax.tree_util.keystr(path, simple=True, separator="/").split("/")[0]
    for path, leaf in named
    if not leaf.is_fully_replicated
  }
  assert shared == {"carry"}
