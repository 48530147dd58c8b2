"""Law 4 again: two processes over loopback compute what one computes.

In ARC, whose copies vote across processes; `test_many_hosts.py` has Sudoku.
"""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from programs import TINY_ARC, environment, restored, run_program

from trm_jax.run import metrics


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The weights after the last step, read back through the export program."""
  _, state = restored(folder)
  import jax

  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      (state.params, state.cursor, state.carry.steps)
    )
  }


def _train_together(folder: pathlib.Path, flags: list[str]) -> list[str]:
  """Trains in two processes; returns what each of them said."""
  port = _free_port()
  workers = [
    subprocess.Popen(
      [
        sys.executable, "-m", "experiments.train", *flags,
        f"--workdir={folder}", f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2", f"--process_id={rank}",
      ],
      env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True,
    )
    for rank in range(2)
  ]  # fmt: skip
  outputs = [worker.communicate(timeout=240)[0] for worker in workers]
  assert [worker.returncode for worker in workers] == [0, 0], outputs
  return outputs


def test_two_processes_equal_one(tmp_path):
  alone, together = tmp_path / "alone", tmp_path / "together"
  flags = [*TINY_ARC(tmp_path), "--config.train.steps=8"]
  run_program("train", *flags, f"--workdir={alone}")
  outputs = _train_together(together, flags)
  assert "finished" in outputs[0]
  assert "finished" not in outputs[1]  # only the first speaks
  ours, theirs = _weights(together), _weights(alone)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_allclose(
      ours[name], value, rtol=1e-3, atol=2e-5, err_msg=name
    )
  ours, theirs = (
    list(metrics.read(folder / "metrics.jsonl")) for folder in (together, alone)
  )
  assert len(ours) == len(theirs)
  # The evaluation too; copies on both processes voted.
  assert theirs[-1]["split"] == "test"
  timeless = theirs[-1].keys() - {"seconds"}
  assert {name: ours[-1][name] for name in timeless} == pytest.approx(
    {name: theirs[-1][name] for name in timeless}, abs=1e-4
  )
  assert "pass@2" in timeless
