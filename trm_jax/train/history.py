"""The measurements of a run: rows of metrics, evaluations, divergence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_jax.run import metrics, processes
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate


class History:
  """The measurements of each member: reads rows up to `step`, adds new ones.

  Attributes:
    diverged: member -> the first step that was not finite.
    learning: the evaluations of each member.
    seconds: training time.
  """

  def __init__(
    self,
    folder: RunFolder,
    seeds: Sequence[int] | None,
    step: int,
    tensorboard: bool,
  ):
    self._folder = folder
    self._suffixes = [""] if seeds is None else [f"/seed{s}" for s in seeds]
    self.diverged: dict[int, int] = {}
    self.learning: list[list[evaluate.Record]] = [[] for _ in self._suffixes]
    self.seconds = 0.0
    splits = {
      kind + suffix: (kind, member)
      for member, suffix in enumerate(self._suffixes)
      for kind in ("train", "test")
    }
    for row in metrics.read(folder.metrics):
      split = row.pop("split")
      if row["step"] <= step and split in splits:
        self._remember(*splits[split], row)
      elif row["step"] <= step and split == "all":
        self.seconds = row["seconds"]
    self._writer = None
    if processes.is_leader():
      board = folder.tensorboard if tensorboard else None
      self._writer = metrics.Writer(folder.metrics, step, board)

  def write(self, step: int, kind: str, member: int, row: metrics.Row):
    """Adds a row; `kind` is "train" or "test"."""
    is_new = self._remember(kind, member, {"step": step, **row})
    if self._writer and is_new:
      self._writer.write(step, kind + self._suffixes[member], row)

  def has_scores(self, step: int) -> bool:
    """Whether all members that have not diverged were evaluated at a step."""
    return all(
      member in self.diverged or any(row["step"] == step for row in rows)
      for member, rows in enumerate(self.learning)
    )

  def check_claim(self):
    """Raises a `UserError` if the folder belongs to this run no longer."""
    if self._writer:
      self._folder.check_claim()

  def flush(self, step: int, seconds: float):
    """Saves all rows before a checkpoint."""
    if self._writer:
      self.check_claim()
      if self._suffixes != [""]:
        self._writer.write(step, "all", {"seconds": seconds})
      self._writer.flush()

  def close(self):
    """Closes the files."""
    if self._writer:
      self._writer.close()

  def _remember(self, kind: str, member: int, row: dict[str, Any]) -> bool:
    """Returns False for an evaluation that was repeated."""
    if "diverged" in row:
      self.diverged.setdefault(member, row["step"])
    elif kind == "test":
      row = {name: v for name, v in row.items() if name != "seconds"}
      if row in self.learning[member]:
        return False
      self.learning[member].append(row)
    return True


def mean_row(rows: Sequence[metrics.Row]) -> metrics.Row:
  """The mean over rows of every float that all rows have."""
  if len(rows) < 2:
    return rows[0] if rows else {}
  means = {
    name: float(np.mean([row[name] for row in rows]))
    for name, value in rows[0].items()
    if isinstance(value, float) and all(name in row for row in rows)
  }
  return {k: v for k, v in rows[0].items() if not isinstance(v, float)} | means


def describe(step: int, record: evaluate.Record) -> str:
  """One evaluation as one line."""
  parts = []
  for name, label in (
    ("pass@1", "pass@1"),
    ("pass@2", "pass@2"),
    ("exact_accuracy", "exact"),
    ("valid_rate", "valid"),
    ("cell_accuracy", "cells"),
    ("q_accuracy", "halting head right"),
  ):
    if name in record:
      error = record.get(f"{name}_se")
      error_text = "" if error is None else f" ± {error:.1%}"
      parts.append(f"{label} {record[name]:.1%}{error_text}")
  if "mean_steps" in record:
    parts.append(f"mean steps {record['mean_steps']:.1f}")
  return (
    f"step {step}: {', '.join(parts) or 'no label to compare with'} "
    f"({record['puzzles']} puzzles, depth {record['depth']})"
  )
