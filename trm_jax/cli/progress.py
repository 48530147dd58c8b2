"""Progress: a live bar on a terminal, lines in a log."""

import datetime
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from trm_jax.draw import console as consoles

_LINE_SECONDS = 15.0  # between lines of a log
_LEAST_BAR = 5  # columns of the bar


class _Numbers(ProgressColumn):
  """Steps, time left and as many of the other numbers as the width allows."""

  def __init__(self, console: Console, reserved: int):
    super().__init__(Column(no_wrap=True))
    self._console, self._reserved = console, reserved

  def render(self, task: Task) -> Text:
    total = "?" if task.total is None else f"{task.total:.0f}"
    text = f"{task.completed:.0f}/{total}  {_clock(task.time_remaining)} left"
    others = [*task.fields["numbers"], f"{_clock(task.elapsed)} so far"]
    for number in others:
      if len(text) + 2 + len(number) > self._console.width - self._reserved:
        break
      text += f"  {number}"
    return Text(text)


def _clock(seconds: float | None) -> str:
  if seconds is None:
    return "-:--:--"
  return str(datetime.timedelta(seconds=int(seconds)))


def bar(what: str, console: Console, **options: Any) -> Progress:
  """A progress bar; its tasks have a field `numbers`, a list of texts."""
  return Progress(
    TextColumn(what, markup=False),
    BarColumn(bar_width=None),
    _Numbers(console, len(what) + 2 + _LEAST_BAR),
    console=console,
    **options,
  )


class Bar:
  """Shows loss, accuracy, speed and time left of `total` optimizer steps."""

  def __init__(self, total: int, quiet: bool = False):
    self._console = consoles.make(quiet=quiet)
    self._live = self._console.is_terminal and not quiet
    self._total = total
    self._last_line = 0.0
    self._progress = bar("training", self._console, disable=not self._live)
    self._task = self._progress.add_task("", total=total, numbers=["compiling"])

  def __enter__(self) -> "Bar":
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    self._console.print(message, soft_wrap=True)

  def advance(self, step: int, row: dict[str, Any]) -> None:
    """Moves the bar to `step` and shows the row's numbers."""
    accuracy = row.get("accuracy")
    numbers = [f"loss {row['loss']:.3f}" if "loss" in row else "diverged"]
    if accuracy is not None:
      numbers.append(f"cells {accuracy:.1%}")
      numbers.append(f"exact {row['exact_accuracy']:.1%}")
    numbers.append(f"{row['steps_per_second']:.1f} steps/s")
    self._progress.update(self._task, completed=step, numbers=numbers)
    now = time.monotonic()
    if not self._live and now - self._last_line > _LINE_SECONDS:
      self._last_line = now
      left = (self._total - step) / max(row["steps_per_second"], 1e-9)
      self.say(
        f"step {step}/{self._total}  {'  '.join(numbers)}  {left:.0f} s left"
      )
