"""Pictures of results, drawn with matplotlib's off-screen canvas."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from trm_jax.errors import UserError
from trm_jax.evaluate import Record
from trm_jax.metrics import Row

# Colour-blind safe (Okabe and Ito) and of different greys when printed.
_EXACT, _CELLS, _HALTED = "#0072B2", "#999999", "#D55E00"


def depth_curve(records: Sequence[Record], path: pathlib.Path, title: str):
  """Draws accuracy against depth and against FLOPs, side by side.

  Args:
    records: evaluations at several depths, as `evaluate.evaluate` returns.
    path: the PNG to write.
    title: what was evaluated.
  """
  figure = Figure(figsize=(10, 4.2), layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True)
  depths = [record["depth"] for record in records]
  work = [record["flops_per_puzzle"] for record in records]
  for axes, x in ((left, depths), (right, work)):
    _curve(axes, x, records, "exact_accuracy", "puzzles right", _EXACT, "o")
    _curve(axes, x, records, "cell_accuracy", "cells right", _CELLS, "s")
    axes.set_xscale("log", base=2 if x is depths else 10)
    axes.grid(alpha=0.3)
  # Halting spends less than the depth allows: its work is the mean spent.
  spent = [
    r["mean_steps"] * r["flops_per_puzzle"] / r["depth"] for r in records
  ]
  for axes, x in ((left, depths), (right, spent)):
    axes.plot(
      x, [record["halted_exact_accuracy"] for record in records],
      color=_HALTED, ls=":", marker="^", ms=4,
      label="puzzles right, halting when q says so",
    )  # fmt: skip
  left.set_xticks(depths)
  left.xaxis.set_major_formatter(ScalarFormatter())
  left.minorticks_off()
  left.set_xlabel("depth (supervision steps at inference)")
  left.set_ylabel("accuracy on held-out puzzles")
  left.yaxis.set_major_formatter(PercentFormatter(1.0))
  left.set_ylim(-0.02, 1.02)
  left.legend(loc="best")
  right.set_xlabel("inference FLOPs per puzzle (mean, where it halts)")
  figure.suptitle(title)
  _save(figure, path)


def learning_curves(runs: Mapping[str, Sequence[Row]], path: pathlib.Path):
  """Draws loss and accuracies against optimizer steps, one colour a run.

  Args:
    runs: name -> rows of its `metrics.jsonl`.
    path: the PNG to write.

  Raises:
    UserError: if no run has a row.
  """
  if not any(runs.values()):
    raise UserError("there is nothing to plot yet: no run has a metric row")
  figure = Figure(figsize=(12, 4.2), layout="constrained")
  loss, train, test = figure.subplots(1, 3)
  colours = [f"C{i}" for i in range(len(runs))]
  for (name, rows), colour in zip(runs.items(), colours, strict=True):
    trained = [row for row in rows if row["split"] == "train"]
    tested = [row for row in rows if row["split"] == "test"]
    _line(loss, trained, "loss", colour, name)
    _line(train, trained, "accuracy", colour, None, ls=":")
    _line(train, trained, "exact_accuracy", colour, None)
    _line(test, tested, "cell_accuracy", colour, None, ls=":", marker="s")
    _line(test, tested, "exact_accuracy", colour, None, marker="o")
    if tested:
      exact = np.array([row["exact_accuracy"] for row in tested])
      spread = np.array([row["exact_accuracy_se"] for row in tested])
      test.fill_between(
        [row["step"] for row in tested], exact - spread, exact + spread,
        color=colour, alpha=0.2, lw=0,
      )  # fmt: skip
  loss.set_ylabel("training loss per puzzle (nats)")
  loss.set_yscale("log")
  loss.legend(fontsize="small")
  train.set_title("training, puzzles that halted", fontsize="medium")
  test.set_title("held-out, averaged weights", fontsize="medium")
  for axes in (train, test):
    axes.plot([], [], "k-", label="puzzles right")
    axes.plot([], [], "k:", label="cells right")
    axes.legend(fontsize="small")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(-0.02, 1.02)
  for axes in (loss, train, test):
    axes.set_xlabel("optimizer steps")
    axes.grid(alpha=0.3)
  _save(figure, path)


def _curve(
  axes: Axes, x, records: Sequence[Record], name: str, label: str,
  colour: str, marker: str,
):  # fmt: skip
  mean = np.array([record[name] for record in records])
  spread = 1.96 * np.array([record[f"{name}_se"] for record in records])
  axes.plot(x, mean, color=colour, marker=marker, ms=5, label=label)
  axes.fill_between(
    x, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0
  )


def _line(axes: Axes, rows, name: str, colour: str, label, **style):
  present = [row for row in rows if name in row]
  axes.plot(
    [row["step"] for row in present], [row[name] for row in present],
    color=colour, label=label, lw=1.2, ms=4, **style,
  )  # fmt: skip


def _save(figure: Figure, path: pathlib.Path):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error
