"""Damages small files of every kind that programs read, and reads them.

    make fuzz MINUTES=10 [SEED=0]
    python tests/campaigns/fuzz.py --reader=NAME --seed=K    # repeats a case

Whatever is damaged, a reader returns a value or raises a `UserError` of one
line. It raises nothing else, is not slow, takes no memory that the file does
not justify, runs no code that was planted in it, and where the format has a
fingerprint, returns no other arrays. Prints each new kind of failure with the
case that shows it.
Exits with status 1 if there was one.

Readers run in a process whose memory is bounded; another one watches it.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import damage
import numpy as np
from programs import ROOT, environment
from readers import Reader, all_readers

ROOM = 2**30  # bytes that a reader may take
SLOWEST = 10.0  # seconds for one case
HANGS = 120.0  # seconds after which the process is ended
LONGEST = 2000  # characters of a message
CHUNK = 3000  # cases of a process


def arrays(value: Any) -> Any:
  """The arrays of a value, as bytes that can be compared."""
  import jax

  return [
    (str(np.asarray(a).dtype), np.shape(a), np.asarray(a).tobytes())
    for a in jax.tree.leaves(value)
  ]


def _time_out(*_):
  raise TimeoutError(f"more than {SLOWEST} seconds")


def examine(
  reader: Reader, good: pathlib.Path, expected: Any, seed: tuple[int, int]
) -> tuple[str, str, str]:
  """Reads one damaged input.

  Returns:
    "read", "refused" or the kind of failure; a message; the details.
  """
  from trm_jax.errors import UserError

  with tempfile.TemporaryDirectory() as name:
    at = pathlib.Path(name, "input")
    shutil.copytree(good, at)
    planted = damage.Plant.path = f"{name}/planted"
    random = np.random.default_rng(seed)
    damage.of_tree(at, random, reader.damage, reader.opens)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _time_out)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    started = time.monotonic()
    outcome = ("read", "", "")
    try:
      value = reader.read(at)
      if reader.is_sealed and arrays(value) != expected:
        outcome = ("another value", "", "")
    except UserError as error:
      outcome = ("refused", str(error), "")
      if "allocate" in str(error):  # too late
        outcome = ("allocates before it checks", str(error), "")
      elif len(str(error)) > LONGEST or "\n" in str(error):
        outcome = ("a message of many lines or characters", str(error), "")
    except BaseException as error:
      frames = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if str(ROOT) in frame.filename
      ]
      kind = f"{type(error).__name__} at {frames[-1]}"
      outcome = (kind, str(error), traceback.format_exc())
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
      unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
      resource.setrlimit(resource.RLIMIT_AS, unlimited)
    if time.monotonic() - started > SLOWEST:
      outcome = ("slow", *outcome[1:])
    if os.path.exists(planted):
      outcome = ("planted code ran", *outcome[1:])
    return outcome


def work(folder: pathlib.Path, cases: Iterator[tuple[str, int]]):
  """Examines cases; prints each as JSON before and after."""
  readers, expected = all_readers(), {}
  told = sys.stdout
  for name, seed in cases:
    good = folder / name
    if not good.exists():
      good.mkdir()
      readers[name].write(good)
    if name not in expected:  # nothing is new to memory later
      expected[name] = None
      with contextlib.suppress(ValueError):  # what is good may be refused
        expected[name] = arrays(readers[name].read(good))
    print(json.dumps([name, seed]), file=told, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
      found = examine(
        readers[name], good, expected[name], (zlib.crc32(name.encode()), seed)
      )
    print(json.dumps([name, seed, *found]), file=told, flush=True)


def _started(folder, readers, seed: int, skip: int, count: int):
  """A process that works from case number `skip`."""
  command = [sys.executable, __file__, "--work", str(folder), "--seed", seed]
  command += ["--skip", skip, "--count", count, "--reader", ",".join(readers)]
  return subprocess.Popen(
    [str(part) for part in command],
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    bufsize=0,  # `select` sees all that was not read
  )


def campaign(
  readers: list[str], seed: int = 0, minutes: float = 0, count: int = 0
) -> tuple[dict[str, collections.Counter], list[list[str]]]:
  """Examines cases until the time is over, or `count` of them.

  Args:
    readers: their names; case k is of reader k modulo their number.
    seed: the first seed of each.
    minutes: of time.
    count: of cases; 0 for as many as there is time for.

  Returns:
    What became of the cases of each reader, and the first case of each kind of
    failure: name, seed, kind, message, details.
  """
  counts = {name: collections.Counter() for name in readers}
  until = time.monotonic() + (60 * minutes if minutes else 1e9)
  failures, kinds, done = [], set(), 0

  def note(name, number, kind, message, details):
    counts[name][kind if kind in ("read", "refused") else "failed"] += 1
    if kind not in ("read", "refused") and (name, kind) not in kinds:
      kinds.add((name, kind))
      failures.append([name, number, kind, message, details])
      print(f"{name}, seed {number}: {kind} {message[:300]!r}", flush=True)

  with tempfile.TemporaryDirectory() as folder:
    while time.monotonic() < until and (not count or done < count):
      some = min(CHUNK, count - done) if count else CHUNK
      process = _started(folder, readers, seed, done, some)
      assert process.stdout
      case, line = None, b""
      while time.monotonic() < until:
        if not select.select([process.stdout], [], [], HANGS)[0]:
          line = None
          break
        line = process.stdout.readline()
        if not line:
          break
        case = json.loads(line)
        if len(case) > 2:
          done += 1
          note(*case)
          case = None
      status = process.wait() if line == b"" else None
      process.kill()
      process.wait()
      process.stdout.close()
      if time.monotonic() < until and status != 0:
        assert case, f"no case was examined: status {status}"
        how = "hangs" if status is None else f"ends with status {status}"
        note(*case, how, "", "")
        done += 1
  return counts, failures


def main(arguments: argparse.Namespace) -> int:
  """Runs a campaign, one case, or the work of a campaign."""
  names = (
    arguments.reader.split(",") if arguments.reader else list(all_readers())
  )
  if arguments.work:
    cases = (
      (names[k % len(names)], arguments.seed + k // len(names))
      for k in range(arguments.skip, arguments.skip + arguments.count)
    )
    work(pathlib.Path(arguments.work), cases)
    return 0
  count = 1 if arguments.reader and not arguments.minutes else 0
  counts, failures = campaign(names, arguments.seed, arguments.minutes, count)
  for failure in failures:
    print("\n" + failure[-1] if count else "", end="")
  for name, found in counts.items():
    print(f"{name:16}", *(f"{n} {what}" for what, n in sorted(found.items())))
  print(
    f"{sum(map(sum, (c.values() for c in counts.values())))} cases, "
    f"{len(failures)} kinds of failure"
  )
  return int(bool(failures))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--reader", default="")
  for hidden, kind in (("work", str), ("skip", int), ("count", int)):
    parser.add_argument(f"--{hidden}", type=kind, help=argparse.SUPPRESS)
  sys.exit(main(parser.parse_args()))
