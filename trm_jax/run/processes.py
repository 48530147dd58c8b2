"""Several processes as one run: joining, comparing settings, ending together.

JAX's coordination service joins the processes, counts their heartbeats, and
ends all when one is lost; `supervisor.py` explains why. A Python error of one
process is sent to the others through the key-value store, and ends them too.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # the only way to the key-value store

from trm_jax.errors import UserError
from trm_jax.run import files, supervisor
from trm_jax.run.changes import differences

LOST = supervisor.LOST

_FAILURE_KEY = "trm_jax/failed"
_FOREVER_MS = 2**31 - 1
# Timeout of the barrier after a failure.
_FAILURE_WAIT_MS = 5000
# Files on a network disk become visible with a delay.
_VISIBLE_SECONDS = 10

_barrier_counts: dict[str, int] = {}  # makes the names of barriers unique
_has_failed = threading.Event()
_heartbeat_seconds = 0


@dataclasses.dataclass(frozen=True)
class Place:
  """The address of the coordinator, and this process's number.

  "" and None are detected from the cluster's environment.

  Attributes:
    coordinator: "host:port" of process 0.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    heartbeat_seconds: a process without a heartbeat for so long is lost.
    join_seconds: timeout for joining the others.
  """

  coordinator: str = ""
  num_processes: int | None = None
  process_id: int | None = None
  heartbeat_seconds: int = 60
  join_seconds: int = 300

  def __post_init__(self):
    port = re.fullmatch(r".+:(\d+)", self.coordinator)
    if self.coordinator and not (port and 0 < int(port[1]) < 2**16):
      raise UserError(
        f"--coordinator={self.coordinator}: must be HOST:PORT of process 0, "
        "as in 10.0.0.1:8476"
      )


def join(place: Place):
  """Joins the other processes; must be called before any device is used.

  Forks: the caller continues in a child process. All but process 0 lose their
  standard output.

  Raises:
    UserError: if the processes cannot be joined.
  """
  global _heartbeat_seconds
  supervisor.supervise(
    place.process_id, place.join_seconds, place.heartbeat_seconds
  )
  try:
    jax.distributed.initialize(
      place.coordinator or None,
      place.num_processes,
      place.process_id,
      initialization_timeout=place.join_seconds,
      heartbeat_timeout_seconds=place.heartbeat_seconds,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"the processes cannot be joined: {str(error).splitlines()[0]} Give "
      "each --coordinator, --num_processes and --process_id"
    ) from error
  _heartbeat_seconds = place.heartbeat_seconds
  if not is_leader():
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  threading.Thread(target=_exit_on_failure, daemon=True).start()


def are_several() -> bool:
  """Whether there is more than one process."""
  return count() > 1


def count() -> int:
  """The number of processes; uses no device."""
  return distributed.global_state.num_processes


def is_leader() -> bool:
  """Whether this is process 0, the only one that writes and prints."""
  return distributed.global_state.process_id == 0


def barrier(name: str):
  """Waits for all processes; each must call it equally often with `name`."""
  if are_several():
    number = _barrier_counts[name] = _barrier_counts.get(name, -1) + 1
    _client().wait_at_barrier(f"trm_jax/{name}/{number}", _FOREVER_MS)


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
  """Runs the block in process 0, and then in all others.

  The others find the files that process 0 wrote to a shared disk.
  """
  if not is_leader():
    barrier(name)
  yield
  if is_leader():
    barrier(name)


def agree(facts: Mapping[str, Any]):
  """Compares `facts` (JSON values), the code and the versions of processes.

  Raises:
    UserError: in every process, naming what differs from process 0.
  """
  if not are_several():
    return
  ours = {
    "num_processes": count(),
    "jax": jax.__version__,
    "code": _digest_of_code(),
    **facts,
  }
  first, *others = _exchange("facts", ours)
  for number, theirs in enumerate(others, start=1):
    there = f"in process {number}"
    if found := differences(first, theirs, there, "in process 0"):
      raise UserError(
        f"process {number} was started otherwise than process 0; give all of "
        "them the same command and the same code. They differ in\n  "
        + "\n  ".join(found)
      )


def check_shared(folder: pathlib.Path):
  """Checks that all processes see the folder that process 0 has created.

  Raises:
    UserError: in every process, naming those that do not see it.
  """
  if not are_several():
    return
  mark = folder / f".seen_by_all.{_exchange('mark', uuid.uuid4().hex)[0]}"
  if is_leader():
    files.write_text(mark, "")
  barrier("marked")
  until = time.monotonic() + _VISIBLE_SECONDS
  while not (seen := mark.exists()) and time.monotonic() < until:
    time.sleep(1)
  blind = [i for i, saw in enumerate(_exchange("seen", seen)) if not saw]
  if is_leader():
    mark.unlink()
  if blind:
    raise UserError(
      f"--workdir={folder}: process {', '.join(map(str, blind))} does not see "
      "the folder that process 0 sees, but all of them write checkpoints to "
      "it; name a folder on a disk that they share, or gs://BUCKET/FOLDER"
    )


def tell_failure(message: str):
  """Sends the error message of this process, which fails, to all others."""
  if are_several():
    _has_failed.set()
    this = distributed.global_state.process_id
    # Fails if another process failed first, or the coordinator has ended.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(_FAILURE_KEY, json.dumps([this, message]))
    _await_failure_known()


def await_reason():
  """Waits, after a failed computation, until a lost process is detected.

  A computation notices a broken connection before the heartbeats do. If a
  process was lost, JAX ends this one meanwhile, and the supervisor explains it.
  """
  if are_several():
    time.sleep(_heartbeat_seconds + _FAILURE_WAIT_MS / 1000)


def leave():
  """Waits until all processes have finished, and disconnects."""
  if are_several():
    barrier("end")
    jax.distributed.shutdown()


def _client() -> Any:
  client = distributed.global_state.client
  assert client, "`join` was not called"
  return client


def _exchange(name: str, value: Any) -> list[Any]:
  """The value of each process, by its number; all processes must call it."""
  this = distributed.global_state.process_id
  _client().key_value_set(f"trm_jax/{name}/{this}", json.dumps(value))
  barrier(name)
  # This process's value is read back too: JSON converts tuples to lists.
  return [
    json.loads(_client().blocking_key_value_get(f"trm_jax/{name}/{i}", 60_000))
    for i in range(count())
  ]


def _digest_of_code() -> str:
  """SHA-256 of the package's files, which may differ between hosts."""
  root = pathlib.Path(__file__).parent.parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def _exit_on_failure():
  """Ends this process when another one fails; runs in a thread."""
  try:
    text = _client().blocking_key_value_get(_FAILURE_KEY, _FOREVER_MS)
  except jax.errors.JaxRuntimeError:
    return  # disconnected
  number, message = json.loads(text)
  if not _has_failed.is_set():  # otherwise it prints its own error
    text = f"error: stopped, because process {number} failed: {message}\n"
    with contextlib.suppress(OSError):  # nobody reads it
      os.write(sys.stderr.fileno(), text.encode())
    _await_failure_known()
    os._exit(2)


def _await_failure_known():
  """Waits until all processes know of a failure; process 0 ends last."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().wait_at_barrier("trm_jax/farewell", _FAILURE_WAIT_MS)
  if is_leader():  # JAX aborts processes that remain without it
    time.sleep(2)
