"""The training loop: restore, then step, log, evaluate and save until done."""

import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from trm_jax.config import Experiment
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import checkpoint, metrics, processes, sharding
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate
from trm_jax.train import step as train

# Bytes of examples, above which devices share them.
_SHARED_FROM = 2**28


class Watcher(Protocol):
  """Somebody who looks on: a progress bar, or nobody."""

  def say(self, message: str) -> None:
    """A sentence worth a line of its own."""
    ...

  def advance(self, step: int, row: metrics.Row) -> None:
    """Training has reached `step`; `row` is its latest record."""
    ...


class Stopped(Exception):  # noqa: N818 - no error: the run was asked to stop
  """The run was asked to stop, and has saved.

  Attributes:
    step: where it stopped.
    signal: the signal that asked for it.
  """

  def __init__(self, step: int, signal_number: int):
    super().__init__(f"stopped at step {step}")
    self.step = step
    self.signal = signal_number


@dataclasses.dataclass(frozen=True)
class Program:
  """A run's compiled parts and where their arrays live.

  Attributes:
    mesh: the devices.
    recipe: what a step does.
    abstract: the state's shapes, dtypes and shardings.
    init: makes a fresh state, already sharded.
    dispatch: `(state, table, choices) -> (state, metrics)`; donates the state.
  """

  mesh: Mesh
  recipe: train.Recipe
  abstract: train.TrainState
  init: Callable[[], train.TrainState]
  dispatch: Callable[[train.TrainState, Table, Any], Any]


def build(experiment: Experiment) -> Program:
  """Lays the experiment out over the devices and prepares its functions.

  Raises:
    UserError: if the devices do not suit the config.
  """
  mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.model)
  sharding.check_batch(
    "config.train.batch_size", experiment.train.batch_size, mesh
  )
  sharding.check_batch(
    "config.eval.batch_size", experiment.eval.batch_size, mesh
  )
  check_kernel(experiment, mesh)
  return lay_out(experiment, mesh)


def check_kernel(experiment: Experiment, mesh: Mesh):
  """Refuses to train where the kernel of the model's attention is not.

  Raises:
    UserError: saying what to set.
  """
  model, here = experiment.model, mesh.devices.flat[0].platform
  if model.kernel_platform not in (None, here):
    raise UserError(
      f"config.model.attention={model.attention!r}: is a kernel of the "
      f"platform {model.kernel_platform!r}, but these devices are "
      f"{here!r}; set config.model.attention='blocks', which runs anywhere and "
      "computes the same; a run may change it when it resumes"
    )


def lay_out(experiment: Experiment, mesh: Mesh) -> Program:
  """`build` for a given mesh, whose devices may be only described."""
  recipe = train.Recipe.of(experiment)
  shapes = jax.eval_shape(lambda: train.init_state(recipe))
  placed = sharding.shardings(shapes, mesh)
  whole = sharding.replicated(mesh)
  parts = experiment.train.parts(mesh.shape["data"])
  spread = sharding.over_slots(mesh, parts)

  def dispatch(state, table, choices):
    return train.train_steps(state, table, recipe, choices, spread)

  return Program(
    mesh=mesh,
    recipe=recipe,
    abstract=checkpoint.abstract_state(shapes, placed),
    init=jax.jit(lambda: train.init_state(recipe), out_shardings=placed),
    dispatch=jax.jit(
      dispatch,
      out_shardings=(placed, whole),
      donate_argnums=0,
    ),
  )


def stage(split: Split, mesh: Mesh) -> Table:
  """Puts a whole split onto the devices, as stored (uint8 tokens).

  Every device gets all of it, unless it is large: then they share the
  examples, and looking up a batch sends it, and no more, between them.
  """
  table = Table.of(split)
  if split.inputs.nbytes + split.labels.nbytes <= _SHARED_FROM:
    return sharding.put(table, sharding.replicated(mesh))
  examples = {
    name: sharding.spread(getattr(split, name), mesh)
    for name in ("inputs", "labels")
  }
  rest = table.replace(inputs=None, labels=None)
  rest = sharding.put(rest, sharding.replicated(mesh))
  return rest.replace(**examples)


def fit(
  experiment: Experiment,
  folder: RunFolder,
  training: Split,
  held_out: Split | None,
  watcher: Watcher,
  tensorboard: bool = False,
) -> list[evaluate.Record]:
  """Trains to the end, from wherever the folder's last checkpoint stands.

  Args:
    experiment: what to do.
    folder: where to keep it; claimed by the caller.
    training: training puzzles.
    held_out: puzzles for evaluation, or `None` for no evaluation.
    watcher: told of progress; only the first process should speak.
    tensorboard: whether to write TensorBoard files as well.

  Returns:
    The last evaluation, one record per depth; empty without `held_out`.

  Raises:
    Stopped: after a signal, once everything is saved.
    UserError: if training diverged, or a checkpoint cannot be read or written.
  """
  program = build(experiment)
  table = stage(training, program.mesh)
  leader = processes.is_leader()
  with (
    checkpoint.Checkpoints(
      folder.checkpoints,
      experiment.checkpoint.keep,
      experiment.task.best_metric,
    ) as checkpoints,
    contextlib.ExitStack() as closing,
  ):
    state = restore_or_init(program, checkpoints, watcher)
    step = int(state.step)
    if leader:
      board = folder.tensorboard if tensorboard else None
      writer = metrics.Writer(folder.metrics, step, board)
      closing.callback(writer.close)

    def record(step: int, split: str, row: metrics.Row):
      if leader:
        writer.write(step, split, row)

    def on_training_row(step: int, row: metrics.Row):
      spent = program.recipe.training_flops(step)
      record(step, "train", row | {"training_flops": spent})
      watcher.advance(step, row)

    log = metrics.TrainingLog(experiment.train.log_every, on_training_row)
    stop_requested = closing.enter_context(stop_signals())

    def evaluate_now(
      step: int, state: train.TrainState, held_out: Split
    ) -> list[evaluate.Record]:
      started = time.perf_counter()
      records = evaluate.evaluate(
        state.averaged_params,
        held_out,
        experiment.model,
        experiment.task,
        depth=experiment.eval.depth,
        batch_size=experiment.eval.batch_size,
        mesh=program.mesh,
        training_flops=program.recipe.training_flops(step),
      )
      seconds = time.perf_counter() - started
      log.pause(seconds)
      record(step, "test", records[-1] | {"seconds": seconds})
      watcher.say(describe(step, records[-1]))
      return records

    records: list[evaluate.Record] = []
    last = experiment.train.steps
    while step < last:
      count = experiment.train.steps_per_dispatch
      choices = program.recipe.choices(step, count)
      state, dispatched = program.dispatch(state, table, choices)
      step += count
      log.push(step, dispatched)
      scores = None
      if held_out and (step % experiment.eval.every == 0 or step == last):
        log.flush()  # stops here, before anything is kept, if not finite
        records = evaluate_now(step, state, held_out)
        scores = records[-1]
        if experiment.task.best_metric not in scores:
          scores = None  # nothing in the split has a label
      stop = stop_requested(step)
      due = step == last or step % experiment.checkpoint.every == 0
      if due or scores or stop:
        log.flush()
        started = time.perf_counter()
        if leader:
          folder.check_claim()
          writer.keep()
        checkpoints.save(step, state, scores)
        log.pause(time.perf_counter() - started)
      if stop and step < last:
        checkpoints.wait()
        raise Stopped(step, stop)
    checkpoints.wait()
    if held_out and not records:  # resumed after its last step
      records = evaluate_now(step, state, held_out)
  return records


def restore_or_init(
  program: Program, checkpoints: checkpoint.Checkpoints, watcher: Watcher
) -> train.TrainState:
  """The state of the latest checkpoint, or a fresh one."""
  if checkpoints.latest is None:
    return program.init()
  state = checkpoints.restore(checkpoints.latest, program.abstract)
  watcher.say(f"resumed from the checkpoint of step {checkpoints.latest}")
  return state


def describe(step: int, record: evaluate.Record) -> str:
  """One evaluation in a line."""
  parts = []
  for name, words in (
    ("pass@1", "pass@1"),
    ("pass@2", "pass@2"),
    ("exact_accuracy", "exact"),
    ("valid_rate", "valid"),
    ("cell_accuracy", "cells"),
    ("q_accuracy", "halting head right"),
  ):
    if name in record:
      error = record.get(f"{name}_se")
      spread = f" ± {error:.1%}" if error is not None else ""
      parts.append(f"{words} {record[name]:.1%}{spread}")
  if "mean_steps" in record:
    parts.append(f"mean steps {record['mean_steps']:.1f}")
  return (
    f"step {step}: {', '.join(parts) or 'no label to compare with'} "
    f"({record['puzzles']} puzzles, depth {record['depth']})"
  )


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], int | None]]:
  """Turns SIGTERM and Ctrl-C into a question asked between dispatches.

  Several processes must stop at the same step: there JAX's coordination
  service, which listens to SIGTERM by itself, agrees on one.
  """
  if processes.are_several():
    with _agreed_stop() as stop_requested:
      yield stop_requested
    return
  received: list[int] = []

  def remember(number, frame):
    del frame
    received.append(number)
    if len(received) > 1:  # asked twice: stop without saving
      raise KeyboardInterrupt

  signals = (signal.SIGTERM, signal.SIGINT)
  previous = {number: signal.signal(number, remember) for number in signals}
  try:
    yield lambda step: received[0] if received else None
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


# How often it was asked whether to stop, over all that a process trains. The
# service agrees on one of these numbers: none may be left out or come twice.
_QUESTIONS = itertools.count(1)


@contextlib.contextmanager
def _agreed_stop() -> Iterator[Callable[[int], int | None]]:
  """`stop_signals` for several processes."""

  def agreed(step: int) -> int | None:
    del step
    number = next(_QUESTIONS)
    reached = multihost_utils.reached_preemption_sync_point(number)
    return signal.SIGTERM if reached else None

  def pass_on(number, frame):
    del number, frame
    # Asked twice: stop without saving.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  previous = signal.signal(signal.SIGINT, pass_on)
  try:
    yield agreed
  finally:
    signal.signal(signal.SIGINT, previous)
