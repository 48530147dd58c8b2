"""The training loop: restores, then steps, logs, evaluates and saves."""

import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core.model import Params
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import checkpoint, metrics, processes
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate
from trm_jax.train import step as train
from trm_jax.train.program import Program, build, stage

# Settings of JAX that change random numbers or arithmetic.
_DECIDE_DRAWS = (
  "jax_enable_x64",
  "jax_threefry_partitionable",
  "jax_default_matmul_precision",
)


class Progress(Protocol):
  """Progress callbacks."""

  def say(self, message: str) -> None:
    """Shows a message as one line."""
    ...

  def advance(self, step: int, row: metrics.Row) -> None:
    """Training has reached `step`; `row` is the latest row of metrics."""
    ...


class Stopped(Exception):  # noqa: N818 - not an error
  """A signal stopped the run, after a checkpoint.

  Attributes:
    step: of the checkpoint.
    signal: number of the signal.
  """

  def __init__(self, step: int, signal_number: int):
    super().__init__(f"stopped at step {step}")
    self.step = step
    self.signal = signal_number


@dataclasses.dataclass(frozen=True)
class Member:
  """One trained seed.

  Attributes:
    seed: the seed.
    params: the averaged model after the last step.
    diverged_at: the first step with a value that is not finite, or None.
    learning: one record an evaluation during training, at the deepest depth,
      with its `step`.
    records: the last evaluation, one record a depth; empty without evaluation.
  """

  seed: int
  params: Params
  diverged_at: int | None
  learning: list[evaluate.Record]
  records: list[evaluate.Record]


def fit(
  experiment: Experiment,
  folder: RunFolder,
  training: Split,
  held_out: Split | None,
  progress: Progress,
  *,
  seeds: Sequence[int] | None = None,
  tensorboard: bool = False,
) -> tuple[list[Member], float]:
  """Trains to the end, from the folder's last checkpoint if there is one.

  A state is saved before it is evaluated; a run that is interrupted meanwhile
  evaluates when it resumes. The best checkpoint has the best score, or the best
  mean over several seeds, without those that have diverged.

  Args:
    experiment: the experiment.
    folder: the run's folder, claimed by the caller.
    training: training puzzles.
    held_out: puzzles for evaluation, or `None` for no evaluation.
    progress: callbacks, called in every process.
    seeds: trained together instead of the experiment's own. If a seed
      diverges, the others continue. The splits in metrics are "train/seed0",
      "test/seed0" and so on.
    tensorboard: whether to write TensorBoard files as well.

  Returns:
    The members in the order of `seeds`, and the seconds spent on training.

  Raises:
    Stopped: after a signal and a checkpoint.
    UserError: if the experiment's own seed diverged, a checkpoint cannot be
      read or written, or it was trained on other data or other random numbers.
  """
  program = build(experiment, seeds)
  table = stage(training, program.mesh)
  with (
    checkpoint.Checkpoints(
      folder.checkpoints,
      experiment.checkpoint.keep,
      experiment.task.best_metric,
    ) as checkpoints,
    contextlib.ExitStack() as closing,
  ):
    facts = {
      "config": folder.read_config(),
      "data": {
        name: split.digest()
        for name, split in (("training", training), ("held out", held_out))
        if split
      },
      "jax": {name: getattr(jax.config, name) for name in _DECIDE_DRAWS},
    }
    state, saved = restore_or_init(program, checkpoints, facts, progress)
    step = checkpoints.latest or 0
    history = _History(folder, seeds, step, tensorboard)
    closing.callback(history.close)

    def on_rows(step: int, rows: dict[int, metrics.Row]):
      flops = program.recipe.training_flops(step)
      for member, row in rows.items():
        history.write(step, "train", member, row | {"training_flops": flops})
      if rows:
        progress.advance(step, _mean(list(rows.values())))

    def on_divergence(step: int, member: int, values: str):
      if seeds is None:
        metrics.refuse_divergence(step, member, values)
      history.write(step, "train", member, {"diverged": True})

    log = metrics.TrainingLog(
      experiment.train.log_every,
      on_rows,
      on_divergence,
      history.diverged,
      history.seconds,
      saved.get("log"),
    )
    stop_requested = closing.enter_context(stop_signals())

    def stop_if_requested():
      """Called only when the state of this step has been saved."""
      if number := stop_requested(step):
        checkpoints.wait()
        raise Stopped(step, number)

    def between_batches(done: int, total: int):
      if done < total:
        stop_if_requested()

    def evaluate_members(held_out: Split) -> dict[int, list[evaluate.Record]]:
      """Evaluates members that have not diverged; member -> records."""
      found: dict[int, list[evaluate.Record]] = {}
      seconds: dict[int, float] = {}
      for i in range(len(program.seeds)):
        if i in history.diverged:
          continue
        started = time.perf_counter()
        found[i] = evaluate.evaluate(
          program.averaged(state, i),
          held_out,
          experiment.model,
          experiment.task,
          depth=experiment.eval.depth,
          batch_size=experiment.eval.batch_size,
          mesh=program.mesh,
          training_flops=program.recipe.training_flops(step),
          on_batch=between_batches,
        )
        seconds[i] = time.perf_counter() - started
        log.pause(seconds[i])
      history.check_claim()
      mean = _mean([records[-1] for records in found.values()])
      if experiment.task.best_metric in mean:  # the split has labels
        checkpoints.score(step, mean)
      # After the score, because an evaluation without rows is repeated.
      for i, records in found.items():
        history.write(step, "test", i, records[-1] | {"seconds": seconds[i]})
      if found:
        suffix = f", mean of {len(found)} seeds" if len(found) > 1 else ""
        progress.say(describe(step, mean) + suffix)
      return found

    last = experiment.train.steps
    count = experiment.train.steps_per_dispatch
    records: dict[int, list[evaluate.Record]] = {}

    def is_evaluated(step: int) -> bool:
      return step == last or (step > 0 and step % experiment.eval.every == 0)

    if held_out and is_evaluated(step) and not history.has_scores(step):
      records = evaluate_members(held_out)  # interrupted before
    while step < last and len(history.diverged) < len(program.seeds):
      choices = program.recipe.choices(step, count)
      state, dispatched = program.dispatch(state, table, choices)
      step += count
      log.push(step, dispatched)
      stop = stop_requested(step)
      evaluates = held_out is not None and is_evaluated(step)
      due = step == last or step % experiment.checkpoint.every == 0
      if due or evaluates or stop:
        log.flush()  # raises, before a checkpoint, if not finite
        started = time.perf_counter()
        history.flush(step, log.seconds)
        checkpoints.save(step, state, {**facts, "log": log.pending()})
        log.pause(time.perf_counter() - started)
      if stop and (step < last or evaluates):
        checkpoints.wait()
        raise Stopped(step, stop)
      if held_out and evaluates:
        records = evaluate_members(held_out)
    checkpoints.wait()
    if held_out and not records:  # resumed after the last step
      records = evaluate_members(held_out)
    members = [
      Member(
        seed=seed,
        params=program.averaged(state, i),
        diverged_at=history.diverged.get(i),
        learning=history.learning[i],
        records=records.get(i, []),
      )
      for i, seed in enumerate(program.seeds)
    ]
    return members, log.seconds


class _History:
  """The measurements of each member: reads rows up to `step`, adds new ones.

  Attributes:
    diverged: member -> the first step that was not finite.
    learning: the evaluations of each member.
    seconds: training time.
  """

  def __init__(
    self,
    folder: RunFolder,
    seeds: Sequence[int] | None,
    step: int,
    tensorboard: bool,
  ):
    self._folder = folder
    self._suffixes = [""] if seeds is None else [f"/seed{s}" for s in seeds]
    self.diverged: dict[int, int] = {}
    self.learning: list[list[evaluate.Record]] = [[] for _ in self._suffixes]
    self.seconds = 0.0
    splits = {
      kind + suffix: (kind, member)
      for member, suffix in enumerate(self._suffixes)
      for kind in ("train", "test")
    }
    for row in metrics.read(folder.metrics):
      split = row.pop("split")
      if row["step"] <= step and split in splits:
        self._remember(*splits[split], row)
      elif row["step"] <= step and split == "all":
        self.seconds = row["seconds"]
    self._writer = None
    if processes.is_leader():
      board = folder.tensorboard if tensorboard else None
      self._writer = metrics.Writer(folder.metrics, step, board)

  def write(self, step: int, kind: str, member: int, row: metrics.Row):
    """Adds a row; `kind` is "train" or "test"."""
    is_new = self._remember(kind, member, {"step": step, **row})
    if self._writer and is_new:
      self._writer.write(step, kind + self._suffixes[member], row)

  def has_scores(self, step: int) -> bool:
    """Whether all members that have not diverged were evaluated at a step."""
    return all(
      member in self.diverged or any(row["step"] == step for row in rows)
      for member, rows in enumerate(self.learning)
    )

  def check_claim(self):
    """Raises a `UserError` if the folder belongs to this run no longer."""
    if self._writer:
      self._folder.check_claim()

  def flush(self, step: int, seconds: float):
    """Saves all rows before a checkpoint."""
    if self._writer:
      self.check_claim()
      if self._suffixes != [""]:
        self._writer.write(step, "all", {"seconds": seconds})
      self._writer.flush()

  def close(self):
    """Closes the files."""
    if self._writer:
      self._writer.close()

  def _remember(self, kind: str, member: int, row: dict[str, Any]) -> bool:
    """Returns False for an evaluation that was repeated."""
    if "diverged" in row:
      self.diverged.setdefault(member, row["step"])
    elif kind == "test":
      row = {name: v for name, v in row.items() if name != "seconds"}
      if row in self.learning[member]:
        return False
      self.learning[member].append(row)
    return True


def restore_or_init(
  program: Program,
  checkpoints: checkpoint.Checkpoints,
  facts: Mapping[str, Any],
  progress: Progress,
) -> tuple[train.TrainState, dict[str, Any]]:
  """The latest checkpoint's state and facts, or an initial state.

  Raises:
    UserError: if the checkpoint was made with other `facts`, of which it may
      lack some.
  """
  step = checkpoints.latest
  if step is None:
    return program.init(), {}
  saved = checkpoints.facts(step)
  where = f"checkpoint {checkpoints.directory / str(step)}"
  if "config" in saved:
    config_lib.refuse_change(facts["config"], saved["config"], where)
  known = {name: saved[name] for name in ("data", "jax") if name in saved}
  ours = {name: facts[name] for name in known}
  if found := config_lib.differences(ours, known):
    raise UserError(
      f"{where} was trained on other puzzles or random numbers; put back the "
      "data and the environment variables. They differ in\n  "
      + "\n  ".join(found)
    )
  state = checkpoints.restore(step, program.abstract)
  progress.say(f"resumed from the checkpoint of step {step}")
  return state, saved


def _mean(rows: Sequence[metrics.Row]) -> metrics.Row:
  """The mean over rows of every float that all rows have."""
  if len(rows) < 2:
    return rows[0] if rows else {}
  means = {
    name: float(np.mean([row[name] for row in rows]))
    for name, value in rows[0].items()
    if isinstance(value, float) and all(name in row for row in rows)
  }
  return {k: v for k, v in rows[0].items() if not isinstance(v, float)} | means


def describe(step: int, record: evaluate.Record) -> str:
  """One evaluation as one line."""
  parts = []
  for name, label in (
    ("pass@1", "pass@1"),
    ("pass@2", "pass@2"),
    ("exact_accuracy", "exact"),
    ("valid_rate", "valid"),
    ("cell_accuracy", "cells"),
    ("q_accuracy", "halting head right"),
  ):
    if name in record:
      error = record.get(f"{name}_se")
      error_text = "" if error is None else f" ± {error:.1%}"
      parts.append(f"{label} {record[name]:.1%}{error_text}")
  if "mean_steps" in record:
    parts.append(f"mean steps {record['mean_steps']:.1f}")
  return (
    f"step {step}: {', '.join(parts) or 'no label to compare with'} "
    f"({record['puzzles']} puzzles, depth {record['depth']})"
  )


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], int | None]]:
  """Yields a function that returns the signal to stop by, or None.

  It is called between dispatches and between batches of an evaluation. With
  several processes, which must stop at the same call, JAX's coordination
  service handles SIGTERM and chooses it.
  """
  several = processes.are_several()
  received: list[int] = []

  def on_signal(number, frame):
    del frame
    if number == signal.SIGINT and number in received:
      raise KeyboardInterrupt  # Ctrl-C again: stop without saving
    received.append(number)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  def requested(step: int) -> int | None:
    del step
    if not several:
      return received[0] if received else None
    number = next(_sync_points)
    reached = multihost_utils.reached_preemption_sync_point(number)
    return signal.SIGTERM if reached else None

  caught = [signal.SIGINT, signal.SIGHUP]
  if not several:  # otherwise JAX handles it
    caught.append(signal.SIGTERM)
  previous = {number: signal.getsignal(number) for number in caught}
  for number, handler in previous.items():
    if handler != signal.SIG_IGN:  # as nohup sets for SIGHUP
      signal.signal(number, on_signal)
  try:
    yield requested
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


# Numbers of JAX's sync points, consecutive over all runs of a process.
_sync_points = itertools.count(1)
