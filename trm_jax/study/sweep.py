"""Trains and tests what a study's grid asks for, and keeps what is finished.

A study's folder holds

    cells/       one file a cell, see results.py     config.json  the last grid
    weights/     the model of each cell              results.csv, report.html,
    unfinished/  populations in training             plots/       the report

so that an interrupted study goes on, a wider grid trains what is new alone,
and further test depths are tested on the weights that are there.
"""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence

import jax

from trm_jax.core import flops, network
from trm_jax.core.network import Params
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import folder as run_folder
from trm_jax.run import processes, sharding, weights
from trm_jax.solve import evaluate
from trm_jax.study import results
from trm_jax.study.grid import Setting, StudyConfig
from trm_jax.study.results import Cell
from trm_jax.train import loop as fit
from trm_jax.train import step as train


@dataclasses.dataclass(frozen=True)
class Work:
  """Seeds of a setting that are to be trained together.

  Attributes:
    setting: the setting.
    seeds: the seeds.
  """

  setting: Setting
  seeds: tuple[int, ...]

  @property
  def training_flops(self) -> float:
    """What all seeds spend on training."""
    recipe = train.Recipe.of(self.setting.experiment)
    steps = self.setting.experiment.train.steps
    return len(self.seeds) * recipe.training_flops(steps)

  def testing_flops(self, study: StudyConfig, puzzles: int) -> float:
    """What all seeds spend on evaluations, during training and after it."""
    model = self.setting.experiment.model
    during = flops.inference(model, self.setting.experiment.eval.depth)
    after = flops.inference(model, max(study.depths))
    each = study.evaluations * during + after
    return len(self.seeds) * puzzles * float(each)


class Folder:
  """A study's folder.

  Args:
    path: where; made when something is kept.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.cells = path / "cells"

  def weights(self, setting: str, seed: int) -> pathlib.Path:
    """The file of a cell's model."""
    return self.path / "weights" / f"{setting}-seed{seed}.safetensors"

  def unfinished(self, setting: str, seeds: Sequence[int]) -> pathlib.Path:
    """The folder of a population in training."""
    names = "-".join(map(str, seeds))
    return self.path / "unfinished" / setting / f"seeds-{names}"

  def started(self, setting: str) -> list[tuple[int, ...]]:
    """The populations of a setting that were interrupted."""
    found = (self.path / "unfinished" / setting).glob("seeds-*")
    names = (re.fullmatch(r"seeds-(\d+(?:-\d+)*)", p.name) for p in found)
    return sorted(tuple(map(int, name[1].split("-"))) for name in names if name)


def check_comparable(cells: Sequence[Cell], settings: Sequence[Setting]):
  """Refuses cells of another study.

  Raises:
    UserError: naming the fields in which their data or test differ.
  """
  ours = settings[0].comparable
  for cell in cells:
    found = run_folder.differences(ours, cell.comparable)
    if found:
      raise UserError(
        f"the cell {cell.setting}-seed{cell.seed} is of another study: its "
        "results cannot be compared with this grid's. Use another --workdir, "
        "or the same data and test. They differ in\n  " + "\n  ".join(found)
      )
  for setting in settings[1:]:
    found = run_folder.differences(setting.comparable, ours)
    if found:
      raise UserError(
        "config.grid: models are only compared on the same data and test, but "
        "settings differ in\n  " + "\n  ".join(found)
      )


def plan(
  study: StudyConfig,
  settings: Sequence[Setting],
  cells: Sequence[Cell],
  folder: Folder,
) -> list[Work]:
  """What is still to be trained, populations that were interrupted first.

  Args:
    study: names the seeds.
    settings: the grid.
    cells: what is finished, here and in folders to be merged.
    folder: the study's folder.
  """
  done = {(cell.setting, cell.seed) for cell in cells}
  work = []
  for setting in settings:
    lacking = {s for s in study.seeds if (setting.key, s) not in done}
    for seeds in folder.started(setting.key):
      if set(seeds) <= lacking:
        work.append(Work(setting, seeds))
        lacking -= set(seeds)
    if lacking:
      work.append(Work(setting, tuple(sorted(lacking))))
  return work


def carry_out(
  work: Work,
  study: StudyConfig,
  folder: Folder,
  training: Split,
  held_out: Split,
  progress: fit.Progress,
):
  """Trains a population, tests its members, and keeps a cell of each.

  Raises:
    fit.Stopped: after a signal; what was trained is saved.
    UserError: if something cannot be read or written.
  """
  setting, experiment = work.setting, work.setting.experiment
  scratch = folder.unfinished(setting.key, work.seeds)
  members, seconds = fit.fit(
    experiment,
    run_folder.RunFolder(scratch),
    training,
    held_out,
    progress,
    seeds=work.seeds,
  )
  recipe = train.Recipe.of(experiment)
  for member in members:
    steps = experiment.train.steps
    if member.diverged_at is not None:
      steps = member.diverged_at
      progress.say(f"seed {member.seed} diverged at step {steps}")
    cell = Cell(
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
    if member.diverged_at is None and processes.is_leader():
      weights.save_weights(
        folder.weights(setting.key, member.seed),
        member.params,
        setting.config,
        {"step": steps, "seed": member.seed},
      )
    if member.diverged_at is None:
      cell = test(cell, member.params, setting, study, held_out)
      progress.say(fit.describe(steps, cell.depths[-1]))
    if processes.is_leader():
      results.save_cell(folder.cells, cell)
  processes.barrier("carried out")
  if processes.is_leader():
    shutil.rmtree(scratch)


def deepen(
  shallow: Sequence[tuple[Cell, Setting]],
  study: StudyConfig,
  folder: Folder,
  held_out: Split,
  say: Callable[[str], None],
):
  """Tests what `find_shallow` gives at the depths that are new to it.

  Raises:
    UserError: if the weights of one cannot be read.
  """
  for cell, setting in shallow:
    say(f"testing {cell.setting}, seed {cell.seed}, at depth {study.depths}")
    path = folder.weights(cell.setting, cell.seed)
    params, *_ = weights.load_weights(path)
    cell = test(cell, params, setting, study, held_out)
    if processes.is_leader():
      results.save_cell(folder.cells, cell)


def find_shallow(
  study: StudyConfig, settings: Sequence[Setting], folder: Folder
) -> list[tuple[Cell, Setting]]:
  """The grid's finished cells of this folder that lack a test depth."""
  known = {setting.key: setting for setting in settings}
  found = []
  for cell in results.load_cells(folder.cells):
    setting = known.get(cell.setting)
    if setting is None or cell.diverged_at is not None:
      continue
    wanted = max(study.depths) if setting.experiment.model.is_recursive else 1
    if len(cell.depths) < wanted:
      found.append((cell, setting))
  return found


def test(
  cell: Cell,
  params: Params,
  setting: Setting,
  study: StudyConfig,
  held_out: Split,
) -> Cell:
  """Tests a model at every depth up to the study's deepest."""
  experiment = setting.experiment
  mesh = sharding.make_mesh(experiment.mesh.data, experiment.mesh.model)
  records = evaluate.evaluate(
    sharding.put(params, sharding.replicated(mesh)),
    held_out,
    experiment.model,
    experiment.task,
    depth=max(study.depths),
    batch_size=experiment.eval.batch_size,
    mesh=mesh,
    training_flops=cell.training_flops,
  )
  return dataclasses.replace(cell, depths=records)


def hardware() -> str:
  """What this process computes on, in words."""
  kind = jax.devices()[0].device_kind
  if kind == "cpu":
    return f"{os.cpu_count()} CPU cores"
  return f"{jax.device_count()} x {kind}"
