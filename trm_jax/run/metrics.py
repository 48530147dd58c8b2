"""Metrics of a run: rows of JSON, read from the device one dispatch late."""

import contextlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from trm_jax.errors import UserError
from trm_jax.run.files import is_remote, write_text

Row = dict[str, Any]


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
    try:
      self._file = self._buffer or path.open("a")
    except OSError as error:
      raise UserError(f"cannot write {path}: {error.strerror}") from error
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
    """Writes rows that are only in memory."""
    if self._buffer:
      write_text(self._path, self._buffer.getvalue())

  def close(self):
    """Closes the files."""
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
    lines = path.read_bytes().decode(errors="replace").splitlines()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      if not (
        isinstance(row, dict)
        and isinstance(row.get("step"), int)
        and isinstance(row.get("split"), str)
      ):
        raise ValueError("not an object with a whole 'step' and a 'split'")
    except ValueError as error:
      if number == len(lines):
        return
      raise UserError(
        f"{path}, line {number} is damaged ({error}); mend or delete that line"
      ) from error
    yield row


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
  """

  def __init__(
    self,
    log_every: int,
    on_rows: Callable[[int, dict[int, Row]], None],
    on_divergence: Callable[[int, int, str], None] = refuse_divergence,
    diverged: dict[int, int] | None = None,
    seconds: float = 0.0,
  ):
    self._log_every = log_every
    self._on_rows = on_rows
    self._on_divergence = on_divergence
    self._diverged = {} if diverged is None else diverged
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._sums: dict[str, list[np.ndarray]] = {}
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
    previous, self._pending = self._pending, (step, metrics)
    if previous:
      self._absorb(*previous)

  def flush(self):
    """Waits for the device and reads the last dispatch's metrics."""
    pending, self._pending = self._pending, None
    if pending:
      self._absorb(*pending)

  def pause(self, seconds: float):
    """Subtracts time that was not spent on training."""
    self._paused += seconds

  def _elapsed(self) -> float:
    return max(time.perf_counter() - self._since - self._paused, 1e-9)

  def _absorb(self, step: int, metrics: dict[str, jax.Array]):
    values = jax.tree.map(np.atleast_2d, jax.device_get(metrics))  # [M, K]
    self._check_finite(step, values)
    for name, array in values.items():
      self._sums.setdefault(name, []).append(array)
    if step % self._log_every == 0:
      seconds = self._elapsed()
      sums = {n: np.concatenate(a, axis=1) for n, a in self._sums.items()}
      rows = {
        member: _summarise({n: a[member] for n, a in sums.items()}, seconds)
        for member in range(len(sums["loss"]))
        if member not in self._diverged
      }
      self._sums, self._before = {}, self._before + seconds
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


def _summarise(values: dict[str, np.ndarray], seconds: float) -> Row:
  """Means over optimizer steps, or over halted puzzles."""
  steps = len(values["loss"])
  count = float(values["count"].sum())
  row = {
    "loss": float(values["loss"].mean()),
    "gradient_norm": float(values["gradient_norm"].mean()),
    "halted": count / steps,
    "steps_per_second": steps / seconds,
  }
  if count:
    for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
      row[name] = float(values[name].sum()) / count
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
