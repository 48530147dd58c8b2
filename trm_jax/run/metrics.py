"""Metrics of a run: rows of JSON, read from the device one dispatch late."""

import contextlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np

from trm_jax.data import checks
from trm_jax.errors import UserError
from trm_jax.run.files import is_remote, write_text

Row = dict[str, Any]

_LONGEST_FILE = 2**30  # bytes


class Writer:
  """Appends rows `{step, split, name: number}` to a file.

  Args:
    path: the `.jsonl` file. In a bucket, where objects cannot be appended to,
      `flush` and `close` write the whole file.
    from_step: rows of later steps are deleted; a resumed run repeats them.
    tensorboard: a folder for TensorBoard files as well, or `None`.

  Raises:
    UserError: if the file cannot be written, or tensorboardX is not installed.
  """

  def __init__(
    self,
    path: pathlib.Path,
    from_step: int = 0,
    tensorboard: pathlib.Path | None = None,
  ):
    kept = [row for row in read(path) if row["step"] <= from_step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    write_text(path, text)
    self._path = path
    self._buffer = None
    if is_remote(path):
      self._buffer = io.StringIO()
      self._buffer.write(text)
    self._file = self._buffer or self._open()
    self._board = _open_tensorboard(tensorboard) if tensorboard else None

  def write(self, step: int, split: str, values: dict[str, float]):
    """Writes one row and flushes it."""
    row = {"step": step, "split": split, **values}
    try:
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    except OSError as error:
      raise UserError(f"cannot write {self._path}: {error.strerror}") from error
    if self._board:
      for name, value in values.items():
        self._board.add_scalar(f"{split}/{name}", value, step)
      self._board.flush()

  def flush(self):
    """Writes rows that are only in memory, and a deleted file anew."""
    if self._buffer:
      write_text(self._path, self._buffer.getvalue())
    elif not self._is_in_place():
      self._file.seek(0)
      write_text(self._path, self._file.read())
      self._file.close()
      self._file = self._open()

  def _is_in_place(self) -> bool:
    try:
      found = self._path.stat()
    except FileNotFoundError:
      return False
    return os.path.samestat(os.fstat(self._file.fileno()), found)

  def _open(self) -> IO[str]:
    try:
      return self._path.open("a+")
    except OSError as error:
      raise UserError(f"cannot write {self._path}: {error.strerror}") from error

  def close(self):
    """Closes the files."""
    if self._buffer:
      self.flush()
    # Each row was flushed, so an error here was reported before.
    with contextlib.suppress(OSError):
      self._file.close()
    if self._board:
      self._board.close()


def read(path: pathlib.Path) -> Iterator[Row]:
  """Yields the rows of a file; raises a `UserError` for an invalid line.

  An invalid last line, left by a killed process, is ignored.
  """
  if not path.exists():
    return
  try:
    content = checks.read_bytes(path, _LONGEST_FILE)
  except (OSError, ValueError) as error:
    cause = getattr(error, "strerror", None) or error
    raise UserError(f"cannot read {path}: {cause}") from error
  lines = content.decode(errors="replace").splitlines()
  del content
  for number, line in enumerate(lines, start=1):
    try:
      row = checks.parse_json(line)
      if not (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and isinstance(row.get("split"), str)
      ):
        raise ValueError("not an object with a whole 'step' and a 'split'")
      for name, value in row.items():
        # float() of an integer of 400 digits overflows.
        if name != "split" and not _is_number(value):
          raise ValueError(f"{name!r} is not a number")
    except (ValueError, RecursionError) as error:
      if number == len(lines):
        return
      raise UserError(
        f"{path}, line {number} is damaged ({error}); mend or delete that line"
      ) from error
    yield row


def _is_number(value: Any) -> bool:
  if isinstance(value, float):
    return True
  return isinstance(value, int) and abs(value) < 2**63


def refuse_divergence(step: int, member: int, values: str):
  """Raises a `UserError` about values that are not finite."""
  del member
  raise UserError(
    f"training stopped: at step {step} {values}. Nothing was saved since; "
    "resuming from the last good checkpoint with the same settings would end "
    "the same way. Try a smaller config.optim.lr, a longer "
    "config.optim.warmup_steps, or config.model.dtype='float32'"
  )


class TrainingLog:
  """Converts the metrics of dispatches to rows, one dispatch late.

  Metrics are read after the next dispatch has been sent, so that the device
  never waits.

  Args:
    log_every: optimizer steps a row.
    on_rows: called with (step, member index -> row), without members that
      have diverged.
    on_divergence: called with (step, member, values) at a member's first step
      with a value that is not finite.
    diverged: member -> that step; updated.
    seconds: training time of earlier processes.
    pending: `pending()` at the checkpoint that training goes on from.
  """

  def __init__(
    self,
    log_every: int,
    on_rows: Callable[[int, dict[int, Row]], None],
    on_divergence: Callable[[int, int, str], None] = refuse_divergence,
    diverged: dict[int, int] | None = None,
    seconds: float = 0.0,
    pending: Mapping[str, Any] | None = None,
  ):
    self._log_every = log_every
    self._on_rows = on_rows
    self._on_divergence = on_divergence
    self._diverged = {} if diverged is None else diverged
    self._dispatched: tuple[int, dict[str, jax.Array]] | None = None
    self._steps, self._earlier = 0, 0.0
    self._sums: dict[str, np.ndarray] = {}  # float64 [M]
    if pending:
      self._steps, self._earlier = pending["steps"], pending["seconds"]
      self._sums = {n: np.array(v) for n, v in pending["sums"].items()}
    self._before = seconds
    self._since = time.perf_counter()
    self._paused = 0.0

  @property
  def seconds(self) -> float:
    """Training time in seconds, without pauses."""
    return self._before + self._elapsed()

  def push(self, step: int, metrics: dict[str, jax.Array]):
    """Takes the metrics, [K] or [M, K], of the dispatch that ended at `step`.

    Reads those of the previous dispatch, and may call `on_divergence`.
    """
    previous, self._dispatched = self._dispatched, (step, metrics)
    if previous:
      self._absorb(*previous)

  def flush(self):
    """Waits for the device and reads the last dispatch's metrics."""
    previous, self._dispatched = self._dispatched, None
    if previous:
      self._absorb(*previous)

  def pending(self) -> dict[str, Any]:
    """The measurements since the last row, as JSON values; call `flush` first.

    With them a resumed run writes the rows of an uninterrupted one.
    """
    # Of members that have diverged, which get no more rows, they may be NaN.
    sums = {n: np.nan_to_num(v).tolist() for n, v in self._sums.items()}
    seconds = self._earlier + self._elapsed()
    return {"steps": self._steps, "seconds": seconds, "sums": sums}

  def pause(self, seconds: float):
    """Subtracts time that was not spent on training."""
    self._paused += seconds

  def _elapsed(self) -> float:
    return max(time.perf_counter() - self._since - self._paused, 1e-9)

  def _absorb(self, step: int, metrics: dict[str, jax.Array]):
    values = jax.tree.map(np.atleast_2d, jax.device_get(metrics))  # [M, K]
    self._check_finite(step, values)
    for name, array in values.items():
      total = array.sum(axis=1, dtype=np.float64)
      self._sums[name] = self._sums.get(name, 0.0) + total
    self._steps += values["loss"].shape[1]
    if step % self._log_every == 0:
      elapsed = self._elapsed()
      speed = self._steps / (self._earlier + elapsed)
      rows = {
        member: _summarise(
          {name: float(sums[member]) for name, sums in self._sums.items()},
          self._steps,
        )
        | {"steps_per_second": speed}
        for member in range(len(values["loss"]))
        if member not in self._diverged
      }
      self._sums, self._steps, self._earlier = {}, 0, 0.0
      self._before += elapsed
      self._since, self._paused = time.perf_counter(), 0.0
      self._on_rows(step, rows)

  def _check_finite(self, last_step: int, values: dict[str, np.ndarray]):
    finite = {name: np.isfinite(array) for name, array in values.items()}
    bad = ~np.all(list(finite.values()), axis=0)
    for member in map(int, np.flatnonzero(bad.any(axis=1))):
      if member not in self._diverged:
        first = int(np.argmax(bad[member]))
        step = last_step - bad.shape[1] + first + 1
        self._diverged[member] = step
        named = [
          f"{name}={values[name][member, first]}"
          for name, ok in finite.items()
          if not ok[member, first]
        ]
        self._on_divergence(step, member, ", ".join(named))


def _summarise(sums: Mapping[str, float], steps: int) -> Row:
  """Means over optimizer steps, or over halted puzzles."""
  count = sums["count"]
  means = sorted(name for name in sums if name.endswith("loss"))
  means.sort(key=len)  # the whole loss first
  row = {name: sums[name] / steps for name in (*means, "gradient_norm")}
  row["halted"] = count / steps
  if count:
    for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
      row[name] = sums[name] / count
  return row


def _open_tensorboard(folder: pathlib.Path):
  if is_remote(folder):
    raise UserError(
      f"--tensorboard: cannot write to {folder}; use a --workdir on a disk"
    )
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    raise UserError(
      "--tensorboard needs tensorboardX: pip install 'trm_jax[tensorboard]'"
    ) from None
  return SummaryWriter(str(folder))
