"""Training progress: a live bar on a terminal, lines in a log."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

_LINE_SECONDS = 15.0  # between lines of a log


class Bar:
  """Shows loss, accuracy, speed and time left of `total` optimizer steps."""

  def __init__(self, total: int, quiet: bool = False):
    self._console = Console(quiet=quiet)
    self._live = self._console.is_terminal and not quiet
    self._total = total
    self._last_line = 0.0
    self._progress = Progress(
      TextColumn("[bold]training"),
      BarColumn(bar_width=None),
      MofNCompleteColumn(),
      TextColumn("{task.fields[numbers]}"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._live,
    )
    self._task = self._progress.add_task("", total=total, numbers="compiling")

  def __enter__(self) -> "Bar":
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    self._console.print(message, highlight=False, soft_wrap=True)

  def advance(self, step: int, row: dict[str, Any]) -> None:
    """Moves the bar to `step` and shows the row's numbers."""
    accuracy = row.get("accuracy")
    numbers = f"loss {row['loss']:.3f}" if "loss" in row else "diverged"
    if accuracy is not None:
      numbers += f"  cells {accuracy:.1%}"
      numbers += f"  exact {row['exact_accuracy']:.1%}"
    numbers += f"  {row['steps_per_second']:.1f} steps/s"
    self._progress.update(self._task, completed=step, numbers=numbers)
    now = time.monotonic()
    if not self._live and now - self._last_line > _LINE_SECONDS:
      self._last_line = now
      left = (self._total - step) / max(row["steps_per_second"], 1e-9)
      self.say(f"step {step}/{self._total}  {numbers}  {left:.0f} s left")
