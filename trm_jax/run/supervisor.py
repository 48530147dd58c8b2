"""A parent process that explains why JAX aborted its child.

When a process is lost, JAX's coordination service aborts all others from C++,
which Python cannot catch (a callback of its client ends in std::bad_cast, jax
0.10). Therefore each process forks before it uses a device: the child trains,
and the parent forwards its standard error, replacing JAX's text by one line and
the status by `LOST`.
"""

import os
import re
import shlex
import signal
import sys
import threading
import time
from typing import NoReturn

# Exit status if another process was lost or did not join: try again.
LOST = 75

# First lines of JAX's explanation of an abort.
_ABORT = re.compile(
  r"[EF]\d{4} .*(?:Polled an error from coordination service"
  r"|Use error polling to propagate|Terminating process because the JAX)"
)


def supervise(process_id: int | None, join_seconds: int, heartbeat: int):
  """Forks, and returns only in the child; arguments are for messages.

  Args:
    process_id: of this process.
    join_seconds: timeout for joining the others.
    heartbeat: seconds without a heartbeat after which a process is lost.
  """
  parent = os.getpid()
  read_end, write_end = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if child:
    os.close(write_end)
    _watch(child, read_end, process_id, join_seconds, heartbeat)
  # A new process group, so that Ctrl-C reaches only the parent, which
  # forwards it.
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
  explanation: list[str] = []  # of JAX, for an abort

  def forward():
    with open(stderr, errors="replace") as lines:
      for line in lines:
        if explanation or _ABORT.match(line):
          explanation.append(line)
        else:
          sys.stderr.write(line)
          sys.stderr.flush()

  reader = threading.Thread(target=forward, daemon=True)
  reader.start()
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  reader.join(timeout=5)  # a process started by the child may keep it open
  text = "".join(explanation)
  if status == -signal.SIGABRT and explanation:
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
  """One line on what JAX's `text` means and what to do; see `supervise`."""
  again = "start all of them again with the same command"
  found = re.search(r"absl::Status: (.*)", text)
  cause = found[1] if found else ""
  lost = re.search(
    r"unhealthy \(stopped sending heartbeats\):\s*((?:\d+\s+)+)", text
  )
  if "RegisterTask" in text:
    if "ALREADY_EXISTS" in text:
      problem = f"another process has joined with --process_id={process_id} too"
    elif cause and "DEADLINE" not in cause:
      problem = f"the processes cannot be joined: {cause}"
    else:
      problem = (
        f"the processes were not all there in {join_seconds} s; see that each "
        "was started, with the same --num_processes and --coordinator, which "
        "is the address of process 0, and that no firewall closes its port"
      )
    return f"error: {problem}; {again}"
  if lost:
    names = ", ".join(lost[1].split())
    problem = f"lost process {names}: no sign of life within {heartbeat} s"
  elif "UNAVAILABLE" in text or "DEADLINE_EXCEEDED" in text:
    problem = (
      "lost process 0, the coordinator: it ended, or cannot be reached; see "
      "what it said"
    )
  else:
    problem = f"lost another process ({cause})"
  return (
    f"error: {problem}. Nothing since the last checkpoint is kept; {again} to "
    f"go on from there: {shlex.join(sys.orig_argv)}"
  )
