"""Trains and tests the settings of a study's grid.

A study's folder has

    trials/      one file a trial, see results.py    config.json  the last grid
    weights/     the model of each trial             results.csv, report.html,
    unfinished/  populations in training             plots/       the report

An interrupted study continues, a wider grid trains only the new trials, and
further test depths use the saved weights.
"""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence

import jax

from trm_jax.core import flops, network
from trm_jax.core.model import Params
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import processes, sharding, weights
from trm_jax.run.changes import differences
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate
from trm_jax.study import results
from trm_jax.study.grid import Setting, StudyConfig
from trm_jax.study.results import Trial
from trm_jax.train import loop as fit
from trm_jax.train import step as train


@dataclasses.dataclass(frozen=True)
class Work:
  """A setting and the seeds to train together."""

  setting: Setting
  seeds: tuple[int, ...]

  def with_puzzle_ids(self, count: int) -> "Work":
    """The same work with `count` rows in the puzzle table."""
    experiment = self.setting.experiment.with_puzzle_ids(count)
    rows = experiment.model.num_puzzle_ids
    config = dict(self.setting.config)
    config["model"] = config["model"] | {"num_puzzle_ids": rows}
    setting = dataclasses.replace(
      self.setting, experiment=experiment, config=config
    )
    return dataclasses.replace(self, setting=setting)

  @property
  def training_flops(self) -> float:
    """Training FLOPs of all seeds."""
    recipe = train.Recipe.of(self.setting.experiment)
    steps = self.setting.experiment.train.steps
    return len(self.seeds) * recipe.training_flops(steps)

  def testing_flops(self, study: StudyConfig, puzzles: int) -> float:
    """FLOPs of the evaluations of all seeds, during and after training."""
    model = self.setting.experiment.model
    during = flops.inference(model, self.setting.experiment.eval.depth)
    after = flops.inference(model, max(study.depths))
    each = study.evaluations * during + after
    return len(self.seeds) * puzzles * float(each)


class Folder:
  """The paths in a study's folder."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.trials = path / "trials"

  def weights(self, setting: str, seed: int) -> pathlib.Path:
    """The file of a trial's model."""
    return self.path / "weights" / f"{setting}-seed{seed}.safetensors"

  def unfinished(self, setting: str, seeds: Sequence[int]) -> pathlib.Path:
    """The folder of a population in training."""
    names = "-".join(map(str, seeds))
    return self.path / "unfinished" / setting / f"seeds-{names}"

  def started(self, setting: str) -> list[tuple[int, ...]]:
    """The seeds of each interrupted population of a setting."""
    found = (self.path / "unfinished" / setting).glob("seeds-*")
    names = (re.fullmatch(r"seeds-(\d+(?:-\d+)*)", p.name) for p in found)
    return sorted(tuple(map(int, name[1].split("-"))) for name in names if name)


def check_comparable(trials: Sequence[Trial], settings: Sequence[Setting]):
  """Refuses trials or settings with different data or test."""
  ours = settings[0].comparable
  for trial in trials:
    found = differences(ours, trial.comparable)
    if found:
      raise UserError(
        f"the model {trial.setting}-seed{trial.seed} is of another study: its "
        "results cannot be compared with this grid's. Use another --workdir, "
        "or the same data and test. They differ in\n  " + "\n  ".join(found)
      )
  for setting in settings[1:]:
    found = differences(setting.comparable, ours)
    if found:
      raise UserError(
        "config.grid: models are only compared on the same data and test, but "
        "settings differ in\n  " + "\n  ".join(found)
      )


def finished(
  folder: Folder,
  settings: Sequence[Setting],
  others: Sequence[str],
  say: Callable[[str], None],
) -> list[Trial]:
  """The comparable trials of this grid and of other, non-empty folders."""
  own = results.load_trials(folder.trials)
  check_comparable(own, settings)
  keys = {setting.key for setting in settings}
  groups = {str(folder.path): [trial for trial in own if trial.setting in keys]}
  left_out = len(own) - len(groups[str(folder.path)])
  if left_out:
    say(f"note: {left_out} finished models are not of this grid: left out")
  for name in others:
    groups[name] = results.load_trials(Folder(pathlib.Path(name)).trials)
    if not groups[name]:
      raise UserError(f"--merge={name}: there is no finished model in it")
    check_comparable(groups[name], settings)
  return results.merge(groups) if any(groups.values()) else []


def plan(
  study: StudyConfig,
  settings: Sequence[Setting],
  trials: Sequence[Trial],
  folder: Folder,
) -> list[Work]:
  """The work that remains, per setting the interrupted populations first.

  Args:
    study: its seeds are trained.
    settings: the grid.
    trials: finished trials, here and in merged folders.
    folder: the study's folder.
  """
  done = {(trial.setting, trial.seed) for trial in trials}
  work = []
  for setting in settings:
    missing = {s for s in study.seeds if (setting.key, s) not in done}
    for seeds in folder.started(setting.key):
      if set(seeds) <= missing:
        work.append(Work(setting, seeds))
        missing -= set(seeds)
    if missing:
      work.append(Work(setting, tuple(sorted(missing))))
  return work


def carry_out(
  work: Work,
  study: StudyConfig,
  folder: Folder,
  training: Split,
  held_out: Split,
  progress: fit.Progress,
):
  """Trains a population, tests its members, and saves a trial of each.

  Raises:
    fit.Stopped: after a signal; the training state is saved.
    UserError: if a file cannot be read or written.
  """
  setting, experiment = work.setting, work.setting.experiment
  scratch = folder.unfinished(setting.key, work.seeds)
  run = RunFolder(scratch)
  if processes.is_leader():
    run.claim(setting.config, {})
  processes.barrier("claimed")
  try:
    members, seconds = fit.fit(
      experiment, run, training, held_out, progress, seeds=work.seeds
    )
  finally:
    run.release()
  recipe = train.Recipe.of(experiment)
  for member in members:
    steps = experiment.train.steps
    if member.diverged_at is not None:
      steps = member.diverged_at
      progress.say(f"seed {member.seed} diverged at step {steps}")
    trial = Trial(
      setting=setting.key,
      seed=member.seed,
      family=experiment.model.family,
      fields=setting.fields,
      comparable=setting.comparable,
      weights=network.count_weights(member.params),
      steps=steps,
      batch_size=experiment.train.batch_size,
      training_flops=recipe.training_flops(steps),
      seconds=seconds,
      hardware=hardware(),
      diverged_at=member.diverged_at,
      learning=member.learning,
      depths=[],
    )
    if member.diverged_at is None:
      if processes.is_leader():
        path = folder.weights(setting.key, member.seed)
        facts = {"step": steps, "seed": member.seed}
        weights.save_weights(path, member.params, setting.config, facts)
      trial = test(trial, member.params, setting, study, held_out)
      progress.say(fit.describe(steps, trial.depths[-1]))
    if processes.is_leader():
      results.save_trial(folder.trials, trial)
  processes.barrier("carried out")
  if processes.is_leader():
    shutil.rmtree(scratch)


def deepen(
  shallow: Sequence[tuple[Trial, Setting]],
  study: StudyConfig,
  folder: Folder,
  held_out: Split,
  say: Callable[[str], None],
):
  """Tests the trials of `find_shallow` at the study's depths."""
  for trial, setting in shallow:
    say(f"testing {trial.setting}, seed {trial.seed}, at depth {study.depths}")
    path = folder.weights(trial.setting, trial.seed)
    params, *_ = weights.load_weights(path)
    trial = test(trial, params, setting, study, held_out)
    if processes.is_leader():
      results.save_trial(folder.trials, trial)


def find_shallow(
  study: StudyConfig, settings: Sequence[Setting], folder: Folder
) -> list[tuple[Trial, Setting]]:
  """The grid's finished trials in this folder that lack a test depth."""
  by_key = {setting.key: setting for setting in settings}
  found = []
  for trial in results.load_trials(folder.trials):
    setting = by_key.get(trial.setting)
    if setting is None or trial.diverged_at is not None:
      continue
    wanted = max(study.depths) if setting.experiment.model.is_recursive else 1
    if len(trial.depths) < wanted:
      found.append((trial, setting))
  return found


def test(
  trial: Trial,
  params: Params,
  setting: Setting,
  study: StudyConfig,
  held_out: Split,
) -> Trial:
  """Tests a model at every depth from 1 to the largest of the study."""
  experiment = setting.experiment
  mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.model)
  scores = evaluate.evaluate(
    sharding.put(params, sharding.replicated(mesh)),
    held_out,
    experiment.model,
    experiment.task,
    depth=max(study.depths),
    batch_size=experiment.eval.batch_size,
    mesh=mesh,
    training_flops=trial.training_flops,
  )
  return dataclasses.replace(trial, depths=scores)


def hardware() -> str:
  """The devices of this process, in words."""
  kind = jax.devices()[0].device_kind
  if kind == "cpu":
    return f"{os.cpu_count()} CPU cores"
  return f"{jax.device_count()} x {kind}"
