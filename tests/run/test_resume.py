"""Law 5: killed or not, a run ends with the same bits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from programs import ROOT, TINY, environment, restored, run_program


def _start(*arguments: str, devices: int = 1) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.train", *arguments],
    env=environment(devices),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _wait_for_checkpoint(folder: pathlib.Path, at_least: int, worker):
  """Waits until a complete checkpoint of that step or a later one is there."""
  for _ in range(1200):
    done = [p.name for p in (folder / "checkpoints").glob("*")]
    if any(name.isdigit() and int(name) >= at_least for name in done):
      return
    assert worker.poll() is None, worker.communicate()[0]
    time.sleep(0.1)
  raise AssertionError("no checkpoint in two minutes")


def _rows(folder: pathlib.Path) -> list[dict]:
  """Metric rows without what depends on the clock."""
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [
    {k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")}
    for row in rows
  ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  workdir = folder / "run"
  flags = [*TINY(folder), "--config.train.steps=400"]
  run_program("train", *flags, f"--workdir={workdir}")
  return flags, workdir


def test_kill_and_resume_is_bit_for_bit(uninterrupted, tmp_path, monkeypatch):
  flags, whole = uninterrupted
  flags = [*flags, f"--workdir={tmp_path / 'run'}"]
  for at_least in (20, 120):  # killed twice, somewhere behind these steps
    worker = _start(*flags)
    _wait_for_checkpoint(tmp_path / "run", at_least, worker)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL
  # What goes on has compiled its program anew, as on another day.
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  printed = run_program("train", *flags)
  assert "resumed from the checkpoint of step" in printed
  (step, ours), (same_step, theirs) = (
    restored(tmp_path / "run"),
    restored(whole),
  )
  assert step == same_step == 400
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert _rows(tmp_path / "run") == _rows(whole)


def test_sigterm_saves_says_so_and_resumes(uninterrupted, tmp_path):
  flags, whole = uninterrupted
  flags = [*flags, f"--workdir={tmp_path / 'run'}"]
  # Far between, so that what is saved at the signal is saved because of it.
  flags += ["--config.checkpoint.every=200", "--config.eval.every=200"]
  worker = _start(*flags)
  for _ in range(1200):
    metrics = tmp_path / "run" / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
      break
    time.sleep(0.1)
  worker.send_signal(signal.SIGTERM)
  printed, _ = worker.communicate(timeout=120)
  assert worker.returncode == 128 + signal.SIGTERM
  assert "everything is saved up to step" in printed
  step, _ = restored(tmp_path / "run")
  assert 0 < step < 400
  assert step % 200
  run_program("train", *flags)
  jax.tree.map(
    np.testing.assert_array_equal, restored(tmp_path / "run"), restored(whole)
  )


def test_a_run_goes_on_with_other_devices(uninterrupted, tmp_path):
  flags, whole = uninterrupted
  flags = [*flags, f"--workdir={tmp_path / 'run'}"]
  worker = _start(*flags)
  _wait_for_checkpoint(tmp_path / "run", 4, worker)
  worker.kill()
  worker.communicate()
  run_program("train", *flags, "--config.mesh.model=2", devices=8)
  (_, ours), (_, theirs) = restored(tmp_path / "run"), restored(whole)
  assert int(ours.step) == int(theirs.step) == 400
  assert np.isfinite(ours.params.weights["embed"]["tokens"]).all()
  del theirs
