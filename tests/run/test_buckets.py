"""Runs in a bucket, shown on a local fake of the storage service."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from process_pool import ProcessPool, Worker, free_port
from programs import TINY, restored

from trm_jax.errors import UserError
from trm_jax.run import metrics
from trm_jax.run.folder import RunFolder

needs_fake = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator"))),
  reason="needs gcsfs and gcp-storage-emulator",
)


@pytest.fixture(scope="module")
def service():
  """The fake's address, to which this process and its children now speak."""
  port = free_port()
  address = f"http://127.0.0.1:{port}"
  fake = subprocess.Popen(
    [
      sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory",
      "--host=127.0.0.1", f"--port={port}", "--default-bucket=bucket",
    ],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  patch = pytest.MonkeyPatch()
  patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs
  patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
  patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
  patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  for _ in range(100):
    try:
      _objects(address, "")
      break
    except urllib.error.URLError:
      time.sleep(0.1)
  yield address
  patch.undo()
  fake.kill()
  fake.wait()


def _objects(address: str, prefix: str) -> set[str]:
  url = f"{address}/storage/v1/b/bucket/o?prefix={prefix}"
  with urllib.request.urlopen(url) as answer:
    return {found["name"] for found in json.load(answer).get("items", [])}


def _end(worker: Worker) -> str:
  status, printed = worker.wait()
  assert status == 0, printed
  return printed


@needs_fake
@pytest.mark.hosts
def test_a_run_in_a_bucket_is_killed_resumed_and_evaluated(service, tmp_path):
  """Law 5 has the bits; `test_resume.py` shows it on a disk."""
  flags = [*TINY(tmp_path), "--workdir=gs://bucket/some/run"]
  with ProcessPool(tmp_path) as pool:
    worker = pool.start("train", *flags)
    done = "some/run/checkpoints/8/commit_success.txt"
    while done not in _objects(service, "some/run/checkpoints/8"):
      assert worker.status() is None, worker.printed()
      time.sleep(0.05)
    worker.send(signal.SIGKILL)
    worker.wait()
    assert "resumed from the checkpoint of step" in _end(
      pool.start("train", *flags)
    )
    evaluated = pool.start("evaluate", flags[-1], "--depth=1,4")
    assert "wrote gs://bucket/some/run/result.json" in _end(evaluated)
  step, state = restored("gs://bucket/some/run")
  assert step == int(state.step) == 24
  rows = metrics.read(RunFolder("gs://bucket/some/run").metrics)
  trained = [row["step"] for row in rows if row["split"] == "train"]
  assert trained == list(range(2, 25, 2))
  names = {
    name.removeprefix("some/run/") for name in _objects(service, "some/run/")
  }
  assert {"config.json", "result.json", "plots/depth.png"} <= names
  steps = {name.split("/")[1] for name in names if name.startswith("check")}
  assert "24" in steps and len(steps) <= 4  # the last three and the best


@needs_fake
def test_who_claims_a_bucket_last_has_it(service):
  first, second = (RunFolder("gs://bucket/claimed") for _ in range(2))
  first.claim({"eval": {"depth": 1}}, {})
  first.check_claim()
  second.claim({"eval": {"depth": 1}}, {})
  second.check_claim()
  with pytest.raises(UserError, match="another process has begun to train"):
    first.check_claim()
  assert second.read_config() == {"eval": {"depth": 1}}


@needs_fake
def test_a_bucket_that_is_not_there_is_told(service):
  with pytest.raises(UserError, match="the bucket is there"):
    RunFolder("gs://no_such_bucket/run").claim({}, {})


def test_rows_for_a_bucket_are_written_whole(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    '{"step": 2, "split": "train"}\n{"step": 4, "split": "train"}\n'
  )
  monkeypatch.setattr(metrics, "is_remote", lambda path: True)
  writer = metrics.Writer(path, from_step=2)
  writer.write(3, "train", {"loss": 1.0})
  assert [row["step"] for row in metrics.read(path)] == [2]
  writer.flush()
  assert [row["step"] for row in metrics.read(path)] == [2, 3]
  writer.write(4, "train", {"loss": 1.0})
  writer.close()
  assert [row["step"] for row in metrics.read(path)] == [2, 3, 4]


def test_what_a_bucket_needs_is_told(monkeypatch):
  with pytest.raises(UserError, match="only gs://BUCKET/FOLDER"):
    RunFolder("s3://bucket/run")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'trm_jax\[gcs\]'"):
    RunFolder("gs://bucket/run")
