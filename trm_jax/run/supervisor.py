"""A parent process that explains why JAX aborted its child.

When a process is lost, JAX's coordination service aborts every other one from
C++, with pages of text, and no Python code can catch it (a callback given to
its client ends in std::bad_cast, jax 0.10). So each process of several forks
once, before it touches a device: the child trains, the parent forwards its
standard error, and replaces JAX's text by a line and its status by `LOST`.
"""

import os
import re
import shlex
import signal
import sys
import threading
import time
from typing import NoReturn

# Exit status where another process was lost, or did not come: try again.
LOST = 75

# Lines with which JAX begins to explain an abort.
_ABORT = re.compile(
  r"[EF]\d{4} .*(?:Polled an error from coordination service"
  r"|Use error polling to propagate|Terminating process because the JAX)"
)


def supervise(process_id: int | None, join_seconds: int, heartbeat: int):
  """Forks, and returns in the child alone.

  Args:
    process_id: of this process; for messages, as are the others.
    join_seconds: how long it waits for the others at the start.
    heartbeat: seconds without a sign of life after which one is lost.
  """
  parent = os.getpid()
  read_end, write_end = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if child:
    os.close(write_end)
    _watch(child, read_end, process_id, join_seconds, heartbeat)
  # A group of its own: Ctrl-C reaches the parent, which forwards it once.
  os.setpgid(0, 0)
  os.dup2(write_end, sys.stderr.fileno())
  os.close(write_end)
  os.close(read_end)

  def end_with_parent():
    while os.getppid() == parent:
      time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _watch(child: int, stderr: int, *facts) -> NoReturn:
  """Forwards signals and standard error until the child ends."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(child, number))
  held: list[str] = []

  def forward():
    with open(stderr, errors="replace") as lines:
      for line in lines:
        if held or _ABORT.match(line):
          held.append(line)
        else:
          sys.stderr.write(line)
          sys.stderr.flush()

  reader = threading.Thread(target=forward, daemon=True)
  reader.start()
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  reader.join(timeout=5)  # a process that the child started may hold the pipe
  text = "".join(held)
  if status == -signal.SIGABRT and held:
    text, status = explain(text, *facts) + "\n", LOST
  elif status < 0:
    cause = " (out of memory?)" if -status == signal.SIGKILL else ""
    name = signal.Signals(-status).name
    text += f"error: this process was killed by {name}{cause}\n"
    status = 128 - status
  sys.stderr.write(text)
  sys.stderr.flush()
  os._exit(status)


def explain(
  text: str, process_id: int | None, join_seconds: int, heartbeat: int
) -> str:
  """What JAX's text means, in a line, and what to do.

  Args:
    text: what it wrote before it aborted.
    process_id: as in `supervise`, like the others.
    join_seconds: likewise.
    heartbeat: likewise.
  """
  again = "start all of them again with the same command"
  found = re.search(r"absl::Status: (.*)", text)
  cause = found[1] if found else ""
  lost = re.search(
    r"unhealthy \(stopped sending heartbeats\):\s*((?:\d+\s+)+)", text
  )
  if "RegisterTask" in text:
    if "ALREADY_EXISTS" in text:
      told = f"another process has joined with --process_id={process_id} too"
    elif cause and "DEADLINE" not in cause:
      told = f"the processes cannot be joined: {cause}"
    else:
      told = (
        f"the processes were not all there in {join_seconds} s; see that each "
        "was started, with the same --num_processes and --coordinator, which "
        "is the address of process 0, and that no firewall closes its port"
      )
    return f"error: {told}; {again}"
  if lost:
    names = ", ".join(lost[1].split())
    told = f"lost process {names}: no sign of life within {heartbeat} s"
  elif "UNAVAILABLE" in text or "DEADLINE_EXCEEDED" in text:
    told = (
      "lost process 0, the coordinator: it ended, or cannot be reached; see "
      "what it said"
    )
  else:
    told = f"lost another process ({cause})"
  return (
    f"error: {told}. Nothing since the last checkpoint is kept; {again} to go "
    f"on from there: {shlex.join(sys.orig_argv)}"
  )
