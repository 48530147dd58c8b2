"""Several processes live, fail, stop and go on together."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from process_pool import (
  ProcessPool,
  free_port,
  timeless_rows,
  wait_for_checkpoint,
  wait_for_row,
)
from programs import TINY, TINY_ARC, restored

from trm_jax.errors import UserError
from trm_jax.run import processes, supervisor

STEPS, SAVED = 96, 32

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
  with ProcessPool(tmp_path_factory.mktemp("logs")) as pool:
    yield pool


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  return [
    *TINY(folder),
    f"--config.train.steps={STEPS}",
    f"--config.eval.every={STEPS}",
    f"--config.checkpoint.every={SAVED}",
    "--config.checkpoint.keep=100",
  ]


@pytest.fixture(scope="module")
def together(flags):
  return [*flags, "--heartbeat_seconds=6"]


@pytest.fixture(scope="module")
def whole(pool, together, tmp_path_factory):
  """A run of two processes that nothing interrupted."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  workers = pool.start_several(2, "train", *together, f"--workdir={folder}")
  for worker in workers:
    status, printed = worker.wait()
    assert status == 0, printed
  assert "finished" in workers[0].printed()
  assert "finished" not in workers[1].printed()  # only the first speaks
  return folder


def test_two_processes_equal_one(pool, tmp_path):
  """Law 4 again, in ARC, whose copies vote across processes."""
  flags, folders = TINY_ARC(tmp_path), [tmp_path / "one", tmp_path / "two"]
  workers = [pool.start("train", *flags, f"--workdir={folders[0]}")]
  assert workers[0].wait()[0] == 0, workers[0].printed()
  workers += pool.start_several(2, "train", *flags, f"--workdir={folders[1]}")
  assert [worker.wait()[0] for worker in workers] == [0, 0, 0]
  (_, ours), (_, theirs) = map(restored, folders)
  for part in ("params", "cursor"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
      getattr(ours, part),
      getattr(theirs, part),
    )
  np.testing.assert_array_equal(ours.carry.steps, theirs.carry.steps)
  ours, theirs = map(timeless_rows, folders)
  assert len(ours) == len(theirs)
  assert ours[-1]["split"] == "test" and "pass@2" in ours[-1]
  assert ours[-1] == pytest.approx(theirs[-1], abs=1e-4)


def test_killed_then_preempted_a_run_ends_with_the_same_bits(
  pool, together, whole, tmp_path
):
  folder = tmp_path / "run"
  together = [*together, f"--workdir={folder}"]
  workers = pool.start_several(2, "train", *together)
  wait_for_checkpoint(folder, SAVED, workers[0])
  workers[1].send(signal.SIGKILL)
  status, printed = workers[0].wait(30)
  assert status == processes.LOST, printed
  assert "error: lost process 1:" in printed
  assert "same command" in printed
  assert "Check failure stack trace" not in printed

  workers = pool.start_several(2, "train", *together)
  wait_for_row(folder, workers[0])
  workers[1].send(signal.SIGTERM)
  for worker in workers:
    status, printed = worker.wait(60)
    assert status == 128 + signal.SIGTERM, printed
  at, _ = restored(folder)
  assert SAVED < at < STEPS
  assert at % SAVED  # saved because of the signal
  assert f"everything is saved up to step {at}" in workers[0].printed()

  workers = pool.start_several(2, "train", *together)
  assert [worker.wait()[0] for worker in workers] == [0, 0]
  assert f"resumed from the checkpoint of step {at}" in workers[0].printed()
  jax.tree.map(np.testing.assert_array_equal, restored(folder), restored(whole))
  assert timeless_rows(folder) == timeless_rows(whole)


def test_one_process_goes_on_with_what_two_began(pool, flags, whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  for checkpoint in (folder / "checkpoints").iterdir():
    if int(checkpoint.name) > 2 * SAVED:
      shutil.rmtree(checkpoint)
  status, printed = pool.start("train", *flags, f"--workdir={folder}").wait()
  assert status == 0, printed
  assert f"resumed from the checkpoint of step {2 * SAVED}" in printed
  (step, ours), (_, theirs) = restored(folder), restored(whole)
  assert step == STEPS
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    (ours.params.weights, ours.cursor),
    (theirs.params.weights, theirs.cursor),
  )
  assert [row["step"] for row in timeless_rows(folder)] == [
    row["step"] for row in timeless_rows(whole)
  ]


def test_the_coordinator_is_missed_at_once(pool, tmp_path):
  large = ["--config=configs/demo.py", "--heartbeat_seconds=6"]
  large += ["--config.data.num_train=1000000", f"--workdir={tmp_path}/run"]
  large += [f"--config.data.cache_dir={tmp_path}"]
  workers = pool.start_several(2, "train", *large)
  until = time.monotonic() + 60
  while "preparing the puzzles" not in workers[0].printed():
    assert time.monotonic() < until, workers[0].printed()
    time.sleep(0.05)
  workers[0].send(signal.SIGKILL)
  status, printed = workers[1].wait(30)
  assert status == processes.LOST, printed
  assert "error: lost process 0, the coordinator" in printed
  assert "Check failure stack trace" not in printed


def test_one_that_fails_ends_the_others_at_once(pool, together, tmp_path):
  nowhere = ("--config.data.cache_dir=/proc/nowhere",)
  other = ("--config.optim.lr=0.5",)
  elsewhere = (f"--workdir={tmp_path}/elsewhere",)
  groups = [
    pool.start_several(
      2, "train", *together, f"--workdir={tmp_path}/{i}", last=last
    )
    for i, last in enumerate((nowhere, other, elsewhere))
  ]
  (first, failed), differing, apart = [
    [worker.wait(60) for worker in group] for group in groups
  ]
  assert first[0] == failed[0] == 2
  assert "error: cache_dir: the dataset cannot be kept" in failed[1]
  assert "stopped, because process 1 failed: cache_dir" in first[1]
  for status, printed in differing:
    assert status == 2
    assert "config.optim.lr: 0.5 in process 1, 0.002 in process 0" in printed
  assert apart[0][0] == apart[1][0] == 2
  assert "process 1 does not see the folder" in apart[0][1]


def test_who_waits_in_vain_is_told(pool, together, tmp_path):
  place = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
  together = [*together, f"--workdir={tmp_path}", "--join_seconds=1", *place]
  for number in (1, 0):
    worker = pool.start("train", *together, f"--process_id={number}")
    status, printed = worker.wait(60)
    assert status == processes.LOST, printed
    assert "not all there in 1 s" in printed


def test_every_form_of_evaluation_is_shared(pool, whole, tmp_path):
  alone = tmp_path / "alone"
  shutil.copytree(whole, alone)
  rollouts = ["--depth=2,4", "--breadth=1,3", "--halt=q", "--views",
              "--select=q,vote", "--calibrate=temperature"]  # fmt: skip
  workers = [
    pool.start_several(2, "evaluate", f"--workdir={whole}", "--depth=2,4"),
    [pool.start("evaluate", f"--workdir={alone}", *rollouts)],
  ]
  for worker in (*workers[0], *workers[1]):
    status, printed = worker.wait()
    assert status == 0, printed
  assert "wrote" in workers[0][0].printed()
  assert "wrote" not in workers[0][1].printed()
  found = json.loads((whole / "result.json").read_text())
  assert found["checkpoint"] == STEPS
  assert [record["depth"] for record in found["records"]] == [2, 4]
  # The same puzzles as after training's last step, and the same answers.
  (trained,) = [row for row in timeless_rows(whole) if row["split"] == "test"]
  shared = {k: v for k, v in found["records"][-1].items() if k in trained}
  assert len(shared) > 8
  assert shared == pytest.approx({k: trained[k] for k in shared}, abs=1e-5)
  # Rollouts give what they give in one process.
  several = pool.start_several(2, "evaluate", f"--workdir={whole}", *rollouts)
  for worker in several:
    status, printed = worker.wait()
    assert status == 0, printed
  assert "wrote" not in several[1].printed()
  ours, theirs = (
    json.loads((folder / "result.json").read_text())["records"]
    for folder in (whole, alone)
  )
  assert len(ours) == 8
  for one, other in zip(ours, theirs, strict=True):
    assert one == pytest.approx(other, abs=1e-5)
  assert (whole / "calibration.json").exists()


# Explanation -> what JAX writes before it aborts, shortened.
ABORTS = {
  "lost process 3, 11: no sign of life within 60 s": (
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending "
    "heartbeats):\n3\n11\nThe tasks have crashed."
  ),
  "lost process 0, the coordinator": "UNAVAILABLE: Socket closed",
  "lost another process (INTERNAL: odd)": "absl::Status: INTERNAL: odd",
  "joined with --process_id=1 too": (
    "absl::Status: ALREADY_EXISTS: newer\nRPC: /xla/RegisterTask"
  ),
  "were not all there in 300 s": (
    "absl::Status: DEADLINE_EXCEEDED: late\nRPC: /xla/RegisterTask"
  ),
  "cannot be joined: INVALID_ARGUMENT: unexpected": (
    "absl::Status: INVALID_ARGUMENT: unexpected\nRPC: /xla/RegisterTask"
  ),
}


@pytest.mark.parametrize("told", ABORTS)
def test_an_abort_is_explained(told):
  line = supervisor.explain(ABORTS[told], 1, 300, 60)
  assert told in line
  assert "start all of them again with the same command" in line
  assert len(line.splitlines()) == 1


@pytest.mark.parametrize("coordinator", ["10.0.0.1", "10.0.0.1:99999"])
def test_an_impossible_address_is_refused(coordinator):
  with pytest.raises(UserError, match="HOST:PORT"):
    processes.Place(coordinator, 2, 0)


def test_a_single_process_waits_for_nobody(tmp_path):
  assert not processes.are_several()
  assert processes.is_leader()
  processes.barrier("anything")
  processes.agree({"config": {}})
  processes.check_shared(tmp_path)
  with processes.leader_first("data"):
    pass
