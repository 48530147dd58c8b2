"""Standard streams whose loss does not end a program.

A reader such as `head` may end, a disk may be full, a terminal may be closed.
The work goes on, and what is printed after that is discarded.
"""

import io
import os
import select
import sys


class _Raw(io.FileIO):
  """A file descriptor that leads to the null device after a failed write."""

  error: OSError | None = None

  def write(self, data, /):
    rest = memoryview(data)
    try:
      while rest:  # a write may be partial, and None if it would block
        if count := super().write(rest):
          rest = rest[count:]
        else:
          select.select([], [self], [])
    except OSError as error:
      self.error = error
      _discard(self.fileno())
    return len(data)


class _Text(io.TextIOWrapper):
  """Text to a `_Raw`; characters outside of the encoding are replaced."""

  def __init__(self, stream: io.TextIOWrapper):
    self.file = _Raw(stream.fileno(), "wb", closefd=False)
    super().__init__(
      self.file if stream.write_through else io.BufferedWriter(self.file),
      stream.encoding,
      "replace",
      line_buffering=stream.line_buffering,
      write_through=stream.write_through,
    )


def protect():
  """Replaces the standard streams of this process; repeated calls are fine.

  A stream that was closed at the start becomes the null device, so that no file
  opened later takes its number. A captured stream stays as it is.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    stream = getattr(sys, name)
    if stream is None:
      _discard(number)
      stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
      setattr(sys, name, stream)
    if number and type(stream) is io.TextIOWrapper:
      stream.flush()
      setattr(sys, name, _Text(stream))


def lost() -> OSError | None:
  """Flushes standard output; the error by which it was lost, if it was."""
  sys.stdout.flush()
  return sys.stdout.file.error if isinstance(sys.stdout, _Text) else None


def _discard(descriptor: int):
  null = os.open(os.devnull, os.O_RDWR)
  if null != descriptor:
    os.dup2(null, descriptor)
    os.close(null)
