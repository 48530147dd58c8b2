"""Runs the programs as a user would: in a process of their own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


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


def environment(devices: int = 1) -> dict[str, str]:
  """One CPU device (or more), and nothing inherited that would change it."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONPATH": str(ROOT),
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
