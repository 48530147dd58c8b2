"""Several processes as one run: joining, agreeing, and ending together.

JAX's coordination service joins the processes, counts their heartbeats, and
ends every process with pages of C++ text when one is lost, which no Python can
catch. So each process forks once, before it touches a device: the child works,
the parent keeps an eye on it, and tells in a line why it ended.

A process that fails in Python tells the others, so that none waits for it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the only way to the key-value store

from trm_jax.errors import UserError
from trm_jax.run import folder as run_folder

# Exit status where another process was lost, or did not come: try again.
LOST = 75

_FAILED = "trm_jax/failed"
_FOREVER_MS = 2**31 - 1
# What an ending process grants the others to hear of it.
_FAREWELL_MS = 5000
# Folders on a network become visible late.
_VISIBLE_SECONDS = 10

# Lines with which the C++ of JAX begins to say that all is over.
_LAST_WORDS = re.compile(
  r"[EF]\d{4} .*(?:Polled an error from coordination service"
  r"|Use error polling to propagate|Terminating process because the JAX)"
)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the processes meet, and which of them this is.

  Attributes:
    coordinator: "host:port" of process 0; "" for what the cluster says.
    num_processes: in all; None for what the cluster says.
    process_id: from 0; None for what the cluster says.
    heartbeat_seconds: a process without a sign of life for so long is lost.
    join_seconds: how long to wait for the others at the start.

  Raises:
    UserError: if these cannot be.
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
    count, this = self.num_processes, self.process_id
    if count is not None and this is not None and this >= count:
      raise UserError(
        f"--process_id={this}: must be below --num_processes={count}; the "
        "first is 0"
      )


def join(place: Place):
  """Joins the other processes; call it before any device is touched.

  What calls it goes on in a child of its process. Only process 0 keeps its
  standard output: it alone speaks.

  Raises:
    UserError: if the processes cannot be joined.
  """
  _supervise(place)
  if place.coordinator and place.process_id:
    _await_coordinator(place)
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
  _heartbeat_seconds.append(place.heartbeat_seconds)
  if not is_leader():
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  threading.Thread(target=_hear_of_failure, daemon=True).start()


def are_several() -> bool:
  """Whether other processes were joined."""
  return count() > 1


def count() -> int:
  """How many processes there are; touches no device."""
  return distributed.global_state.num_processes


def is_leader() -> bool:
  """Whether this is process 0, which alone writes and speaks."""
  return distributed.global_state.process_id == 0


def barrier(name: str):
  """Waits for all processes, each of which must come here as often.

  A process that is lost meanwhile ends this one.
  """
  if are_several():
    number = _visits[name] = _visits.get(name, -1) + 1
    _client().wait_at_barrier(f"trm_jax/{name}/{number}", _FOREVER_MS)


_visits: dict[str, int] = {}
_heartbeat_seconds: list[int] = []
_failing = threading.Event()
_verdict: list[int] = []


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
    "trm_jax": importlib.metadata.version("trm_jax"),
    "code": _digest_of_code(),
    **facts,
  }
  for number, theirs in enumerate(_exchange("facts", ours)):
    if number == 0:
      first = theirs
    elif found := run_folder.differences(first, theirs):
      told = [
        line.replace(" there, ", f" in process {number}, ").removesuffix(
          " here"
        )
        + " in process 0"
        for line in found
      ]
      raise UserError(
        f"process {number} was started otherwise than process 0; give all of "
        "them the same command and the same code. They differ in\n  "
        + "\n  ".join(told)
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
  mark = folder / ".seen_by_all"
  token = uuid.uuid4().hex if is_leader() else ""
  if is_leader():
    try:
      mark.write_text(token)
    except OSError as error:
      raise UserError(f"cannot write {mark}: {error.strerror}") from error
  token = _exchange("token", token)[0]
  until = time.monotonic() + _VISIBLE_SECONDS
  seen = _holds(mark, token)
  while not seen and time.monotonic() < until:
    time.sleep(1)
    seen = _holds(mark, token)
  blind = [i for i, saw in enumerate(_exchange("seen", seen)) if not saw]
  if is_leader():
    mark.unlink()
  if blind:
    raise UserError(
      f"--workdir={folder}: process {', '.join(map(str, blind))} does not see "
      "the folder that process 0 sees, but all of them write checkpoints to "
      "it; name a folder on a disk that they share, or gs://BUCKET/FOLDER"
    )


def refuse_several(what: str):
  """Refuses what only one process can do.

  Raises:
    UserError: if there are several.
  """
  if are_several():
    raise UserError(
      f"{what} runs in one process: leave out --coordinator and --distributed"
    )


def tell_failure(message: str, status: int):
  """Tells all other processes that this one fails, before it ends.

  Args:
    message: why, for their users.
    status: with which this process is about to exit.
  """
  if are_several():
    _failing.set()
    _announce(status)
    this = distributed.global_state.process_id
    # Another may have failed first, or the coordinator be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(_FAILED, json.dumps([this, message]))
      _client().wait_at_barrier("trm_jax/farewell", _FAREWELL_MS)


def await_reason():
  """Waits, after a failed computation, for word of who was lost.

  A broken connection is noticed by what computes over it before anybody is
  known to be lost. Then this does not return, for the process is ended.
  """
  if are_several():
    time.sleep(_heartbeat_seconds[0] + _FAREWELL_MS / 1000)


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
  """Everybody's value, in the order of the processes; each must come here."""
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
  root = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def _holds(mark: pathlib.Path, token: str) -> bool:
  try:
    return mark.read_text() == token
  except OSError:
    return False


def _announce(status: int):
  """Tells the parent how this process is going to end.

  Others may be gone a moment earlier, and JAX ends this one for that.
  """
  os.write(_verdict[0], bytes([status]))


def _hear_of_failure():
  """Ends this process when another says that it fails."""
  try:
    text = _client().blocking_key_value_get(_FAILED, _FOREVER_MS)
  except jax.errors.JaxRuntimeError:
    return  # the joint run is over
  number, message = json.loads(text)
  if _failing.is_set():
    return  # and says itself why
  _tell(f"error: stopped, because process {number} failed: {message}")
  _announce(2)
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().wait_at_barrier("trm_jax/farewell", _FAREWELL_MS)
  os._exit(2)


def _await_coordinator(place: Place):
  """Waits until somebody listens where process 0 should.

  JAX would wait as well, but could not say what was wrong.
  """
  host, _, port = place.coordinator.rpartition(":")
  until = time.monotonic() + place.join_seconds
  while True:
    try:
      socket.create_connection((host.strip("[]"), int(port)), 5).close()
      return
    except OSError as error:
      if time.monotonic() > until:
        raise UserError(
          f"--coordinator={place.coordinator}: nobody answered in "
          f"{place.join_seconds} s ({error}); see that process 0 was started, "
          "that this is its address, and that no firewall closes the port"
        ) from None
    time.sleep(0.5)


def _supervise(place: Place):
  """Forks; returns in the child alone, whose end the parent explains."""
  words, mouth = os.pipe()
  leash, hand = os.pipe()
  verdicts, verdict = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if child:
    os.close(mouth)
    os.close(leash)
    os.close(verdict)
    _watch(child, words, verdicts, place)
  # A group of its own: Ctrl-C reaches the parent, which passes it on once.
  os.setpgid(0, 0)
  for unused in (words, hand, verdicts):
    os.close(unused)
  _verdict.append(verdict)
  os.dup2(mouth, sys.stderr.fileno())
  os.close(mouth)

  def die_with_parent():
    os.read(leash, 1)  # nothing is ever written: it ends with the parent
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=die_with_parent, daemon=True).start()


def _watch(child: int, words: int, verdicts: int, place: Place) -> NoReturn:
  """Passes signals on and errors through until the child ends."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(child, number))
  held: list[str] = []

  def listen():
    with open(words, errors="replace") as lines:
      for line in lines:
        if held or _LAST_WORDS.match(line):
          held.append(line)
        else:
          sys.stderr.write(line)
          sys.stderr.flush()

  ears = threading.Thread(target=listen, daemon=True)
  ears.start()
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  ears.join(timeout=5)  # somebody else may still hold the pipe
  if status == -signal.SIGABRT and held:
    if announced := os.read(verdicts, 1):
      os._exit(announced[0])
    _tell(explain("".join(held), place))
    os._exit(LOST)
  if held:
    _tell("".join(held))
  if status < 0:
    name = signal.Signals(-status).name
    cause = " (out of memory?)" if -status == signal.SIGKILL else ""
    _tell(f"error: this process was killed by {name}{cause}")
    status = 128 - status
  os._exit(status)


def _tell(text: str):
  print(text.rstrip("\n"), file=sys.stderr, flush=True)


def explain(text: str, place: Place) -> str:
  """What JAX's last words mean, in a line, and what to do.

  Args:
    text: what it wrote before it ended the process.
    place: where the process stood.
  """
  again = "start all of them again with the same command"
  if "RegisterTask" in text:
    if "ALREADY_EXISTS" in text:
      return (
        f"error: another process joined with --process_id={place.process_id} "
        f"as well; give each its own, and {again}"
      )
    cause = re.search(r"absl::Status: (.*)", text)
    if cause and "DEADLINE" not in cause[1]:
      return f"error: the processes cannot be joined: {cause[1]}; {again}"
    return (
      f"error: the processes were not all there in {place.join_seconds} s; "
      "see that each was started, with the same --coordinator and "
      f"--num_processes, and {again}"
    )
  lost = re.search(r"unhealthy \(stopped sending heartbeats\):\s*((?:\d+\s+)+)",
                   text)  # fmt: skip
  if lost:
    names = ", ".join(lost[1].split())
    told = (
      f"lost process {names}: no sign of life within "
      f"{place.heartbeat_seconds} s"
    )
  elif "UNAVAILABLE" in text or "DEADLINE_EXCEEDED" in text:
    told = (
      "lost process 0, the coordinator: it ended, or cannot be reached; see "
      "what it said"
    )
  else:
    cause = re.search(r"absl::Status: (.*)", text)
    told = "lost another process" + (f" ({cause[1]})" if cause else "")
  command = shlex.join(sys.orig_argv)
  return (
    f"error: {told}. Nothing since the last checkpoint is kept; {again} to go "
    f"on from there: {command}"
  )
