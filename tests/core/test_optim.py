"""Update rules against loops written anew in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from trm_jax.core import optim
from trm_jax.core.optim import OptimConfig
from trm_jax.run import sharding


def test_adam_atan2_equals_the_formula():
  config = OptimConfig(lr=0.1, weight_decay=0.2, warmup_steps=0)
  optimizer = optim.weights_optimizer(config, total_steps=10)
  params = {"w": jnp.array([1.0, -2.0, 0.5])}
  state = optimizer.init(params)
  p = np.array([1.0, -2.0, 0.5])
  m = v = np.zeros(3)
  for t in range(1, 6):
    g = np.array([np.sin(t), 0.0, 1e-12 * t])
    updates, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
    params = optax.apply_updates(params, updates)
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g**2
    p = p * (1 - 0.1 * 0.2)
    p -= 0.1 / (1 - 0.9**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - 0.95**t))
    np.testing.assert_allclose(params["w"], p, rtol=2e-5, atol=1e-6)


def test_sign_sgd_touches_only_rows_of_the_batch():
  table = jax.random.normal(jax.random.key(0), (10, 4))
  ids = jnp.array([7, 2, 7, 7, 0])
  gradients = jax.random.normal(jax.random.key(1), (5, 4))
  gradients = gradients.at[:, 3].set(0.0)  # sign(0) is 0: only decay
  ours = jax.jit(optim.sign_sgd_rows)(table, ids, gradients, 0.1, 0.5)
  expected = np.array(table)
  for row in (0, 2, 7):
    summed = np.sum(np.asarray(gradients)[np.asarray(ids) == row], axis=0)
    expected[row] = expected[row] * (1 - 0.1 * 0.5) - 0.1 * np.sign(summed)
  np.testing.assert_allclose(ours, expected, rtol=1e-6)
  untouched = [1, 3, 4, 5, 6, 8, 9]
  np.testing.assert_array_equal(ours[untouched, :], table[untouched, :])


def test_sign_sgd_of_a_model_without_puzzle_embeddings():
  table = jnp.zeros((3, 0))
  ours = optim.sign_sgd_rows(
    table, jnp.zeros(4, jnp.int32), jnp.zeros((4, 0)), 0.1, 0.1
  )
  assert ours.shape == (3, 0)


def test_warmup_counts_as_the_reference_does():
  schedule = optim.warmup_schedule(2.0, OptimConfig(warmup_steps=4), 100)
  rates = [float(schedule(jnp.int32(t))) for t in (0, 1, 3, 4, 50)]
  np.testing.assert_allclose(rates, [0.5, 1.0, 2.0, 2.0, 2.0])


def test_cosine_ends_at_its_ratio():
  config = OptimConfig(warmup_steps=10, schedule="cosine", lr_min_ratio=0.1)
  schedule = optim.warmup_schedule(1.0, config, 110)
  assert schedule(jnp.int32(9)) == pytest.approx(1.0)
  assert schedule(jnp.int32(59)) == pytest.approx(0.55, abs=1e-3)
  assert schedule(jnp.int32(109)) == pytest.approx(0.1)
  assert schedule(jnp.int32(500)) == pytest.approx(0.1)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("lr", -1.0),
    ("beta1", 1.0),
    ("ema", -0.1),
    ("schedule", "linear"),
    ("kind", "muom"),
  ],
)
def test_impossible_settings_are_named(field, value):
  with pytest.raises(ValueError, match=f"{field}="):
    OptimConfig(**{field: value})


# D = 8, F = 24, H = 2, K = 4, V = 5.
SHAPES = {
  "embed": {"tokens": (5, 8)},
  "blocks": {
    "block_0": {
      "mixer": {"qkv": (8, 3, 2, 4), "out": (2, 4, 8)},
      "mlp": {"gate_up": (8, 2, 24), "down": (24, 8), "scale": (8, 8)},
    }
  },
  "answer_blocks": {"block_0": {"mlp": {"gate_up": (8, 2, 24)}}},
  "lm_head": {"kernel": (8, 5), "out": (2, 4, 5)},
  "q_head": {"kernel": (8, 2), "bias": (2,)},
}
MUON = OptimConfig(kind="muon", lr=0.5, weight_decay=0.0, warmup_steps=0)


def _draw(seed):
  """Arrays of `SHAPES`, whose rows become ever smaller."""
  random = np.random.default_rng(seed)

  def draw(shape):
    sizes = 0.7 ** np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.float32(random.normal(size=shape) * sizes)

  return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def _matrices(weights):
  """Name -> matrix `[inputs, outputs]`, for all that Muon is to update."""
  found = {}
  for stack in ("blocks", "answer_blocks"):
    block = weights[stack]["block_0"]
    gate_up = block["mlp"]["gate_up"]
    found |= {f"{stack}/gate": gate_up[:, 0], f"{stack}/up": gate_up[:, 1]}
  block = weights["blocks"]["block_0"]
  qkv = block["mixer"]["qkv"]
  found |= {name: qkv[:, i].reshape(8, 8) for i, name in enumerate("qkv")}
  found["out"] = block["mixer"]["out"].reshape(8, 8)
  found["down"] = block["mlp"]["down"]
  return found


def _others(weights):
  """The weights that AdamATan2 is to update."""
  mlp = weights["blocks"]["block_0"]["mlp"]
  heads = {name: weights[name] for name in ("embed", "lm_head", "q_head")}
  return heads | {"scale": mlp["scale"]}


def _steps(config, weights, gradients):
  """The weights after a step with each of the gradients, `[T, ...]` each."""
  optimizer = optim.weights_optimizer(config, total_steps=10)

  def step(carry, gradient):
    weights, state = carry
    updates, state = optimizer.update(gradient, state, weights)
    return (optax.apply_updates(weights, updates), state), None

  start = (weights, optimizer.init(weights))
  return jax.lax.scan(step, start, gradients)[0][0]


def _stack(*trees):
  return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)


def test_muon_makes_the_singular_values_of_every_matrix_equal():
  weights, gradient = _draw(0), _draw(1)
  after = jax.device_get(_steps(MUON, weights, _stack(gradient)))
  step = _matrices(jax.tree.map(np.subtract, weights, after))
  for name, raw in _matrices(gradient).items():
    scale = 0.5 * 0.2 * np.sqrt(max(raw.shape))
    u, s, vh = np.linalg.svd(raw, full_matrices=False)
    assert s[0] > 4 * s[-1], name  # what there was to do
    # Seen along the gradient's own directions, the step is about the identity:
    # five iterations bring singular values near 1, not to it.
    seen = u.T @ step[name] @ vh.T / scale
    np.testing.assert_allclose(
      seen, np.diag(np.diag(seen)), atol=1e-3, err_msg=name
    )
    assert np.all(np.abs(np.diag(seen) - 0.95) < 0.3), name
    size = np.sqrt(np.mean(np.square(step[name])))
    assert size == pytest.approx(0.5 * 0.2, rel=0.2), name


def test_all_but_muons_matrices_follow_adam_atan2():
  weights, gradients = _draw(0), _stack(_draw(1), _draw(2), _draw(3))
  config = OptimConfig(lr=0.1, weight_decay=0.2, warmup_steps=2)
  theirs = _steps(config, weights, gradients)
  config = OptimConfig(kind="muon", lr=0.1, weight_decay=0.2, warmup_steps=2)
  ours = _steps(config, weights, gradients)
  jax.tree.map(np.testing.assert_array_equal, _others(ours), _others(theirs))
  for name, matrix in _matrices(theirs).items():
    assert not np.allclose(matrix, _matrices(ours)[name], atol=1e-2), name


@pytest.mark.parametrize("kind", optim.KINDS)
def test_without_a_gradient_every_weight_decays_by_the_schedule(kind):
  config = OptimConfig(kind=kind, lr=0.1, weight_decay=0.5, warmup_steps=2)
  weights = _draw(0)
  zeros = jax.tree.map(np.zeros_like, weights)
  jax.tree.map(
    lambda old, new: np.testing.assert_allclose(
      new, old * (1 - 0.05 * 0.5) * (1 - 0.1 * 0.5), rtol=1e-6
    ),
    weights,
    _steps(config, weights, _stack(zeros, zeros)),
  )


def test_muon_falls_to_the_bottom_of_a_bowl():
  config = dataclasses.replace(MUON, lr=1.0, schedule="cosine", lr_min_ratio=0)
  optimizer = optim.weights_optimizer(config, 60)
  target = _draw(9)

  def loss_of(weights):
    return optax.tree.norm(optax.tree.sub(weights, target), squared=True)

  def step(carry, _):
    weights, state = carry
    loss, gradient = jax.value_and_grad(loss_of)(weights)
    updates, state = optimizer.update(gradient, state, weights)
    return (optax.apply_updates(weights, updates), state), loss

  start = (_draw(0), optimizer.init(_draw(0)))
  losses = jax.lax.scan(step, start, length=60)[1]
  assert losses[-1] < 1e-2 * losses[0]


def test_a_population_of_muons_equals_each_alone():
  config = dataclasses.replace(MUON, weight_decay=0.1, warmup_steps=2)
  starts = [_draw(0), _draw(1)]
  gradients = [_stack(*map(_draw, seeds)) for seeds in ((2, 3, 4), (5, 6, 7))]
  steps = functools.partial(_steps, config)
  alone = map(jax.jit(steps), starts, gradients)
  together = jax.jit(jax.vmap(steps), donate_argnums=0)
  population = jax.tree.map(jnp.asarray, _stack(*starts))
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(
      ours, theirs, rtol=1e-3, atol=1e-4
    ),
    together(population, _stack(*gradients)),
    _stack(*alone),
  )
  assert all(array.is_deleted() for array in jax.tree.leaves(population))


def test_the_state_of_muon_lies_as_its_weights_do():
  mesh = sharding.make_mesh(4, 2)
  init = optim.weights_optimizer(MUON, 10).init
  placed = sharding.shardings(jax.eval_shape(init, _draw(0)), mesh)
  specs = [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.spec)
    for path, leaf in jax.tree.leaves_with_path(placed)
  ]
  for name, spec, moments in (
    ("mlp/gate_up", P(None, None, "model"), 2),  # of blocks and answer_blocks
    ("mlp/down", P("model", None), 1),
    ("mixer/qkv", P(None, None, "model", None), 1),
    ("mixer/out", P("model", None, None), 1),
    ("mlp/scale", P(), 2),  # AdamATan2 has two
  ):
    found = [s for path, s in specs if path.endswith(f"block_0/{name}")]
    assert found == [spec] * moments, name
