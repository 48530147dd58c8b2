"""Several processes as one run: joining, agreeing, and ending together.

JAX's coordination service joins the processes, counts their heartbeats, and
ends every process when one is lost; `supervisor.py` tells why. A process that
fails in Python tells the others itself, so that none waits for it.
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
from trm_jax.run import folder as run_folder
from trm_jax.run import supervisor

LOST = supervisor.LOST

_FAILED = "trm_jax/failed"
_FOREVER_MS = 2**31 - 1
# How long a process that ends waits until the others know.
_FAREWELL_MS = 5000
# Folders on a network become visible late.
_VISIBLE_SECONDS = 10

_visits: dict[str, int] = {}  # of barriers: each visit has a name of its own
_failing = threading.Event()
_heartbeat_seconds = 0


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the processes meet, and which of them this is.

  Attributes:
    coordinator: "host:port" of process 0; "" to ask the cluster.
    num_processes: in all; None to ask the cluster.
    process_id: from 0; None to ask the cluster.
    heartbeat_seconds: a process without a sign of life for so long is lost.
    join_seconds: how long to wait for the others at the start.

  Raises:
    UserError: if these are impossible.
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
  """Joins the other processes; call it before any device is touched.

  Its caller goes on in a child process. Only process 0 keeps its standard
  output.

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
  threading.Thread(target=_end_with_others, daemon=True).start()


def are_several() -> bool:
  """Whether other processes were joined."""
  return count() > 1


def count() -> int:
  """How many processes there are; touches no device."""
  return distributed.global_state.num_processes


def is_leader() -> bool:
  """Whether this is process 0, which alone writes and prints."""
  return distributed.global_state.process_id == 0


def barrier(name: str):
  """Waits for all processes, each of which must come here as often.

  A process that is lost meanwhile ends this one.
  """
  if are_several():
    number = _visits[name] = _visits.get(name, -1) + 1
    _client().wait_at_barrier(f"trm_jax/{name}/{number}", _FOREVER_MS)


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
  """Process 0 runs the block alone, then all others do, at once.

  What it leaves on a disk that they share, they find there.
  """
  if not is_leader():
    barrier(name)
  yield
  if is_leader():
    barrier(name)


def agree(facts: Mapping[str, Any]):
  """Makes sure that all processes were started alike.

  Args:
    facts: what must be equal everywhere, as plain values; the program's code
      and the number of processes are added.

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
    found = run_folder.differences(
      first, theirs, f"in process {number}", "in process 0"
    )
    if found:
      raise UserError(
        f"process {number} was started otherwise than process 0; give all of "
        "them the same command and the same code. They differ in\n  "
        + "\n  ".join(found)
      )


def check_shared(folder: pathlib.Path):
  """Makes sure that all processes see one folder, in which all will write.

  Args:
    folder: made already by process 0.

  Raises:
    UserError: in every process, naming those that do not see it.
  """
  if not are_several():
    return
  mark = folder / f".seen_by_all.{_exchange('mark', uuid.uuid4().hex)[0]}"
  if is_leader():
    run_folder.write_text(mark, "")
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
  """Tells all other processes that this one fails, before it ends."""
  if are_several():
    _failing.set()
    this = distributed.global_state.process_id
    # Another may have failed first, or the coordinator be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(_FAILED, json.dumps([this, message]))
    _say_farewell()


def await_reason():
  """Waits, after a failed computation, for the supervisor to explain it.

  A broken connection is noticed by what computes over it before anybody is
  known to be lost. Then this does not return, for the process is ended.
  """
  if are_several():
    time.sleep(_heartbeat_seconds + _FAREWELL_MS / 1000)


def leave():
  """Ends the joint run: nobody leaves while another still works."""
  if are_several():
    barrier("end")
    jax.distributed.shutdown()


def _client() -> Any:
  client = distributed.global_state.client
  assert client, "joined"
  return client


def _exchange(name: str, value: Any) -> list[Any]:
  """The value of each process, in their order; all must come here."""
  this = distributed.global_state.process_id
  _client().key_value_set(f"trm_jax/{name}/{this}", json.dumps(value))
  barrier(name)
  # JSON makes lists of tuples, so one's own value is read back as well.
  return [
    json.loads(_client().blocking_key_value_get(f"trm_jax/{name}/{i}", 60_000))
    for i in range(count())
  ]


def _digest_of_code() -> str:
  """SHA-256 of the package's files: a host may have been left out of a pull."""
  root = pathlib.Path(__file__).parent.parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def _end_with_others():
  """Ends this process when another says that it fails."""
  try:
    text = _client().blocking_key_value_get(_FAILED, _FOREVER_MS)
  except jax.errors.JaxRuntimeError:
    return  # the joint run is over
  number, message = json.loads(text)
  if not _failing.is_set():  # else it says itself why
    told = f"error: stopped, because process {number} failed: {message}\n"
    os.write(sys.stderr.fileno(), told.encode())
    _say_farewell()
    os._exit(2)


def _say_farewell():
  """Waits until all know of a failure; process 0 leaves last."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().wait_at_barrier("trm_jax/farewell", _FAREWELL_MS)
  if is_leader():  # JAX aborts whoever is left without it
    time.sleep(2)
