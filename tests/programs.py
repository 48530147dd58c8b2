"""Runs the programs as a user would: in a process of their own."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import traceback

import numpy as np
from absl import app as absl_app
from absl import flags, logging

from trm_jax.cli import programs

ROOT = pathlib.Path(__file__).parent.parent

# How a fork becomes a program; its command is in `command`.
RUN = """\
  sys.argv = ["", *command[1:]]
  status = 0
  try:
    runpy.run_module(
      "experiments." + command[0], run_name="__main__", alter_sys=True
    )
  except SystemExit as end:
    status = end.code or 0
  except BaseException:
    traceback.print_exc()
    status = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
"""

_PARENT = (
  """
import contextlib, json, os, pathlib, runpy, sys, traceback
# No flag may be defined yet, and no device touched.
import trm_jax.cli.app, trm_jax.cli.progress, trm_jax.cli.report
import trm_jax.train.loop, trm_jax.inspect.parity, trm_jax.draw.curves
import trm_jax.run.weights
for name, command in json.load(sys.stdin).items():
  child = os.fork()
  if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (pathlib.Path(sys.argv[1]) / name).with_suffix(".status").write_text(
      str(status)
    )
    continue
  log = os.open(os.path.join(sys.argv[1], name), os.O_CREAT | os.O_WRONLY)
  os.dup2(log, 1)
  os.dup2(log, 2)
"""
  + RUN
)


def TINY(folder: pathlib.Path) -> list[str]:  # noqa: N802 - reads as a constant
  """Flags of an experiment that trains in seconds; data kept in `folder`."""
  changes = {
    "data.size": 4,
    "data.num_train": 40,
    "data.num_test": 12,
    "data.givens": "(5,8)",
    "data.cache_dir": folder / "data",
    "model.width": 16,
    "model.expansion": 2.0,
    "model.inner_multiple": 8,
    "model.puzzle_emb_ndim": 16,
    "model.cycles": 2,
    "model.latent_steps": 2,
    "halting.max_steps": 4,
    "train.steps": 24,
    "train.batch_size": 16,
    "train.steps_per_dispatch": 2,
    "train.log_every": 2,
    "eval.every": 8,
    "eval.depth": 4,
    "eval.batch_size": 16,
    "checkpoint.every": 4,
  }
  return [
    "--config=configs/demo.py",
    *(f"--config.{name}={value}" for name, value in changes.items()),
  ]


def TINY_ARC(folder: pathlib.Path) -> list[str]:  # noqa: N802
  """The same for ARC; two tasks with small grids are written to `folder`."""
  tasks = folder / "tasks"
  if not tasks.exists():
    random = np.random.default_rng(0)
    tasks.mkdir(parents=True)
    for name, turn in (("mirror", np.fliplr), ("turn", np.rot90)):
      inputs = random.integers(0, 4, (5, 2, 2))
      pairs = [
        {"input": g.tolist(), "output": turn(g).tolist()} for g in inputs
      ]
      text = json.dumps({"train": pairs[:3], "test": pairs[3:]})
      (tasks / f"{name}.json").write_text(text)
  changes = {
    "data.test": tasks,
    "data.size": 3,
    "data.only": "",
    "data.num_aug": 6,
    "data.cache_dir": folder / "data",
    "model.width": 16,
    "model.layers": 1,
    "model.puzzle_emb_ndim": 16,
    "train.augment": True,
    "train.steps": 8,
    "train.batch_size": 16,
    "train.steps_per_dispatch": 2,
    "train.log_every": 2,
    "eval.every": 8,
    "eval.depth": 3,
    "eval.batch_size": 16,
    "checkpoint.every": 4,
  }
  return [
    "--config=configs/arc_agi_1.py:cpu",
    *(f"--config.{name}={value}" for name, value in changes.items()),
  ]


def restored(folder: str | os.PathLike):
  """The step and the whole training state of a run's last checkpoint."""
  import jax

  from trm_jax import config
  from trm_jax.run.checkpoint import Checkpoints
  from trm_jax.run.folder import RunFolder
  from trm_jax.train.program import build

  run = RunFolder(folder)
  program = build(config.read(run.read_config()))
  with Checkpoints(run.checkpoints) as checkpoints:
    step = checkpoints.find("last")
    return step, jax.device_get(checkpoints.restore(step, program.abstract))


def environment(devices: int = 1) -> dict[str, str]:
  """One CPU device (or more); the session's cache of programs is inherited."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
  }


def run_program(
  name: str, *arguments: str, status: int = 0, devices: int = 1
) -> str:
  """Runs a program to its end and returns all that it printed."""
  done = subprocess.run(
    [sys.executable, "-m", f"experiments.{name}", *arguments],
    env=environment(devices),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  printed = done.stdout + done.stderr
  assert done.returncode == status, printed
  return printed


def run_here(program: str, *arguments: str) -> tuple[int, str]:
  """Runs a program in this process, which costs least.

  Args:
    program: its name.
    *arguments: its command line.

  Returns:
    The exit status, and all that was printed.
  """
  import jax

  absl_app.define_help_flags()
  known = set(flags.FLAGS)
  settings = dict(jax.config.values)
  kept = sys.argv, sys.modules["__main__"], sys.unraisablehook
  verbosity = logging.get_verbosity()
  printed = io.StringIO()
  with (
    contextlib.chdir(ROOT),
    contextlib.redirect_stdout(printed),
    contextlib.redirect_stderr(printed),
  ):
    try:
      status = programs.main(["trm", program, *arguments])
    except SystemExit as end:
      status = end.code or 0
    except Exception:
      traceback.print_exc()
      status = 1
    finally:
      # The next program defines its own; libraries keep theirs.
      for name in set(flags.FLAGS) - known:
        owner = flags.FLAGS.find_module_defining_flag(name) or ""
        if owner.startswith(("trm", "absl")):
          delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
      sys.argv, sys.modules["__main__"], sys.unraisablehook = kept
      logging.set_verbosity(verbosity)
      for name, value in settings.items():
        if jax.config.values[name] != value:
          jax.config.update(name, value)
  return int(status), printed.getvalue()


def run_in_forks(
  commands: dict[str, list[str]],
  logs: pathlib.Path,
  devices: int = 8,
  **variables: str,
) -> dict[str, tuple[int, str]]:
  """Runs many programs in forks of one process that has imported everything.

  Importing costs more than most of what the programs then do.

  Args:
    commands: name -> program and flags.
    logs: an existing folder for what they print.
    devices: how many CPU devices they see.
    **variables: added to the environment.

  Returns:
    For each name the exit status, and all that was printed.
  """
  done = subprocess.run(
    [sys.executable, "-c", _PARENT, str(logs)],
    input=json.dumps(commands),
    env=environment(devices) | {"HF_HUB_OFFLINE": "1"} | variables,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return {
    name: (
      int((logs / f"{name}.status").read_text()),
      (logs / name).read_text(),
    )
    for name in commands
  }
