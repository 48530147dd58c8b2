"""Law 4 again: two processes over loopback compute what one computes."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from programs import TINY, environment, run_program

from trm_jax.run_folder import RunFolder

STEPS = "--config.train.steps=8"


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The weights after the last step, read back through the export program."""
  from trm_jax import config as config_lib
  from trm_jax import fit

  run = RunFolder(folder)
  experiment = config_lib.read(run.read_config())
  _, state, _ = fit.restore_for_inference(experiment, run, "last")
  import jax

  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      (state.params, state.cursor, state.carry.steps)
    )
  }


@pytest.mark.parametrize("processes", [2])
def test_two_processes_equal_one(tmp_path, processes):
  alone, together = tmp_path / "alone", tmp_path / "together"
  run_program("train", *TINY(tmp_path), STEPS, f"--workdir={alone}")
  port = _free_port()
  workers = [
    subprocess.Popen(
      [
        sys.executable, "-m", "experiments.train", *TINY(tmp_path), STEPS,
        f"--workdir={together}", f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}", f"--process_id={rank}",
      ],
      env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True,
    )
    for rank in range(processes)
  ]  # fmt: skip
  outputs = [worker.communicate(timeout=240)[0] for worker in workers]
  assert [worker.returncode for worker in workers] == [0] * processes, outputs
  assert "finished" in outputs[0]
  assert "finished" not in outputs[1]  # only the first speaks
  ours, theirs = _weights(together), _weights(alone)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_allclose(
      ours[name], value, rtol=1e-3, atol=2e-5, err_msg=name
    )
  rows = (together / "metrics.jsonl").read_text().splitlines()
  assert len(rows) == len((alone / "metrics.jsonl").read_text().splitlines())
