"""Several processes at once, forked from one that has imported everything.

Importing costs more than most of what the processes then do.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from programs import ROOT, RUN, environment

from trm_jax.run import metrics
from trm_jax.run.folder import RunFolder

_PARENT = (
  """
import json, os, runpy, signal, sys, traceback
import trm_jax.cli.app, trm_jax.cli.progress, trm_jax.cli.report
import trm_jax.train.loop, trm_jax.draw.curves, trm_jax.run.weights
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are waited for below
for line in sys.stdin:
  command, log = json.loads(line)
  keeper = os.fork()
  if keeper:
    print(keeper, flush=True)
    continue
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  os.close(0)
  out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  os.dup2(out, 1)
  os.dup2(out, 2)
  child = os.fork()
  if child:
    with open(log + ".pid", "w") as file:
      file.write(str(child))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(log + ".tmp", "w") as file:
      file.write(str(status))
    os.rename(log + ".tmp", log + ".status")
    os._exit(0)
"""
  + RUN
)


class Worker:
  """One process of a program.

  Args:
    log: the file that it prints to.
  """

  def __init__(self, log: pathlib.Path):
    self.log = log

  def printed(self) -> str:
    return self.log.read_text() if self.log.exists() else ""

  def status(self) -> int | None:
    """Exit status, minus the signal if one killed it; None while it runs."""
    path = pathlib.Path(f"{self.log}.status")
    return int(path.read_text()) if path.exists() else None

  @property
  def pid(self) -> int:
    path = pathlib.Path(f"{self.log}.pid")
    for _ in range(2400):
      if path.exists() and (text := path.read_text()):
        return int(text)
      time.sleep(0.05)
    raise AssertionError("no process in two minutes")

  def send(self, number: int):
    os.kill(self.pid, number)

  def wait(self, seconds: float = 120) -> tuple[int, str]:
    until = time.monotonic() + seconds
    while self.status() is None:
      assert time.monotonic() < until, self.printed()
      time.sleep(0.05)
    return self.status() or 0, self.printed()


class ProcessPool:
  """Starts processes; use it as a context manager.

  Args:
    logs: an existing folder for what they print.
    **variables: added to their environment.
  """

  def __init__(self, logs: pathlib.Path, **variables: str):
    self._logs = logs
    self._workers: list[Worker] = []
    self._parent = subprocess.Popen(
      [sys.executable, "-c", _PARENT],
      env=environment() | variables,
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __enter__(self) -> "ProcessPool":
    return self

  def __exit__(self, *_):
    for worker in self._workers:
      if worker.status() is None:
        worker.send(signal.SIGKILL)
    assert self._parent.stdin
    self._parent.stdin.close()
    self._parent.wait(timeout=60)

  def start(self, program: str, *flags: str) -> Worker:
    """Starts a program of `experiments/`."""
    log = self._logs / f"{len(self._workers)}"
    command = json.dumps([[program, *flags], str(log)])
    assert self._parent.stdin and self._parent.stdout
    self._parent.stdin.write(command + "\n")
    self._parent.stdin.flush()
    assert self._parent.stdout.readline()
    self._workers.append(Worker(log))
    return self._workers[-1]

  def start_several(
    self, count: int, program: str, *flags: str, last: tuple[str, ...] = ()
  ) -> list[Worker]:
    """Starts processes that join; the last of them has further flags."""
    place = f"--coordinator=127.0.0.1:{free_port()}"
    return [
      self.start(
        program, *flags, place, f"--num_processes={count}",
        f"--process_id={i}", *(last if i == count - 1 else ()),
      )
      for i in range(count)
    ]  # fmt: skip


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def timeless_rows(folder: str | pathlib.Path) -> list[dict]:
  """Rows of metrics without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")}
    for row in metrics.read(RunFolder(folder).metrics)
  ]


def wait_for_checkpoint(folder: pathlib.Path, at_least: int, worker: Worker):
  """Waits until a complete checkpoint of that step or a later one is there."""
  for _ in range(2400):
    done = [p.name for p in (folder / "checkpoints").glob("*")]
    if any(name.isdigit() and int(name) >= at_least for name in done):
      return
    assert worker.status() is None, worker.printed()
    time.sleep(0.05)
  raise AssertionError("no checkpoint in two minutes")


def wait_for_row(folder: pathlib.Path, worker: Worker):
  """Waits until this worker, and none before it, has written a metric row."""
  metrics = folder / "metrics.jsonl"
  before = metrics.stat().st_mtime_ns if metrics.exists() else 0
  rows = -1
  for _ in range(2400):
    if metrics.exists() and metrics.stat().st_mtime_ns != before:
      found = len(metrics.read_text().splitlines())
      # The file is written anew first, with the rows up to the checkpoint.
      if 0 <= rows < found:
        return
      rows = found
    assert worker.status() is None, worker.printed()
    time.sleep(0.05)
  raise AssertionError("no row in two minutes")
