"""Law 4: many devices compute what one computes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from trm_jax.config import TrainConfig
from trm_jax.core import optim
from trm_jax.errors import UserError
from trm_jax.run import sharding
from trm_jax.train import program as trainer
from trm_jax.train import step as train


def _after_two_dispatches(recipe, table, mesh, microbatches):
  shapes = jax.eval_shape(lambda: train.init_state(recipe))
  placed = sharding.shardings(shapes, mesh)
  init = jax.jit(lambda: train.init_state(recipe), out_shardings=placed)
  steps = jax.jit(
    lambda state, table: train.train_steps(
      state, table, recipe, split_slots=sharding.split_slots(mesh, microbatches)
    ),
    out_shardings=(placed, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  everywhere = sharding.put(table, sharding.replicated(mesh))
  state = init()
  for _ in range(2):
    state, _ = steps(state, everywhere)
  return state


@pytest.mark.parametrize(
  ("data", "model", "microbatches"), [(8, 1, 1), (8, 1, 2), (2, 4, 4)]
)
def test_eight_devices_equal_one(
  recipe, table, compiled_steps, data, model, microbatches
):
  state = train.init_state(recipe)
  for _ in range(2):
    state, _ = compiled_steps(state, table)
  mesh = sharding.make_mesh(data, model)
  spread = _after_two_dispatches(recipe, table, mesh, microbatches)
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
  for name in ("cursor", "step", "seed"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(spread, name), getattr(state, name)
    )
  np.testing.assert_array_equal(spread.carry.steps, state.carry.steps)
  np.testing.assert_array_equal(
    spread.carry.puzzles.inputs, state.carry.puzzles.inputs
  )


@pytest.mark.parametrize(
  ("family", "devices", "microbatches"), [("trm", 1, 4), ("hrm", 8, 2)]
)
def test_microbatches_change_neither_losses_nor_noise(
  recipe, table, family, devices, microbatches
):
  """In float64, where only the order of sums differs."""
  model = dataclasses.replace(
    recipe.model, family=family, path_noise=0.1, dtype="float64",
    param_dtype="float64",
  )  # fmt: skip
  recipe = dataclasses.replace(recipe, model=model)

  def learned(devices, microbatches):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with jax.enable_x64(True):
      split = sharding.split_slots(mesh, microbatches)
      state = train.init_state(recipe)
      incoming, _ = train.draw_puzzles(state, table, recipe)
      learn = jax.jit(lambda s, i: train.learn(s, i, recipe, split))
      return learn(state, incoming)[1]

  plain, found = learned(1, 1), learned(devices, microbatches)
  assert found.gradients["lm_head"]["kernel"].dtype == jnp.float64
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
    jax.device_get(found),
    jax.device_get(plain),
  )


@settings(max_examples=50, deadline=None)
@given(
  share=st.integers(1, 400), devices=st.integers(1, 8), most=st.integers(0, 400)
)
def test_microbatches_are_equal_and_as_few_as_memory_allows(
  share, devices, most
):
  training = TrainConfig(batch_size=share * devices, microbatch=most)
  microbatches = training.microbatches(devices)
  assert share % microbatches == 0
  assert not most or share // microbatches <= most
  fewer = [k for k in range(1, microbatches) if share % k == 0]
  assert all(most and share // k > most for k in fewer)


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


def _moved(text: str) -> list[int]:
  """Elements of each array that the collectives of a program give."""
  results = re.findall(r"= (.*) (?:all|collective|reduce-scatter)-?\S*\(", text)
  return [
    int(np.prod([int(n) for n in shape.split(",") if n]))
    for result in results
    for shape in re.findall(r"\w+\[([\d,]*)\]", result)
  ]


def _compiled_table_update(rows: int, mesh):
  """Three updates of a puzzle table that lies across a mesh."""
  batch, width = 16, 64

  def updates(table, ids, gradients):
    def body(table, _):
      seen = gradients + 0.1 * table[ids]
      return optim.sign_sgd_rows(table, ids, seen, 0.1, 0.1), None

    return jax.lax.scan(body, table, length=3)[0]

  tree = {
    "puzzle_table": jax.ShapeDtypeStruct((rows, width), jnp.float32),
    "carry": {
      "ids": jax.ShapeDtypeStruct((batch,), jnp.int32),
      "gradients": jax.ShapeDtypeStruct((batch, width), jnp.float32),
    },
  }
  placed = sharding.shardings(tree, mesh)
  assert placed["puzzle_table"].spec == P(("data", "model"), None)
  carry = placed["carry"]
  update = jax.jit(
    updates,
    in_shardings=(placed["puzzle_table"], carry["ids"], carry["gradients"]),
    out_shardings=placed["puzzle_table"],
    donate_argnums=0,
  )
  return update.lower(
    tree["puzzle_table"], tree["carry"]["ids"], tree["carry"]["gradients"]
  ).compile()


def test_the_update_of_the_puzzle_table_does_not_grow_with_it():
  """Neither its memory nor its work: only the batch's rows are touched."""
  mesh = sharding.make_mesh(4, 2)
  small, large = (_compiled_table_update(n, mesh) for n in (2**11, 2**17))
  memory = [program.memory_analysis() for program in (small, large)]
  assert memory[0].temp_size_in_bytes == memory[1].temp_size_in_bytes
  # The large table is updated where it lies ...
  assert memory[1].alias_size_in_bytes == 2**17 * 64 * 4 // 8
  text = large.as_text()
  # ... by a scatter: no operation runs over all of its rows.
  over_all_rows = set(re.findall(r"= f32\[16384,64\]\S* ([\w-]+)\(", text))
  assert "scatter" in over_all_rows
  assert over_all_rows <= {
    "parameter",
    "get-tuple-element",
    "scatter",
    "fusion",
  }
  assert not re.search(r"f32\[131072,64\]", text)
  # What travels between devices is of the batch's size.
  assert 0 < max(_moved(text)) <= 16 * 64


def test_a_large_split_is_shared_by_the_devices(recipe, split, monkeypatch):
  """Reading from it gives the same, and moves no more than a batch."""
  mesh = sharding.make_mesh(4, 2)
  split = split.take(np.arange(37))  # eight devices do not divide it
  split = dataclasses.replace(
    split, inputs=split.inputs[:37], labels=split.labels[:37]
  )
  whole = trainer.stage(split, mesh)
  monkeypatch.setattr(trainer, "_SHARED_FROM", 0)
  shared = trainer.stage(split, mesh)
  assert whole.inputs.sharding.is_fully_replicated
  assert shared.inputs.shape == (40, 16)
  assert shared.inputs.addressable_shards[0].data.shape == (5, 16)
  assert (shared.num_rows, shared.num_groups) == (37, 37)
  draw = jax.jit(lambda state, table: train.draw_puzzles(state, table, recipe))
  state = train.init_state(recipe)
  jax.tree.map(
    np.testing.assert_array_equal, draw(state, shared), draw(state, whole)
  )
  text = draw.lower(state, shared).compile().as_text()
  assert 0 < max(_moved(text)) <= 16 * 16
