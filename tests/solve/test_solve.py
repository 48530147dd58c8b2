"""Law 12, and what rollouts owe to nothing but their puzzle and their number.

In float64, for sums over batches of different sizes differ in their last bits
and recursion amplifies them.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import flops, network, recursion
from trm_jax.core.family import FAMILIES
from trm_jax.core.halting import Outputs, Puzzles
from trm_jax.data.maze.task import maze_task
from trm_jax.data.sudoku import generate
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.data.task import judge
from trm_jax.errors import UserError
from trm_jax.solve import engine, evaluate, score
from trm_jax.solve.choose import Answers
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Solver

TASK = sudoku_task(4)
RECURSIVE = [name for name, one in FAMILIES.items() if one.is_recursive]
DEPTH = 7
ALL = range(1, DEPTH + 1)


@pytest.fixture(autouse=True, scope="module")
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def puzzles():
  inputs, labels, _ = generate.generate(4, 37, seed=0, givens=(5, 8))
  return inputs, labels


def _model(family="trm", **changes):
  if family == "autoregressive":
    changes |= {"mixer": "attention", "positions": "rotary"}
  return tiny_model(
    family=family, dtype="float64", param_dtype="float64", num_puzzle_ids=3,
    **changes,
  )  # fmt: skip


@functools.cache
def _params(model):
  """Random; it comes to rest in the end, and its head says yes at times."""
  params = network.init(jax.random.key(0), model)
  weights = dict(params.weights)
  for stack in ("blocks", "answer_blocks"):
    if stack in weights:
      weights[stack] = jax.tree.map(lambda w: 0.35 * w, weights[stack])
  if "q_head" in weights:
    kernel = weights["q_head"]["kernel"]
    weights["q_head"] = {
      "kernel": jax.random.normal(jax.random.key(5), kernel.shape),
      "bias": jnp.array([-3.0, 0.0]),
    }
  table = jax.random.normal(jax.random.key(6), params.puzzle_table.shape)
  return params.replace(weights=weights, puzzle_table=table)


def _solver(slots=8, devices=1, **changes):
  model = _model(**changes)
  return Solver(_params(model), model, TASK, slots, jax.devices()[:devices])


def _ids(inputs):
  return np.arange(len(inputs)) % 3


def _refine(solver, params, inputs, depth):
  puzzles = Puzzles.of(
    jnp.asarray(inputs), jnp.asarray(inputs), jnp.asarray(_ids(inputs))
  )
  return jax.device_get(evaluate.refine(params, puzzles, depth, solver.model))


RULES = {
  "q": SolveConfig(depth=DEPTH, halt=("q",), threshold=-1.0),
  "unchanged": SolveConfig(depth=DEPTH, halt=("unchanged",), patience=2),
  "residual": SolveConfig(depth=DEPTH, halt=("residual",), tolerance=0.15),
  "any": SolveConfig(
    depth=DEPTH, halt=("q", "unchanged"), threshold=0.5, patience=1
  ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_depth_gives_what_evaluation_gives(family, puzzles):
  inputs, _ = puzzles
  solver = _solver(family=family)
  depth = DEPTH if family in RECURSIVE else 1
  found = solver.solve(inputs, _ids(inputs), SolveConfig(depth=DEPTH), ALL)
  answers, q_halt = _refine(solver, _params(solver.model), inputs, depth)
  assert found.marks == tuple(range(1, depth + 1))
  np.testing.assert_array_equal(found.answers[:, 0].swapaxes(0, 1), answers)
  if family != "hrm":  # whose margin is the lead over "continue"
    np.testing.assert_allclose(found.q_halt[:, 0].T, q_halt, rtol=1e-5)
  assert (found.steps[:, 0] == found.marks).all()
  assert not found.halted.any()
  assert found.spent == depth * len(inputs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", RECURSIVE)
def test_halting_gives_what_fixed_depth_gives_at_that_step(
  family, rule, puzzles
):
  inputs, _ = puzzles
  solver = _solver(family=family)
  settings = RULES[rule]
  fixed = solver.solve(inputs, _ids(inputs), SolveConfig(depth=DEPTH), ALL)
  steps = score.halting_steps(score.halting_values(fixed), settings)[:, 0]
  found = solver.solve(inputs, _ids(inputs), settings, ALL)
  np.testing.assert_array_equal(found.steps[:, 0, -1], steps)
  rows = np.arange(len(inputs))
  for name in ("answers", "q_halt", "residual"):
    np.testing.assert_array_equal(
      getattr(found, name)[:, 0, -1], getattr(fixed, name)[rows, 0, steps - 1]
    )
  assert found.spent == steps.sum()


def test_the_rules_above_halt_some_and_not_others(puzzles):
  """Else the law would hold for nothing."""
  inputs, _ = puzzles
  solver = _solver()
  for settings in RULES.values():
    steps = solver.solve(inputs, _ids(inputs), settings, ALL).steps[:, :, -1]
    assert 1 <= steps.min() < steps.max() <= DEPTH


def test_a_halted_rollout_keeps_its_answer_at_later_marks(puzzles):
  inputs, _ = puzzles
  found = _solver().solve(inputs, _ids(inputs), RULES["q"], (2, 4))
  assert found.marks == (2, 4, DEPTH)
  for early, late in ((0, 1), (1, 2)):
    done = found.steps[:, 0, early] < found.marks[early]
    assert done.any()
    np.testing.assert_array_equal(
      found.answers[done, 0, early], found.answers[done, 0, late]
    )
  assert (found.steps <= found.marks).all()


def test_solutions_halt_where_a_task_has_rules(puzzles):
  inputs, labels = puzzles
  settings = SolveConfig(depth=3, halt=("solved",))

  class Oracle:
    """Judges by the puzzle alone: it has an even number of blanks."""

    def __call__(self, inputs, answers):
      return (jnp.asarray(inputs) == 1).sum(-1) % 2 == 0

  task = dataclasses.replace(TASK, is_solution=Oracle())
  model = _model()
  solver = Solver(_params(model), model, task, 8, jax.devices()[:1])
  steps = solver.solve(inputs, _ids(inputs), settings).steps[:, 0, 0]
  even = (inputs == 1).sum(-1) % 2 == 0
  assert (steps == np.where(even, 1, 3)).all()
  assert 0 < even.sum() < len(even)
  assert judge(inputs, labels, TASK).all()
  assert not judge(inputs, inputs[:, None], TASK).any()


@pytest.mark.parametrize(("slots", "devices"), [(5, 1), (64, 1), (7, 3)])
def test_batch_and_devices_change_nothing(slots, devices, puzzles):
  """Nor does the smaller batch that takes over at the end (64 slots)."""
  inputs, _ = puzzles
  settings = dataclasses.replace(
    RULES["q"], breadth=3, cycle_noise=0.5, initial_noise=0.3, views=True
  )
  found = _solver(slots, devices).solve(inputs, _ids(inputs), settings, (2,))
  other = _solver(16).solve(inputs, _ids(inputs), settings, (2,))
  np.testing.assert_array_equal(found.steps, other.steps)
  np.testing.assert_array_equal(found.answers, other.answers)
  np.testing.assert_allclose(found.q_halt, other.q_halt, rtol=1e-5, atol=1e-5)
  assert found.spent == other.spent


def test_more_rollouts_and_other_puzzles_change_nothing(puzzles):
  inputs, _ = puzzles
  settings = dataclasses.replace(RULES["q"], breadth=4, cycle_noise=0.5)
  solver = _solver()
  many = solver.solve(inputs, _ids(inputs), settings)
  few = solver.solve(
    inputs[:9], _ids(inputs[:9]), dataclasses.replace(settings, breadth=2)
  )
  np.testing.assert_array_equal(many.answers[:9, :2], few.answers)
  np.testing.assert_array_equal(many.steps[:9, :2], few.steps)
  # In rounds that fit, too: noise goes by a puzzle's number in all of them.


def test_rounds_change_nothing(puzzles, monkeypatch):
  inputs, _ = puzzles
  settings = dataclasses.replace(RULES["q"], breadth=2, cycle_noise=0.5)
  whole = _solver().solve(inputs, _ids(inputs), settings)
  monkeypatch.setattr("trm_jax.solve.solver._MEMORY_BYTES", 10 * 2 * 16)
  told = []
  parts = _solver().solve(
    inputs, _ids(inputs), settings, on_progress=lambda *now: told.append(now)
  )
  np.testing.assert_array_equal(whole.answers, parts.answers)
  assert whole.spent == parts.spent
  assert told[-1] == (74, 74)
  assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_all_rollouts_but_the_first_are_perturbed(puzzles):
  inputs, _ = puzzles
  solver = _solver()
  fixed = SolveConfig(depth=3)
  plain = solver.solve(inputs, _ids(inputs), fixed)
  for noise in ({"cycle_noise": 0.5}, {"initial_noise": 2.0, "cycle_noise": 0}):
    noisy = solver.solve(
      inputs, _ids(inputs), dataclasses.replace(fixed, breadth=3, **noise)
    )
    np.testing.assert_array_equal(noisy.answers[:, 0], plain.answers[:, 0])
    q = noisy.q_halt[:, :, 0]
    assert (q[:, 1] != q[:, 0]).all()
    assert (q[:, 1] != q[:, 2]).all()
  again = solver.solve(
    inputs, _ids(inputs),
    dataclasses.replace(fixed, breadth=3, cycle_noise=0.5, seed=1),
  )  # fmt: skip
  assert (again.q_halt[:, 1] != noisy.q_halt[:, 1]).all()


@pytest.mark.parametrize("family", ["hrm", "multi_latent"])
def test_noise_reaches_every_family(family, puzzles):
  inputs, _ = puzzles
  settings = SolveConfig(depth=2, breadth=2, cycle_noise=0.5)
  found = _solver(family=family).solve(inputs, _ids(inputs), settings)
  assert (found.q_halt[:, 0] != found.q_halt[:, 1]).all()


@pytest.mark.parametrize("family", RECURSIVE)
def test_latents_are_perturbed_before_each_cycle(family):
  """What is put in their place before the last cycle is all that it sees."""
  model = _model(family, cycles=3)
  params = _params(model)
  start = recursion.initial_latents(params.initial, 5, model)
  other = jax.tree.map(lambda leaf: leaf[::-1] * 0.5 + 0.1, start)
  x = jax.random.normal(jax.random.key(8), start.y.shape)
  last = 0 if family == "transformer" else 2

  def replace(latents, cycle):
    return jax.tree.map(
      lambda new, old: jnp.where(cycle == last, new, old), other, latents
    )

  def step(latents, model, perturb):
    return recursion.supervision_step(
      params.weights, latents, x, model, perturb=perturb
    )

  replaced = step(start, model, replace)
  alone = step(other, dataclasses.replace(model, cycles=1), None)
  jax.tree.map(np.testing.assert_array_equal, replaced, alone)


def test_noise_has_the_deviation_that_was_asked_for():
  model = _model()
  latents = recursion.initial_latents(_params(model).initial, 5, model)
  keys = jax.random.split(jax.random.key(0), 5)
  plan = engine.Plan(model, TASK, 5, True, False, False, 1)
  perturb = engine._perturbation(keys, 0.3, jnp.arange(5), plan)
  noisy, later = perturb(latents, 0), perturb(latents, 1)
  for before, after, other in zip(
    *map(jax.tree.leaves, (latents, noisy, later)), strict=True
  ):
    assert (after[0] == before[0]).all()
    added = after[1:] - before[1:]
    np.testing.assert_allclose(added.std(), 0.3, rtol=0.05)
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.2
    assert (other[1:] != after[1:]).all()


@pytest.mark.parametrize("task", [TASK, sudoku_task(6), maze_task(5)])
def test_views_are_undone(task):
  keys = jax.random.split(jax.random.key(1), 20)
  tokens = jax.random.randint(
    jax.random.key(2), (task.seq_len,), 0, task.vocab_size
  )
  kinds = set()
  for key in keys:
    symmetry = task.views.sample(key, None, None)
    shown = task.views.apply(symmetry, tokens)
    kinds.add(tuple(shown.tolist()))
    assert (task.views.undo(symmetry, shown) == tokens).all()
  assert len(kinds) > 4


def test_a_view_is_answered_as_the_puzzle_itself(puzzles):
  """A model that copies the question: views then change nothing at all."""
  inputs, _ = puzzles
  model = _model("feedforward", puzzle_emb_ndim=0)
  params = _params(model)
  tokens = jnp.eye(model.vocab_size, model.width, dtype=jnp.float64)
  weights = dict(params.weights)
  weights["embed"] = {"tokens": tokens}
  weights["lm_head"] = {"kernel": tokens.T}
  weights["blocks"] = jax.tree.map(jnp.zeros_like, weights["blocks"])
  solver = Solver(
    params.replace(weights=weights), model, TASK, 8, jax.devices()[:1]
  )
  settings = SolveConfig(depth=1, breadth=3, views=True)
  found = solver.solve(inputs, 0 * _ids(inputs), settings)
  for k in range(3):
    np.testing.assert_array_equal(found.answers[:, k, 0], inputs)


def test_siblings_of_the_first_stop_and_the_choice_stays(puzzles):
  inputs, _ = puzzles
  settings = dataclasses.replace(
    RULES["q"], breadth=4, cycle_noise=0.5, select="first"
  )
  solver = _solver(16)
  pruned = solver.solve(inputs, _ids(inputs), settings)
  whole = solver.solve(inputs, _ids(inputs), settings, prune=False)
  assert pruned.spent < whole.spent
  chosen = [Answers.of(r, -1, 4).choose("first") for r in (pruned, whole)]
  np.testing.assert_array_equal(*chosen)
  rows = np.arange(len(inputs))
  np.testing.assert_array_equal(
    pruned.answers[rows, chosen[0]], whole.answers[rows, chosen[0]]
  )
  alone = (pruned.steps[:, :, 0] == 0).any(-1)
  assert alone.any()


def test_a_budget_of_flops_is_kept(puzzles):
  inputs, _ = puzzles
  solver = _solver()
  step = flops.inference(solver.model, 1)
  settings = SolveConfig(depth=DEPTH, breadth=2, flops=7 * step)
  assert solver.depth_of(settings) == 3
  found = solver.solve(inputs, _ids(inputs), settings)
  assert found.flops_per_puzzle == 6 * step
  with pytest.raises(UserError, match=r"flops=10.*allow that or more"):
    solver.solve(inputs, _ids(inputs), dataclasses.replace(settings, flops=10))


def test_when_time_is_over_everything_still_gets_an_answer(puzzles):
  inputs, _ = puzzles
  solver = _solver(2)
  settings = SolveConfig(depth=10_000, seconds=1e-6)
  found = solver.solve(inputs, _ids(inputs), settings)
  steps = found.steps[:, 0, 0]
  assert (steps >= 1).all()
  assert steps.max() < 20
  late = np.flatnonzero(steps == 1)
  fixed = solver.solve(inputs, _ids(inputs), SolveConfig(depth=1))
  assert len(late) > 20
  np.testing.assert_array_equal(
    found.answers[late, 0, 0], fixed.answers[late, 0, 0]
  )


def test_nothing_is_compiled_twice(puzzles, caplog):
  inputs, _ = puzzles
  solver = _solver(8, width=24)

  def compiled():
    return [r for r in caplog.records if "Compiling jit(go_on)" in r.message]

  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    solver.compile(len(inputs), SolveConfig(depth=3))
    assert len(compiled()) == 1
    for settings in (SolveConfig(depth=3), SolveConfig(depth=9), RULES["any"]):
      solver.solve(inputs[:30], _ids(inputs[:30]), settings)
    assert len(compiled()) == 1


def test_no_puzzles_are_no_trouble():
  solver = _solver()
  nothing = np.zeros((0, 16), np.uint8)
  found = solver.solve(nothing, np.zeros(0, int), SolveConfig(breadth=2))
  assert found.answers.shape == (0, 2, 1, 16)
  assert found.flops_per_puzzle == 0


@pytest.mark.parametrize(
  ("changes", "settings", "message"),
  [
    ({"family": "feedforward"}, {"breadth": 2}, "no latents"),
    ({}, {"breadth": 2, "cycle_noise": 0.0}, "all rollouts would be the same"),
  ],
)
def test_settings_that_do_not_suit_are_refused(changes, settings, message):
  with pytest.raises(UserError, match=message):
    _solver(**changes).solve(
      np.ones((1, 16), np.uint8), np.zeros(1, int), SolveConfig(**settings)
    )


def test_what_a_task_lacks_is_refused():
  model = _model()
  task = dataclasses.replace(TASK, augmentation=None, is_solution=None)
  solver = Solver(_params(model), model, task, 4, jax.devices()[:1])
  asked = np.ones((1, 16), np.uint8), np.zeros(1, int)
  for settings, message in (
    ({"breadth": 2, "views": True}, "views"),
    ({"halt": ("solved",)}, "halt='solved'"),
    ({"select": "solved"}, "select='solved'"),
  ):
    with pytest.raises(UserError, match=message):
      solver.solve(*asked, SolveConfig(**settings))
    with pytest.raises(UserError, match=message):
      solver.compile(1, SolveConfig(**settings))
  with pytest.raises(UserError, match="puzzle ids go from 3 to 3"):
    solver.solve(asked[0], np.array([3]), SolveConfig())


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("depth", 0), ("breadth", 0), ("patience", 0), ("tolerance", -1.0),
    ("cycle_noise", float("inf")), ("flops", float("nan")), ("seconds", -1.0),
    ("seed", 2**32), ("halt", ("often",)), ("select", "best"),
    ("threshold", float("nan")),
  ],
)  # fmt: skip
def test_wrong_settings_name_their_field(field, value):
  with pytest.raises(ValueError, match=f"^{field}="):
    SolveConfig(**{field: value})


def test_the_grid_is_what_each_depth_and_breadth_would_give(puzzles):
  inputs, _ = puzzles
  solver = _solver(16)
  noise = {"cycle_noise": 1.0, "seed": 3}
  settings = SolveConfig(depth=4, breadth=4, **noise)
  found = solver.solve(inputs, _ids(inputs), settings, (1, 2), prune=False)
  # The right answer is whatever the third rollout says after two steps.
  labels = found.answers[:, 2, 1]
  selects = ("q", "vote", "residual")
  records = score.grid(found, inputs, labels, TASK, (1, 3), selects)
  assert len(records) == 3 * 2 * 3
  for record in records:
    alone = solver.solve(
      inputs, _ids(inputs),
      SolveConfig(depth=record["depth"], breadth=record["breadth"], **noise),
    )  # fmt: skip
    standing = Answers.of(alone, 0, record["breadth"])
    chosen = standing.choose(record["select"])
    right = (alone.answers[:, :, 0] == labels[:, None]).all(-1)
    rows = np.arange(len(inputs))
    assert record["exact_accuracy"] == right[rows, chosen].mean()
    assert record["oracle_accuracy"] == right.any(-1).mean()
    assert record["flops_per_puzzle"] == pytest.approx(alone.flops_per_puzzle)
    if record["depth"] == 2 and record["breadth"] >= 3:
      assert record["oracle_accuracy"] == 1


def test_the_halting_margin_of_hrm_is_a_lead():
  outputs = Outputs(
    logits=jnp.zeros((1, 1, 2)), q_halt=jnp.array([1.0]),
    q_continue=jnp.array([3.0]),
  )  # fmt: skip
  assert outputs.halting_margin(_model("hrm")) == -2
  assert outputs.halting_margin(_model("trm")) == 1
