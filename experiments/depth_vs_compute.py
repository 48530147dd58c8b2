"""How much does recursion depth buy, at what compute, for which model?

    python -m experiments.depth_vs_compute --config=configs/depth.py:cpu
        --workdir=DIR [--dry_run] [--merge=DIR,DIR]

Trains every model of the config's grid with every seed, tests each at many
depths, and writes results.csv, report.html (one file, opens offline) and
plots/. Finished models are kept: the same command goes on where it stopped. A
wider grid (--config.grid.trm.model.latent_steps="(1,3,6)"), more seeds
(--config.study.seeds="(0,1,2)") and deeper tests train and test only what is
new. --merge adds the finished models of other folders, trained on other
machines for instance. Several processes: as in experiments.train.
--dry_run shows what would be trained, its cost, and how long a chip would take.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import shlex
import sys
import time
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from trm_jax.cli import app, progress, report
from trm_jax.core import flops, network
from trm_jax.errors import UserError
from trm_jax.inspect import chips
from trm_jax.run import processes
from trm_jax.run.folder import RunFolder
from trm_jax.solve import held_out as held_out_lib
from trm_jax.study import figures, grid, page, results, sweep
from trm_jax.study.grid import Setting, StudyConfig
from trm_jax.study.results import Cell
from trm_jax.train import loop as fit
from trm_jax.train.program import build

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the study.")
_MERGE = flags.DEFINE_list(
  "merge", [], "Other studies' folders, whose finished models are added."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Show the grid and its cost, and train nothing."
)
_CHIP = flags.DEFINE_string(
  "chip", "h100", "Whose time --dry_run estimates: " + ", ".join(chips.CHIPS)
)
_UTILISATION = flags.DEFINE_float(
  "utilisation", 0.3, "Share of the chip's peak that --dry_run expects."
)


_join = app.define_processes()


def main(argv: list[str]) -> int:
  """Trains, tests and reports what `--config` says in `--workdir`."""
  app.no_arguments(argv)
  _give_members_cores()
  _join()
  config = app.config_values(_CONFIG)
  study, settings = grid.read(config)
  app.agree(config)
  run = RunFolder(_WORKDIR.value)
  if run.is_remote:
    raise UserError(
      f"--workdir={_WORKDIR.value}: a study needs a folder on a disk; only "
      "single runs can live in a bucket"
    )
  folder = sweep.Folder(run.path)
  cells = _finished(folder, settings)
  work = sweep.plan(study, settings, cells, folder)
  if _DRY_RUN.value:
    _print_plan(study, settings, work)
    return 0
  for one in settings:  # refuses what the devices cannot do, before training
    build(one.experiment, study.seeds)
  if processes.is_leader():
    run.claim(config, app.config_overrides("config"))
  processes.check_shared(run.path)
  shallow = sweep.find_shallow(study, settings, folder)
  if work or shallow:
    training, held_out, count = _load(settings[0])
    try:
      for number, part in enumerate(work, start=1):
        app.say(
          f"[{number} of {len(work)}] "
          + report.describe(part.setting.experiment, training, held_out)
          + f"\nseeds {', '.join(map(str, part.seeds))}, trained together"
        )
        part = _with_ids(part, count)
        steps = part.setting.experiment.train.steps
        with progress.Bar(steps, quiet=not processes.is_leader()) as bar:
          sweep.carry_out(part, study, folder, training, held_out, bar)
    except fit.Stopped as stopped:
      app.say(
        "stopped by a signal; what is finished is kept, and this model up to "
        f"step {stopped.step}. The same command goes on from there"
      )
      return 128 + stopped.signal
    sweep.deepen(shallow, study, folder, held_out, app.say)
  if processes.is_leader():
    cells = _finished(folder, settings)
    _report(cells, study, settings[0], run)
  return 0


def _give_members_cores():
  """On a CPU, each core becomes a device, for members to share.

  XLA computes a stack of members on one CPU device slower than it computes
  them one after another.
  """
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", os.cpu_count())


def _finished(folder: sweep.Folder, settings: list[Setting]) -> list[Cell]:
  """Finished models of this grid, and all of the folders to be merged."""
  own = results.load_cells(folder.cells)
  sweep.check_comparable(own, settings)
  keys = {setting.key for setting in settings}
  groups = {str(folder.path): [cell for cell in own if cell.setting in keys]}
  left_out = len(own) - len(groups[str(folder.path)])
  if left_out:
    app.say(f"note: {left_out} finished models are not of this grid: left out")
  for name in _MERGE.value:
    other = results.load_cells(pathlib.Path(name) / "cells")
    if not other:
      raise UserError(f"--merge={name}: there is no finished model in it")
    sweep.check_comparable(other, settings)
    groups[name] = other
  return results.merge(groups) if any(groups.values()) else []


def _load(setting: Setting):
  """The splits, and how many puzzle ids they have."""
  with processes.leader_first("data"):
    experiment, names = held_out_lib.prepare({}, setting.experiment, app.say)
  training, held_out = held_out_lib.load_splits(experiment)
  if held_out is None:
    raise UserError("config.data.test is empty: a study needs test puzzles")
  return training, held_out, len(names)


def _with_ids(work: sweep.Work, count: int) -> sweep.Work:
  """The work with a puzzle table that has room for the data's ids."""
  setting = work.setting
  experiment = setting.experiment.with_puzzle_ids(count)
  rows = experiment.model.num_puzzle_ids
  config = dict(setting.config)
  config["model"] = config["model"] | {"num_puzzle_ids": rows}
  setting = dataclasses.replace(setting, experiment=experiment, config=config)
  return dataclasses.replace(work, setting=setting)


def _print_plan(
  study: StudyConfig, settings: list[Setting], work: list[sweep.Work]
):
  """Prints the grid, what is missing, and what that costs."""
  puzzles = settings[0].experiment.eval.puzzles
  table = Table(
    "model", "weights", "steps", "seeds to train", "training FLOPs a seed",
    f"FLOPs a puzzle, depth {max(study.depths)}", f"time on one {_CHIP.value}",
    title=f"{len(settings)} settings x {len(study.seeds)} seeds",
  )  # fmt: skip
  total = 0.0
  names = results.labels(settings)
  for setting in settings:
    experiment = setting.experiment
    parts = [part for part in work if part.setting.key == setting.key]
    spent = sum(
      part.training_flops + part.testing_flops(study, puzzles) for part in parts
    )
    seconds = chips.estimate_seconds(
      spent, _CHIP.value, experiment.model.dtype, _UTILISATION.value
    )
    total += seconds
    model = experiment.model
    seeds = sorted(seed for part in parts for seed in part.seeds)
    steps = experiment.train.steps
    one = sweep.Work(setting, (0,)).training_flops
    table.add_row(
      names[setting.key],
      f"{network.count_weights(network.shapes(model)):,}",
      f"{steps:,}",
      ", ".join(map(str, seeds)) or "none: finished",
      f"{one:.2e}",
      f"{flops.inference(model, max(study.depths)):.2e}",
      _duration(seconds),
    )
  for column in table.columns[1:]:
    column.justify = "right"
  console = Console()
  if not console.is_terminal:
    console = Console(width=160)
  console.print(table)
  flops_left = sum(part.training_flops for part in work)
  print(
    f"to train: {flops_left:.2e} FLOPs, with all tests {_duration(total)} on "
    f"one {_CHIP.value} at {_UTILISATION.value:.0%} of its peak"
  )
  if not puzzles:
    print("note: tests on all puzzles of the split are not in the estimate")


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:,.1f} h"


def _report(
  cells: list[Cell], study: StudyConfig, setting: Setting, run: RunFolder
):
  """Writes the table, the pictures and the page, and prints the verdict."""
  results.write_csv(run.path / "results.csv", cells, study.depths)
  pictures = {}
  for name, draw in figures.PICTURES.items():
    pictures[name] = run.plots / f"{name}.png"
    draw(cells, study.depths, pictures[name])
  where = run.path / "report.html"
  facts = {
    "data": _settings_in_words(setting.comparable["data"]),
    "test": _settings_in_words(setting.comparable["eval"]),
    "hardware": "; ".join(sorted({cell.hardware for cell in cells})),
    "command": shlex.join(
      ["python", "-m", "experiments.depth_vs_compute", *sys.argv[1:]]
    ),
    "versions": f"trm_jax {importlib.metadata.version('trm_jax')}, jax "
    f"{jax.__version__}, Python {sys.version.split()[0]}",
    "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
  }
  page.write(where, cells, study.depths, study.target, pictures, facts)
  for sentence in page.verdict(cells, study.depths, study.target):
    print(sentence)
  print(f"see {where}, {run.path / 'results.csv'} and {run.plots}")


def _settings_in_words(section: dict[str, Any]) -> str:
  return ", ".join(f"{k}={v}" for k, v in section.items() if v not in ("", 0))


if __name__ == "__main__":
  app.run(main)
