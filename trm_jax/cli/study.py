"""The program `depth_vs_compute`: its plan, its training and its report."""

import importlib.metadata
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from trm_jax.cli import app, progress, report
from trm_jax.core import flops, network
from trm_jax.draw import console
from trm_jax.draw.pictures import save_png
from trm_jax.errors import UserError
from trm_jax.inspect import chips
from trm_jax.run import processes
from trm_jax.run.folder import RunFolder
from trm_jax.solve import held_out as held_out_lib
from trm_jax.study import figures, grid, page, results, sweep
from trm_jax.study.grid import Setting, StudyConfig
from trm_jax.study.results import Trial
from trm_jax.train import loop as fit
from trm_jax.train.program import build


def give_members_cores():
  """Makes each CPU core a device, and so spreads the members of a population.

  On a single CPU device, XLA computes stacked members slower than one by one.
  """
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", os.cpu_count())


def run(
  config: dict[str, Any],
  workdir: str,
  merge: Sequence[str] = (),
  estimate_on: tuple[str, float] | None = None,
  overrides: Mapping[str, Any] | None = None,
) -> int:
  """Trains, tests and reports a study; returns the exit status.

  `merge` has folders of other studies, whose finished models are added. With
  `estimate_on`, a chip of `chips.CHIPS` and the reached fraction of its peak,
  only prints the plan and its cost. `overrides` are of the command line.
  """
  study, settings = grid.read(config)
  app.agree(config)
  place = RunFolder(workdir)
  if place.is_remote:
    raise UserError(
      f"--workdir={workdir}: a study needs a folder on a disk; only single "
      "runs can live in a bucket"
    )
  folder = sweep.Folder(pathlib.Path(place.path))
  trials = sweep.finished(folder, settings, merge, app.say)
  work = sweep.plan(study, settings, trials, folder)
  if estimate_on:
    _print_plan(study, settings, work, *estimate_on)
    return 0
  for one in settings:  # refuse what the devices cannot do before training
    build(one.experiment, study.seeds)
  if processes.is_leader():
    place.claim(config, overrides or {})
  try:
    processes.check_shared(place.path)
    shallow = sweep.find_shallow(study, settings, folder)
    _compute(study, settings[0], work, shallow, folder)
    if processes.is_leader():
      trials = sweep.finished(folder, settings, merge, app.say)
      _write_report(trials, study, settings[0], place)
  except fit.Stopped as stopped:
    app.say(
      "stopped by a signal; what is finished is kept, and this model up to "
      f"step {stopped.step}. The same command goes on from there"
    )
    return 128 + stopped.signal
  finally:
    place.release()
  return 0


def _compute(
  study: StudyConfig,
  first: Setting,
  work: list[sweep.Work],
  shallow: list[tuple[Trial, Setting]],
  folder: sweep.Folder,
):
  """Trains missing models, and tests those that lack depths."""
  if not work and not shallow:
    return
  with processes.leader_first("data"):
    experiment, names = held_out_lib.prepare({}, first.experiment, app.say)
  training, held_out = held_out_lib.load_splits(experiment)
  if held_out is None:
    raise UserError("config.data.test is empty: a study needs test puzzles")
  for number, part in enumerate(work, start=1):
    app.say(
      f"[{number} of {len(work)}] "
      + report.describe(part.setting.experiment, training, held_out)
      + f"\nseeds {', '.join(map(str, part.seeds))}, trained together"
    )
    part = part.with_puzzle_ids(len(names))
    steps = part.setting.experiment.train.steps
    with progress.Bar(steps, quiet=not processes.is_leader()) as bar:
      sweep.carry_out(part, study, folder, training, held_out, bar)
  sweep.deepen(shallow, study, folder, held_out, app.say)


def _print_plan(
  study: StudyConfig,
  settings: list[Setting],
  work: list[sweep.Work],
  chip: str,
  utilisation: float,
):
  """Prints the grid, what is to be trained, and its cost."""
  puzzles, depth = settings[0].experiment.eval.puzzles, max(study.depths)
  names = results.labels(settings)
  rows, total = [], 0.0
  for setting in settings:
    model = setting.experiment.model
    parts = [part for part in work if part.setting.key == setting.key]
    spent = sum(
      part.training_flops + part.testing_flops(study, puzzles) for part in parts
    )
    seconds = chips.estimate_seconds(spent, chip, model.dtype, utilisation)
    total += seconds
    seeds = sorted(seed for part in parts for seed in part.seeds)
    seed_flops = sweep.Work(setting, (0,)).training_flops
    rows.append((
      names[setting.key],
      f"{network.count_weights(network.shapes(model)):,}",
      f"{setting.experiment.train.steps:,}",
      ", ".join(map(str, seeds)) or "none: finished",
      f"{seed_flops:.2e}",
      f"{flops.inference(model, depth):.2e}",
      _duration(seconds),
    ))  # fmt: skip
  heads = (
    "model", "weights", "steps", "seeds to train", "training FLOPs a seed",
    f"FLOPs a puzzle, depth {depth}", f"time on one {chip}",
  )  # fmt: skip
  title = f"{len(settings)} settings x {len(study.seeds)} seeds"
  console.print_table(heads, rows, title)
  print(
    f"to train: {sum(part.training_flops for part in work):.2e} FLOPs, with "
    f"all tests {_duration(total)} on one {chip} at {utilisation:.0%} of its "
    "peak"
  )
  if not puzzles:
    print("note: tests on all puzzles of the split are not in the estimate")


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:,.1f} h"


def _write_report(
  trials: list[Trial], study: StudyConfig, setting: Setting, place: RunFolder
):
  """Writes the table, the figures and the page, and prints the verdict."""
  table, report_path = place.path / "results.csv", place.path / "report.html"
  results.write_csv(table, trials, study.depths)
  pictures = {}
  for name, draw in figures.FIGURES.items():
    pictures[name] = place.plots / f"{name}.png"
    save_png(draw(trials, study.depths), pictures[name])
  facts = {
    "data": _in_words(setting.comparable["data"]),
    "test": _in_words(setting.comparable["eval"]),
    "hardware": "; ".join(sorted({trial.hardware for trial in trials})),
    "command": shlex.join(["trm", "depth_vs_compute", *sys.argv[1:]]),
    "versions": f"trm_jax {importlib.metadata.version('trm_jax')}, jax "
    f"{jax.__version__}, Python {sys.version.split()[0]}",
    "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
  }
  page.write(report_path, trials, study.depths, study.target, pictures, facts)
  for sentence in page.verdict(trials, study.depths, study.target):
    app.say(sentence)
  app.say(f"see {report_path}, {table} and {place.plots}")


def _in_words(section: dict[str, Any]) -> str:
  return ", ".join(f"{k}={v}" for k, v in section.items() if v not in ("", 0))
