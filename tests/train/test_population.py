"""Several seeds trained together: each is what a run of its own would be."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_train

from trm_jax import config as config_lib
from trm_jax.data.batches import Table
from trm_jax.data.sudoku.task import SudokuData
from trm_jax.errors import UserError
from trm_jax.run import checkpoint, metrics, sharding
from trm_jax.run.folder import RunFolder
from trm_jax.train import loop
from trm_jax.train import step as train

SEEDS = (3, 0, 7, 1)


class Told:
  """Progress callbacks that remember."""

  def __init__(self):
    self.messages, self.rows = [], {}

  def say(self, message):
    """Remembers the message."""
    self.messages.append(message)

  def advance(self, step, row):
    """Remembers the row."""
    self.rows[step] = row


@pytest.fixture(scope="module")
def experiment(recipe):
  return config_lib.Experiment(
    data=SudokuData(size=4, train="generate", test="generate", givens=(5, 8)),
    model=recipe.model,
    halting=recipe.halting,
    optim=recipe.optim,
    train=dataclasses.replace(recipe.train, steps=12, log_every=4),
    eval=config_lib.EvalConfig(every=4, depth=2, batch_size=16),
    checkpoint=config_lib.CheckpointConfig(every=4),
    mesh=config_lib.MeshConfig(),
    depth=train.DepthConfig(),
  )


@pytest.fixture(scope="module")
def program(experiment):
  return loop.build(experiment, SEEDS)


def _steps(program, states, split, dispatches=2):
  table = loop.stage(split, program.mesh)
  for i in range(dispatches):
    choices = program.recipe.choices(4 * i, 4)
    states, metrics = program.dispatch(states, table, choices)
  return states, metrics


def test_members_equal_runs_of_their_own(program, experiment, split):
  states, metrics = _steps(program, program.init(), split)
  assert metrics["loss"].shape == (len(SEEDS), 4)
  table = jax.tree.map(jnp.asarray, Table.of(split))
  alone = jax.jit(
    lambda state, recipe=program.recipe: train.train_steps(state, table, recipe)
  )
  for i, seed in enumerate(SEEDS):
    recipe = with_train(program.recipe, seed=seed)
    state = train.init_state(recipe)
    for _ in range(2):
      state, _ = alone(state)
    member = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], states)
    # What is counted and drawn is the same to the bit, ...
    for name in ("step", "cursor", "seed"):
      jax.tree.map(
        np.testing.assert_array_equal, getattr(member, name),
        getattr(state, name),
      )  # fmt: skip
    for name in ("steps", "halted", "puzzles"):
      jax.tree.map(
        np.testing.assert_array_equal, getattr(member.carry, name),
        getattr(state.carry, name),
      )  # fmt: skip
    # ... what is computed up to the order of sums.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
      member.params,
      state.params,
    )


def test_devices_share_members_first_and_then_batches():
  shapes = {n: sharding.make_mesh(members=n).shape for n in (8, 4, 3)}
  assert shapes[8] == {"member": 8, "data": 1, "model": 1}
  assert shapes[4] == {"member": 4, "data": 2, "model": 1}
  assert shapes[3] == {"member": 1, "data": 8, "model": 1}
  with_model = sharding.make_mesh(-1, 2, members=4).shape
  assert with_model == {"member": 4, "data": 1, "model": 2}


def test_members_on_devices_of_their_own_send_each_other_nothing(
  experiment, split
):
  program = loop.build(experiment, range(8))
  table = loop.stage(split, program.mesh)
  lowered = program.dispatch.lower(
    program.abstract, table, program.recipe.choices(0, 4)
  )
  text = lowered.compile().as_text()
  moved = re.findall(r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)", text)
  # Metrics [K] of every member are gathered for the host, once a dispatch; and
  # shuffling asks whether anybody has yet to walk on.
  wanted = re.compile(r"f32\[8,4\]|pred\[\]$")
  assert moved
  assert all(wanted.match(shape) for shape, _ in moved)


def _spoilt(program):
  """Fresh states, the weights of the second member no numbers."""
  states = program.init()
  weights = jax.tree.map(
    lambda leaf: leaf.at[1].set(jnp.nan), states.params.weights
  )
  states = states.replace(params=states.params.replace(weights=weights))
  return jax.device_put(
    states, jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
  )


def test_a_member_that_diverges_does_not_disturb_the_others(program, split):
  clean, _ = _steps(program, program.init(), split)
  spoilt, metrics = _steps(program, _spoilt(program), split)
  assert np.isnan(metrics["loss"][1]).all()
  others = np.array([0, 2, 3])
  for i in others:  # else equal could mean spoilt alike
    assert np.isfinite(metrics["loss"][i]).all()
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      np.asarray(a)[others], np.asarray(b)[others]
    ),
    clean,
    spoilt,
  )


def _fit(experiment, split, folder, monkeypatch=None, stop_at=None):
  held_out, folder = split.take(np.arange(12)), RunFolder(folder)
  folder.claim({}, {})
  if stop_at:

    @contextlib.contextmanager
    def signals():
      yield lambda step: 15 if step >= stop_at else None

    monkeypatch.setattr(loop, "stop_signals", signals)
    with pytest.raises(loop.Stopped) as stopped:
      loop.fit(experiment, folder, split, held_out, Told(), seeds=SEEDS)
    monkeypatch.undo()
    assert stopped.value.step == stop_at
  told = Told()
  members, seconds = loop.fit(
    experiment, folder, split, held_out, told, seeds=SEEDS, tensorboard=True
  )
  assert seconds > 0
  return members, told


@pytest.fixture(scope="module")
def whole(experiment, split, tmp_path_factory):
  """An uninterrupted population: its folder, members and messages."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, *_fit(experiment, split, folder)


def test_members_have_all_that_a_single_run_has(experiment, whole):
  folder, members, told = whole
  rows = list(metrics.read(folder / "metrics.jsonl"))
  for member in members:
    trained = [r for r in rows if r["split"] == f"train/seed{member.seed}"]
    tested = [r for r in rows if r["split"] == f"test/seed{member.seed}"]
    assert [row["step"] for row in trained] == [4, 8, 12]
    assert [row["exact_accuracy"] for row in tested] == [
      record["exact_accuracy"] for record in member.learning
    ]
    assert [record["depth"] for record in member.records] == [1, 2]
  losses = [r["loss"] for r in rows if r["step"] == 4 and "loss" in r]
  assert told.rows[4]["loss"] == pytest.approx(np.mean(losses))
  assert "mean of 4 seeds" in told.messages[-1]
  assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
  # The best checkpoint is chosen by the mean of the members' scores.
  means = {
    step: np.mean([member.learning[i]["exact_accuracy"] for member in members])
    for i, step in enumerate((4, 8, 12))
  }
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    assert means[checkpoints.best] == max(means.values())


def test_a_seed_alone_has_no_axis_of_members(experiment):
  alone = dataclasses.replace(
    experiment, train=dataclasses.replace(experiment.train, seed=3)
  )
  one, other = loop.build(alone), loop.build(experiment, [3])
  assert one.abstract == other.abstract
  assert one.abstract.step.shape == ()
  assert one.mesh.axis_names == ("data", "model")
  jax.tree.map(np.testing.assert_array_equal, one.init(), other.init())


def test_a_diverged_member_stops_and_the_others_end_as_ever(
  experiment, split, whole, tmp_path, monkeypatch
):
  build = loop.build

  def build_spoilt(*arguments):
    program = build(*arguments)
    return dataclasses.replace(program, init=lambda: _spoilt(program))

  monkeypatch.setattr(loop, "build", build_spoilt)
  members, _ = _fit(experiment, split, tmp_path)
  assert [member.diverged_at for member in members] == [None, 1, None, None]
  assert not members[1].learning and not members[1].records
  for i in (0, 2, 3):
    assert members[i].learning == whole[1][i].learning
    jax.tree.map(
      np.testing.assert_array_equal, members[i].params, whole[1][i].params
    )


def test_an_interrupted_population_goes_on_bit_for_bit(
  experiment, split, whole, tmp_path, monkeypatch
):
  parts, _ = _fit(experiment, split, tmp_path, monkeypatch, stop_at=8)
  for a, b in zip(whole[1], parts, strict=True):
    assert (a.seed, a.diverged_at) == (b.seed, b.diverged_at)
    assert a.learning == b.learning
    assert [row["step"] for row in a.learning] == [4, 8, 12]
    assert a.learning[-1]["training_flops"] == (
      train.Recipe.of(experiment).training_flops(12)
    )
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_divergence_is_dated_and_survives_a_restart(
  experiment, split, tmp_path
):
  """A learning rate that overflows float32 spoils every member."""
  wild = dataclasses.replace(
    experiment,
    optim=dataclasses.replace(experiment.optim, lr=1e38, weight_decay=1e3),
  )
  members, _ = _fit(wild, split, tmp_path / "members")
  assert all(0 < member.diverged_at <= 12 for member in members)
  again, _ = _fit(wild, split, tmp_path / "members")
  assert [m.diverged_at for m in again] == [m.diverged_at for m in members]
  # A run of one seed ends by an error; in a study it is marked.
  folder = RunFolder(tmp_path / "single")
  folder.claim({}, {})
  with pytest.raises(UserError, match=r"at step \d+ .*smaller config.optim.lr"):
    loop.fit(wild, folder, split, None, Told())
  (member,), _ = loop.fit(wild, folder, split, None, Told(), seeds=[0])
  assert 0 < member.diverged_at <= 12


def test_a_batch_that_devices_cannot_share_is_refused(experiment):
  odd = dataclasses.replace(
    experiment, eval=dataclasses.replace(experiment.eval, batch_size=12)
  )
  with pytest.raises(UserError, match=r"eval\.batch_size=12: must be a mult"):
    loop.build(odd, SEEDS)
