"""Populations: the seeds of one setting, trained together in one program.

The state of every member is stacked along a leading axis, the training step is
vmapped over it, and devices share the members. Members differ in their seed
alone and never meet: each is what a run of its own would be, and one that
diverges does not disturb the others.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trm_jax.config import Experiment
from trm_jax.core import network
from trm_jax.core.network import Params
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.run import checkpoint, metrics, processes, sharding
from trm_jax.solve import evaluate
from trm_jax.train import loop as fit
from trm_jax.train import step as train


@dataclasses.dataclass(frozen=True)
class Program:
  """A population's compiled parts; compare `fit.Program`.

  Attributes:
    mesh: the devices, with axes ("member", "data", "model").
    recipe: what a step does, but for its seed.
    abstract: the stacked states' shapes, dtypes and shardings.
    init: makes fresh states.
    dispatch: `(states, table, choices) -> (states, metrics [M, K])`.
    member: `(states, i) -> Params`, the averaged model of one member, on every
      device.
  """

  mesh: Mesh
  recipe: train.Recipe
  abstract: train.TrainState
  init: Callable[[], train.TrainState]
  dispatch: Callable[[train.TrainState, Table, Any], Any]
  member: Callable[[train.TrainState, Any], Params]


@dataclasses.dataclass(frozen=True)
class Member:
  """What became of one seed.

  Attributes:
    seed: the seed.
    params: the averaged model after the last step.
    diverged_at: the first step with a value that is not finite, or None.
    learning: an evaluation's record at the deepest of its depths, with its
      `step`, for each evaluation while training.
  """

  seed: int
  params: Params
  diverged_at: int | None
  learning: list[evaluate.Record]


def build(experiment: Experiment, seeds: Sequence[int]) -> Program:
  """Lays a population out over the devices.

  Args:
    experiment: what to train; its own seed is not read.
    seeds: one a member.

  Raises:
    UserError: if the devices do not suit the config.
  """
  settings = experiment.mesh
  mesh = sharding.make_mesh(settings.data, settings.model, len(seeds))
  sharding.check_batch(
    "config.train.batch_size", experiment.train.batch_size, mesh
  )
  sharding.check_batch(
    "config.eval.batch_size", experiment.eval.batch_size, mesh, shared=True
  )
  fit.check_kernel(experiment, mesh)
  return lay_out(experiment, seeds, mesh)


def lay_out(
  experiment: Experiment, seeds: Sequence[int], mesh: Mesh
) -> Program:
  """`build` for a given mesh, whose devices may be only described."""
  recipe = train.Recipe.of(experiment)
  if mesh.shape["model"] > 1 or recipe.model.attention == "cudnn":
    # Below a map over members, JAX cannot give a kernel's heads to "model",
    # nor differentiate cuDNN's.
    model = network.portable(recipe.model)
    recipe = dataclasses.replace(recipe, model=model)
  numbers = np.asarray(seeds, np.uint32)
  parts = experiment.train.parts(mesh.shape["data"])
  spread = sharding.over_slots(mesh, parts)

  def init():
    return jax.vmap(lambda seed: train.init_state(recipe, seed))(numbers)

  def dispatch(states, table, choices):
    steps = jax.vmap(
      lambda state: train.train_steps(state, table, recipe, choices, spread),
      spmd_axis_name="member",
    )
    return steps(states)

  def member(states, i):
    return jax.tree.map(lambda leaf: leaf[i], states.averaged_params)

  shapes = jax.eval_shape(init)
  placed = sharding.shardings(shapes, mesh, stacked=True)
  whole = sharding.replicated(mesh)
  return Program(
    mesh=mesh,
    recipe=recipe,
    abstract=checkpoint.abstract_state(shapes, placed),
    init=jax.jit(init, out_shardings=placed),
    dispatch=jax.jit(dispatch, out_shardings=(placed, whole), donate_argnums=0),
    member=jax.jit(member, out_shardings=whole),
  )


def fit_population(
  experiment: Experiment,
  seeds: Sequence[int],
  folder: pathlib.Path,
  training: Split,
  held_out: Split,
  watcher: fit.Watcher,
) -> tuple[list[Member], float]:
  """Trains a population to the end, from wherever its checkpoint stands.

  Args:
    experiment: what to do.
    seeds: one a member.
    folder: for `checkpoints/` and `metrics.jsonl`, whose rows have the split
      "seed0", "seed1", ... .
    training: training puzzles.
    held_out: puzzles for evaluation, every `eval.every` steps.
    watcher: told of progress.

  Returns:
    The members in the order of `seeds`, and the seconds that training took.

  Raises:
    fit.Stopped: after a signal, once everything is saved.
    UserError: if a checkpoint cannot be read or written.
  """
  program = build(experiment, seeds)
  table = fit.stage(training, program.mesh)
  leader = processes.is_leader()
  with (
    checkpoint.Checkpoints(folder / "checkpoints", keep=1) as checkpoints,
    contextlib.ExitStack() as closing,
  ):
    step, states = 0, None
    if checkpoints.latest is not None:
      step = checkpoints.latest
      states = checkpoints.restore(step, program.abstract)
      watcher.say(f"resumed from the checkpoint of step {step}")
    else:
      states = program.init()
    log = _Log(folder / "metrics.jsonl", seeds, step, leader)
    closing.callback(log.close)
    stop_requested = closing.enter_context(fit.stop_signals())
    last = experiment.train.steps
    count = experiment.train.steps_per_dispatch
    started = time.perf_counter()
    begun, before = step, log.seconds
    pending = None
    while step < last and not log.all_diverged:
      choices = program.recipe.choices(step, count)
      states, found = program.dispatch(states, table, choices)
      step += count
      # Read one dispatch late, so that the device never waits.
      pending, previous = (step, found), pending
      if previous:
        row = log.absorb(*previous)
        seconds = log.seconds - before + time.perf_counter() - started
        watcher.advance(
          previous[0], row | {"steps_per_second": (step - begun) / seconds}
        )
      stop = stop_requested(step)
      evaluating = step % experiment.eval.every == 0 or step == last
      if evaluating or stop or step % experiment.checkpoint.every == 0:
        log.absorb(*pending)
        pending = None
        log.seconds += time.perf_counter() - started
        if evaluating:
          _evaluate(program, states, step, experiment, held_out, log)
        log.write_clock(step)
        checkpoints.save(step, states)
        started = time.perf_counter()
      if stop and step < last:
        checkpoints.wait()
        raise fit.Stopped(step, stop)
    checkpoints.wait()
    members = [
      Member(
        seed=seed,
        params=program.member(states, i),
        diverged_at=log.diverged.get(seed),
        learning=log.learning[seed],
      )
      for i, seed in enumerate(seeds)
    ]
  return members, log.seconds


def _evaluate(
  program: Program,
  states: train.TrainState,
  step: int,
  experiment: Experiment,
  held_out: Split,
  log: "_Log",
):
  """Scores every member that has not diverged."""
  for i, seed in enumerate(log.seeds):
    if seed in log.diverged:
      continue
    records = evaluate.evaluate(
      program.member(states, i),
      held_out,
      experiment.model,
      experiment.task,
      depth=experiment.eval.depth,
      batch_size=experiment.eval.batch_size,
      mesh=program.mesh,
      training_flops=program.recipe.training_flops(step),
    )
    log.learn(step, seed, records[-1])


class _Log:
  """What is known of each member, kept in a file and read back on resuming.

  Attributes:
    seeds: one a member.
    diverged: seed -> the first step that was not finite.
    learning: seed -> evaluation records.
    seconds: of training.
  """

  def __init__(
    self, path: pathlib.Path, seeds: Sequence[int], step: int, leader: bool
  ):
    self.seeds = list(seeds)
    self.diverged: dict[int, int] = {}
    self.learning: dict[int, list[evaluate.Record]] = {s: [] for s in seeds}
    self.seconds = 0.0
    for row in metrics.read(path):
      if row["step"] <= step:
        self._remember(row)
    self._writer = metrics.Writer(path, step) if leader else None

  @property
  def all_diverged(self) -> bool:
    """Whether there is nobody left to train."""
    return len(self.diverged) == len(self.seeds)

  def absorb(self, step: int, found: dict[str, jax.Array]) -> metrics.Row:
    """Takes the metrics `[M, K]` of the dispatch that ended at `step`.

    Returns:
      Their means over the members that have not diverged.
    """
    values = jax.device_get(found)
    bad = ~np.all([np.isfinite(value) for value in values.values()], axis=0)
    for seed, wrong in zip(self.seeds, bad, strict=True):
      if wrong.any() and seed not in self.diverged:
        at = step - len(wrong) + int(np.argmax(wrong)) + 1
        self._write(at, seed, {"diverged": True})
    alive = ~bad.any(axis=1)
    row: metrics.Row = {}
    if alive.any():
      row["loss"] = float(values["loss"][alive].mean())
      if halted := values["count"][alive].sum():
        for name in ("accuracy", "exact_accuracy"):
          row[name] = float(values[name][alive].sum() / halted)
    return row

  def learn(self, step: int, seed: int, record: evaluate.Record):
    """Keeps an evaluation."""
    self._write(step, seed, record)

  def write_clock(self, step: int):
    """Keeps the seconds spent, for a run that is resumed here."""
    self._write(step, None, {"seconds": self.seconds})

  def close(self):
    """Closes the file."""
    if self._writer:
      self._writer.close()

  def _write(self, step: int, seed: int | None, values: dict[str, Any]):
    split = "all" if seed is None else f"seed{seed}"
    self._remember({"step": step, "split": split, **values})
    if self._writer:
      self._writer.write(step, split, values)

  def _remember(self, row: metrics.Row):
    values = {k: v for k, v in row.items() if k != "split"}
    if row["split"] == "all":
      self.seconds = row["seconds"]
      return
    seed = int(row["split"].removeprefix("seed"))
    if "diverged" in row:
      self.diverged.setdefault(seed, row["step"])
    else:
      self.learning[seed].append(values)
