"""The training loop: restores, then steps, logs, evaluates and saves."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from trm_jax.config import Experiment
from trm_jax.core.model import Params
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import changes, checkpoint, metrics
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate
from trm_jax.train import step as train
from trm_jax.train.history import History, describe, mean_row
from trm_jax.train.program import Program, build, stage
from trm_jax.train.signals import Stopped, stop_signals

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
    history = History(folder, seeds, step, tensorboard)
    closing.callback(history.close)

    def on_rows(step: int, rows: dict[int, metrics.Row]):
      flops = program.recipe.training_flops(step)
      for member, row in rows.items():
        history.write(step, "train", member, row | {"training_flops": flops})
      if rows:
        progress.advance(step, mean_row(list(rows.values())))

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
      mean = mean_row([records[-1] for records in found.values()])
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
    changes.refuse(facts["config"], saved["config"], where, lambda: saved)
  known = {name: saved[name] for name in ("data", "jax") if name in saved}
  ours = {name: facts[name] for name in known}
  if found := changes.differences(ours, known):
    raise UserError(
      f"{where} was trained on other puzzles or random numbers; put back the "
      "data and the environment variables. They differ in\n  "
      + "\n  ".join(found)
    )
  state = checkpoints.restore(step, program.abstract)
  progress.say(f"resumed from the checkpoint of step {step}")
  return state, saved
