"""Law 5: killed, preempted or neither, a run ends with the same bits."""

import signal

import jax
import numpy as np
import pytest
from process_pool import (
  ProcessPool,
  timeless_rows,
  wait_for_checkpoint,
  wait_for_row,
)
from programs import TINY, restored, run_program

STEPS, SAVED = 400, 100


@pytest.mark.hosts
def test_killed_then_preempted_a_run_ends_with_the_same_bits(
  tmp_path, monkeypatch
):
  flags = [
    *TINY(tmp_path),
    f"--config.train.steps={STEPS}",
    f"--config.eval.every={STEPS}",
    f"--config.checkpoint.every={SAVED}",
  ]
  whole, run = tmp_path / "whole", tmp_path / "run"
  with ProcessPool(tmp_path) as pool:
    status, printed = pool.start("train", *flags, f"--workdir={whole}").wait()
    assert status == 0, printed
    flags += [f"--workdir={run}"]
    worker = pool.start("train", *flags)
    wait_for_checkpoint(run, SAVED, worker)
    worker.send(signal.SIGKILL)
    assert worker.wait()[0] == -signal.SIGKILL

    worker = pool.start("train", *flags)
    wait_for_row(run, worker)
    worker.send(signal.SIGTERM)
    status, printed = worker.wait()
    assert status == 128 + signal.SIGTERM
  at, _ = restored(run)
  assert SAVED < at < STEPS
  assert at % SAVED  # saved because of the signal
  assert f"everything is saved up to step {at}" in printed

  # What goes on has compiled its program anew, as on another day.
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  printed = run_program("train", *flags)
  assert f"resumed from the checkpoint of step {at}" in printed
  jax.tree.map(np.testing.assert_array_equal, restored(run), restored(whole))
  assert timeless_rows(run) == timeless_rows(whole)
