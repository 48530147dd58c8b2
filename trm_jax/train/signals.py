"""Signals that stop a run."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator

from jax.experimental import multihost_utils

from trm_jax.run import processes


class Stopped(Exception):  # noqa: N818 - not an error
  """A signal stopped the run, after a checkpoint.

  Attributes:
    step: of the checkpoint.
    signal: number of the signal.
  """

  def __init__(self, step: int, signal_number: int):
    super().__init__(f"stopped at step {step}")
    self.step = step
    self.signal = signal_number


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], int | None]]:
  """Yields a function that returns the signal to stop by, or None.

  It is called between dispatches and between batches of an evaluation. With
  several processes, which must stop at the same call, JAX's coordination
  service handles SIGTERM and chooses it.
  """
  several = processes.are_several()
  received: list[int] = []

  def on_signal(number, frame):
    del frame
    if number == signal.SIGINT and number in received:
      raise KeyboardInterrupt  # Ctrl-C again: stop without saving
    received.append(number)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  def requested(step: int) -> int | None:
    del step
    if not several:
      return received[0] if received else None
    number = next(_sync_points)
    reached = multihost_utils.reached_preemption_sync_point(number)
    return signal.SIGTERM if reached else None

  caught = [signal.SIGINT, signal.SIGHUP]
  if not several:  # otherwise JAX handles it
    caught.append(signal.SIGTERM)
  previous = {number: signal.getsignal(number) for number in caught}
  for number, handler in previous.items():
    if handler != signal.SIG_IGN:  # as nohup sets for SIGHUP
      signal.signal(number, on_signal)
  try:
    yield requested
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


# Numbers of JAX's sync points, consecutive over all runs of a process.
_sync_points = itertools.count(1)
