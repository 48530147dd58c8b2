"""Kills a training run at random moments, until it ends with the same bits.

    make kill MINUTES=10 [SEED=0]

In each round a tiny run is stopped several times, by signals or because no file
can grow any more, resumed each time, and at last left alone. Its state and its
rows of metrics must then equal those of a run that nothing stopped. A failing
round is repeated, as far as time allows it, by its seed. Exits with status 1 if
a round failed.
"""

import argparse
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from process_pool import ProcessPool, Worker, timeless_rows
from programs import TINY, restored

HANGS = 300  # seconds
STOPS = 5  # of a round, at most
FULL_DISK = "full disk"
WAYS = (
  signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT,
  FULL_DISK,
)  # fmt: skip


def flags(folder: pathlib.Path) -> list[str]:
  """A run whose checkpoints lie between its rows of metrics and scores."""
  return [
    *TINY(folder),
    "--config.train.steps=96",
    "--config.train.log_every=12",
    "--config.eval.every=24",
    "--config.checkpoint.every=10",
  ]


def stop(worker: Worker, way, random: np.random.Generator):
  """Stops a worker in one of `WAYS`, if it has not ended before."""
  if worker.status() is not None:
    return
  try:
    if way == FULL_DISK:
      most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)[1]
      room = int(random.integers(0, 3000))
      resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (room, most))
    else:
      worker.send(way)
  except ProcessLookupError:  # it ended by itself
    pass


def faults(
  pool: ProcessPool,
  folder: pathlib.Path,
  seconds: float,
  seed: int,
  stops: list[str],
) -> Iterator[str]:
  """One round: what was wrong with it.

  Args:
    pool: starts the processes.
    folder: has the run `whole`, which nothing stopped.
    seconds: how long that took.
    seed: decides when and how the run is stopped.
    stops: the ways in which it was are added.
  """
  random = np.random.default_rng(seed)
  run = folder / f"run{seed}"
  command = [*flags(folder), f"--workdir={run}"]
  for _ in range(random.integers(1, STOPS + 1)):
    way = WAYS[random.integers(len(WAYS))]
    worker = pool.start("train", *command)
    # Most stops are early, for later starts have less left to do.
    time.sleep(seconds * random.uniform(0, 1) ** 1.5)
    started = worker.status() is None
    stop(worker, way, random)
    name = getattr(way, "name", way)
    try:
      status, printed = worker.wait(HANGS)
    except AssertionError:
      yield f"{name}: no end after {HANGS} s: {worker.printed()[-500:]}"
      worker.send(signal.SIGKILL)
      status, printed = worker.wait()
    if started:
      stops.append(str(name))
    elif status:
      yield f"a start failed with status {status}: {printed[-500:]}"
    if "Traceback" in printed and way is not signal.SIGINT:
      yield f"{name}: a traceback: {printed[-500:]}"
    if status == 0:
      break
  status, printed = pool.start("train", *command).wait()
  if status:
    yield f"the last start failed with status {status}: {printed[-500:]}"
    return
  try:
    jax.tree.map(
      np.testing.assert_array_equal, restored(run), restored(folder / "whole")
    )
  except AssertionError as error:
    yield f"other bits: {str(error).strip()[:300]}"
  for ours, expected in zip(
    timeless_rows(run), timeless_rows(folder / "whole"), strict=False
  ):
    if ours != expected:
      yield f"a row is {ours}, expected {expected}"
      break
  lengths = [len(timeless_rows(at)) for at in (run, folder / "whole")]
  if lengths[0] != lengths[1]:
    yield f"{lengths[0]} rows, expected {lengths[1]}"


def campaign(minutes: float, seed: int) -> int:
  """Rounds of the seeds from `seed`, at least one; how many failed."""
  failed, rounds = 0, 0
  variables = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{name}/compiled")
    variables["JAX_COMPILATION_CACHE_DIR"] = cache
    with ProcessPool(folder, **variables) as pool:
      for run in ("warm", "whole"):  # compiling is timed by neither
        began = time.monotonic()
        where = f"--workdir={folder / run}"
        status, printed = pool.start("train", *flags(folder), where).wait(600)
        assert status == 0, printed
        seconds = time.monotonic() - began
      until = time.monotonic() + 60 * minutes
      while not rounds or time.monotonic() < until:
        stops: list[str] = []
        found = list(faults(pool, folder, seconds, seed + rounds, stops))
        rounds, failed = rounds + 1, failed + bool(found)
        outcome = "FAILS" if found else "ok"
        print(f"seed {seed + rounds - 1}: {outcome}, {', '.join(stops)}")
        for line in found:
          print(f"  {line}")
        sys.stdout.flush()
  print(f"{rounds} rounds, {failed} failed")
  return failed


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--seed", type=int, default=0)
  chosen = parser.parse_args()
  sys.exit(campaign(chosen.minutes, chosen.seed) > 0)
