"""Every way to compute attention gives the same, and fits where it should."""

import dataclasses
import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
)
from jax.sharding import PartitionSpec as P

from trm_jax import config
from trm_jax.core import attention, network
from trm_jax.core.halting import Puzzles
from trm_jax.core.model import portable
from trm_jax.errors import UserError
from trm_jax.inspect import program, topology
from trm_jax.run import changes, sharding
from trm_jax.solve import evaluate
from trm_jax.solve.solver import Solver
from trm_jax.train.program import build

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

_TINY = {
  "data": {
    "task": "sudoku", "size": 4, "train": "generate", "test": "generate",
    "num_train": 40, "num_test": 12, "givens": (5, 8),
  },
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 128, "puzzle_emb_len": 8,
    "cycles": 2, "latent_steps": 1, "mixer": "attention", "dtype": "float32",
  },
  "train": {
    "steps": 8, "batch_size": 16, "steps_per_dispatch": 1, "log_every": 2,
    "augment": False,
  },
  "eval": {"batch_size": 16},
}  # fmt: skip


def _experiment(model=(), **sections):
  model = {"model": _TINY["model"] | dict(model)}
  return config.read(_TINY | model | sections)


def _arrays(length, batch=2, heads=2, dtype="float32"):
  """q, k and v `[B, L, H, 8]`, and weights of the output `[H, 8, 16]`."""
  random = np.random.default_rng(0)
  shapes = [(batch, length, heads, 8)] * 3 + [(heads, 8, 16)]
  return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def _attend_and_differentiate(**way):
  """The output, and the gradients of a sum that weighs each of its elements."""

  def weigh(*arrays):
    out = attention.attend(*arrays, **way)
    ramp = jnp.linspace(-9, 9, out.size, dtype=out.dtype).reshape(out.shape)
    return jnp.sum(jnp.cos(ramp) * out), out

  return jax.jit(jax.grad(weigh, argnums=(0, 1, 2, 3), has_aux=True))


def _assert_close(ours, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance * float(jnp.max(jnp.abs(b)))
    ),
    ours,
    expected,
  )


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 13), query_block=st.integers(1, 15))
def test_blocks_of_any_size_equal_all_queries_at_once(length, query_block):
  with jax.enable_x64(True):
    arrays = _arrays(length, dtype="float64")
    ours = _attend_and_differentiate(query_block=query_block)(*arrays)
    _assert_close(ours, _attend_and_differentiate()(*arrays), 1e-13)


@pytest.mark.parametrize(
  ("length", "most"),
  [(150, 1024), (150, 128), (128, 1024)],
  ids=["padded", "in several blocks", "whole lanes"],
)
def test_splash_equals_blocks(length, most, monkeypatch):
  """As Pallas interprets it here; nothing leaks from the padding."""
  interpreted = functools.partial(
    splash_attention_kernel.make_splash_mha_single_device, interpret=True
  )
  monkeypatch.setattr(
    splash_attention_kernel, "make_splash_mha_single_device", interpreted
  )
  monkeypatch.setattr(attention, "_MOST", most)
  arrays = _arrays(length, batch=1)
  ours = _attend_and_differentiate(implementation="splash")(*arrays)
  _assert_close(ours, _attend_and_differentiate()(*arrays), 5e-6)


def test_cudnn_is_asked_for_the_same(monkeypatch):
  asked = []
  plain = jax.nn.dot_product_attention

  def stand_in(q, k, v, implementation):
    asked.append(implementation)
    return plain(q, k, v, implementation="xla")

  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
  arrays = _arrays(9)
  ours = _attend_and_differentiate(implementation="cudnn")(*arrays)
  _assert_close(ours, _attend_and_differentiate()(*arrays), 5e-6)
  assert asked == ["cudnn"]


@pytest.mark.parametrize("query_block", [0, 64])
def test_blocks_never_hold_the_matrix_of_scores(query_block):
  length = 512
  arrays = _arrays(length, batch=1, heads=1)
  learn = _attend_and_differentiate(query_block=query_block)
  text = learn.lower(*arrays).compile().as_text()
  sizes = [
    math.prod(map(int, dims.split(",")))
    for dims in re.findall(r"f32\[([\d,]+)\]", text)
  ]
  assert (max(sizes) >= length**2) == (query_block == 0)


@pytest.mark.parametrize(
  ("taken", "batch", "heads", "part"),
  [
    (set(), 8, 2, (2, 5, 1, 8)),
    (set(), 6, 2, (6, 5, 1, 8)),
    (set(), 8, 3, (2, 5, 3, 8)),
    ({"data"}, 8, 2, (2, 5, 1, 8)),
    ({"data", "model"}, 8, 2, (2, 5, 2, 8)),
  ],
)
def test_a_kernel_sees_one_device_s_part(
  taken, batch, heads, part, monkeypatch
):
  """Whether a `shard_map` has taken axes of the mesh, or it is in force."""
  seen = set()

  def stand_in(q, k, v):
    seen.add(q.shape)
    return attention._mix(q, k, v)

  monkeypatch.setattr(attention, "_splash", stand_in)
  mesh = sharding.make_mesh(4, 2)

  def in_force(*arrays):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return attention.attend(*arrays, implementation="splash")

  in_parts = jax.shard_map(
    functools.partial(attention.attend, implementation="splash"),
    mesh=mesh,
    in_specs=(P("data"), P("data"), P("data"), P()),
    out_specs=P("data"),
    axis_names=taken or {"data"},
    check_vma=False,
  )

  def gradient(attend, *arrays):
    def weigh(*arrays):
      out = attend(*arrays)
      return jnp.sum(jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out)

    return jax.jit(jax.grad(weigh, argnums=(0, 1, 2, 3)))(*arrays)

  arrays = jax.device_put(_arrays(5, batch, heads), sharding.replicated(mesh))
  ours = gradient(in_parts if taken else in_force, *arrays)
  _assert_close(ours, gradient(attention.attend, *arrays), 5e-6)
  assert seen == {part}


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize("model", [1, 2])
def test_the_train_step_compiles_with_splash_for_a_tpu(model):
  experiment = _experiment({"attention": "splash"}, mesh={"model": model})
  slice_ = topology.describe("v5e:2x2")
  data = program.expected_size(experiment)
  text = program.training(experiment, slice_, data).lower().compile().as_text()
  assert "splash_mha_fwd" in text
  assert "splash_mha_dkv" in text


@pytest.mark.aot
@needs_libtpu
def test_evaluation_compiles_with_splash_for_a_tpu():
  experiment = _experiment({"attention": "splash"})
  devices = topology.describe("v5e:2x2").devices
  mesh = sharding.make_mesh(model=2, devices=devices)
  shapes = network.shapes(experiment.model)
  params = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    sharding.shardings(shapes, mesh),
  )

  def placed(dtype, *shape):
    by_batch = sharding.by_batch(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch)

  tokens = placed("int32", 16, 16)
  batch = evaluate.Batch(
    Puzzles(tokens, tokens, placed("int32", 16)), placed("bool", 16)
  )
  lowered = evaluate.scorer(mesh).lower(
    params, batch, 2, experiment.model, experiment.task
  )
  assert "splash_mha_fwd" in lowered.compile().as_text()


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    (dict(attention="flash"), "attention='flash': must be one of blocks, "),
    (dict(attention="cudnn", dtype="float32"), "needs dtype=bfloat16, not flo"),
    (dict(attention="splash", dtype="float64"), "needs dtype=bfloat16 or floa"),
    (
      dict(attention="cudnn", dtype="bfloat16", width=24),
      "multiple of 8, and 128 at most; width / heads = 24 / 2 = 12",
    ),
    (
      dict(attention="cudnn", dtype="bfloat16", width=512, puzzle_emb_len=1),
      "128 at most; width / heads = 512 / 2 = 256",
    ),
  ],
)
def test_what_a_kernel_cannot_compute_is_refused(changes, pattern):
  with pytest.raises(ValueError, match=pattern):
    tiny_model(mixer="attention", **changes)


@pytest.mark.parametrize(
  "changes",
  [
    dict(mixer="mlp", dtype="float64"),
    dict(mixer="attention", family="autoregressive", positions="learned"),
  ],
)
def test_models_that_run_no_kernel_ignore_the_way(changes):
  model = tiny_model(attention="cudnn", **changes)
  assert model.kernel_platform is None
  assert portable(model) == model


def test_a_kernel_stays_where_its_platform_is():
  model = tiny_model(mixer="attention", attention="splash")
  blocks = dataclasses.replace(model, attention="blocks")
  assert portable(model, "tpu") == model
  assert portable(model, "gpu") == blocks
  assert portable(model) == blocks
  assert portable(blocks, "tpu") == blocks


def test_training_on_the_wrong_platform_is_refused():
  experiment = _experiment({"attention": "splash"})
  with pytest.raises(
    UserError,
    match=r"config\.model\.attention='splash'.*'tpu', but these devices are "
    r"'cpu'.*set config\.model\.attention='blocks'",
  ):
    build(experiment)


def test_a_run_may_go_on_with_another_way():
  """What is kept of a config to compare it with does not name the way."""
  other = dict(attention="splash", query_block=4, remat="none")
  ours, theirs = (
    changes.computed(
      {"model": {"width": 16} | model, "train": {"steps": 8} | train}
    )
    for model, train in (({}, {}), (other, {"microbatch": 2}))
  )
  assert ours == theirs == {"model": {"width": 16}, "train": {"steps": 8}}


def test_models_trained_with_a_kernel_are_used_without(split, tmp_path):
  kernel = _experiment({"attention": "splash"})
  plain = _experiment({"attention": "blocks"})
  params = network.init(jax.random.key(0), kernel.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  puzzles = Puzzles(
    *(jnp.asarray(a[:2], jnp.int32) for a in (split.inputs, split.labels)),
    puzzle_ids=jnp.zeros(2, jnp.int32),
  )

  def use(experiment):
    records = evaluate.evaluate(
      params, split, experiment.model, experiment.task, depth=2,
      batch_size=len(split), mesh=mesh,
    )  # fmt: skip
    solver = Solver(params, experiment.model, experiment.task)
    answers, _ = evaluate.refine(params, puzzles, 2, experiment.model)
    return records, solver.model, answers.tolist()

  assert use(kernel) == use(plain)
