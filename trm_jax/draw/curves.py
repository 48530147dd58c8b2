"""Pictures of results, drawn with matplotlib's off-screen canvas."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
  NullFormatter,
  PercentFormatter,
  ScalarFormatter,
  StrMethodFormatter,
)

from trm_jax.errors import UserError
from trm_jax.run.metrics import Row
from trm_jax.solve.calibration import Reliability
from trm_jax.solve.evaluate import Record
from trm_jax.solve.rules import RULES

# Colour-blind safe (Okabe and Ito) and of different greys when printed.
_EXACT, _CELLS, _HALTED = "#0072B2", "#999999", "#D55E00"


def depth_curve(
  records: Sequence[Record],
  path: pathlib.Path,
  title: str,
  kind: str = "held-out",
):
  """Draws accuracy against depth and against FLOPs, side by side.

  Args:
    records: evaluations at several depths, as `evaluate.evaluate` returns.
    path: the PNG to write.
    title: what was evaluated.
    kind: "held-out" or "training" puzzles.
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
  left.set_ylabel(f"accuracy on {kind} puzzles")
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


def reliability(
  before: Reliability, after: Reliability, path: pathlib.Path, title: str
):
  """Draws how often answers were right, against the confidence in them.

  Args:
    before: by the halting head's own word.
    after: by calibrated confidence, judged on puzzles that the map was not
      fitted on.
    path: the PNG to write.
    title: what was measured.
  """
  figure = Figure(figsize=(5.6, 6.4), layout="constrained")
  shares, counts = figure.subplots(
    2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
  )
  shares.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--", label="honest")
  drawn = (
    (before, "before", _HALTED, "^", -0.21),
    (after, "calibrated", _EXACT, "o", 0.21),
  )
  for found, name, colour, marker, side in drawn:
    reach = [found.fraction - found.low, found.high - found.fraction]
    shares.errorbar(
      found.confidence, found.fraction, np.maximum(reach, 0),
      color=colour, marker=marker, ms=5, lw=1.2, elinewidth=0.8, capsize=2,
      label=f"{name}: off by {found.error:.1%} (ECE)",
    )  # fmt: skip
    places = np.arange(len(found.count)) + 0.5 + side
    counts.bar(
      places / len(found.count), found.count, 0.4 / len(found.count),
      color=colour,
    )  # fmt: skip
  shares.set_ylabel("share of these answers that are right")
  shares.set_ylim(-0.02, 1.02)
  shares.yaxis.set_major_formatter(PercentFormatter(1.0))
  shares.legend(loc="best", fontsize="small")
  counts.set_ylabel("puzzles")
  # Most puzzles are often in two bins; the others must be seen, too.
  counts.set_yscale("log")
  counts.set_ylim(0.7, 1.5 * max(before.count.max(), after.count.max()))
  counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
  counts.yaxis.set_minor_formatter(NullFormatter())
  counts.set_xlabel("confidence that the answer is right")
  for axes in (shares, counts):
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
  figure.suptitle(title)
  _save(figure, path)


def solve_grid(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
):
  """Draws what depth and breadth give, and what they cost.

  Args:
    records: one for each way of solving: `depth`, `breadth`, `select`, `halt`,
      `exact_accuracy` and its `_se`, `oracle_accuracy` (some rollout is right),
      and `flops_per_puzzle`, the mean spent. Each choice of `select` and
      `halt` has a row of its own.
    path: the PNG to write.
    title: what was solved.

  Raises:
    UserError: there is no record.
  """
  if not records:
    raise UserError("there is nothing to plot: nothing was solved with labels")
  ways = list(dict.fromkeys((r["select"], r["halt"]) for r in records))
  breadths = sorted({record["breadth"] for record in records})
  # The wider, the lighter: ordered in grey as well.
  ramp = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(breadths)))
  colours = dict(zip(breadths, ramp, strict=True))
  figure = Figure(figsize=(11, 0.8 + 3.6 * len(ways)), layout="constrained")
  grid = figure.subplots(len(ways), 2, sharex="col", sharey=True, squeeze=False)
  for (left, right), way in zip(grid, ways, strict=True):
    for breadth in breadths:
      line = [
        r for r in records
        if (r["breadth"], r["select"], r["halt"]) == (breadth, *way)
      ]  # fmt: skip
      for axes, x in ((left, "depth"), (right, "flops_per_puzzle")):
        line.sort(key=lambda record: record[x])
        xs = [record[x] for record in line]
        _curve(axes, xs, line, "exact_accuracy", "", colours[breadth], "o")
        if breadth > 1:
          axes.plot(
            xs, [record["oracle_accuracy"] for record in line],
            color=colours[breadth], ls="--", lw=1.2,
          )  # fmt: skip
    for axes, base in ((left, 2), (right, 10)):
      axes.set_xscale("log", base=base)
      axes.grid(alpha=0.3)
    told = textwrap.fill(f"select {way[0]}; halting: {way[1]}", 40)
    left.set_ylabel(f"puzzles right\n{told}")
    left.set_ylim(-0.02, 1.02)
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
  left, right = grid[-1]
  left.set_xticks(sorted({record["depth"] for record in records}))
  left.xaxis.set_major_formatter(ScalarFormatter())
  left.minorticks_off()
  left.set_xlabel("depth (supervision steps allowed)")
  right.set_xlabel("inference FLOPs per puzzle (mean spent)")
  keys = [
    Line2D([], [], color=colours[b], marker="o", ms=5, label=f"breadth {b}")
    for b in breadths
  ]
  if breadths[-1] > 1:
    keys.append(Line2D([], [], color="k", ls="--", label="any rollout right"))
  figure.legend(handles=keys, loc="outside right center", fontsize="small")
  figure.suptitle(title)
  _save(figure, path)


def halting_rules(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
):
  """Draws accuracy against the steps that halting rules spend.

  Args:
    records: of each limit of each rule, the fixed depth first: `rule`, whose
      field `halt` names it, `exact_accuracy`, its `_se`, `mean_steps`.
    path: the PNG to write.
    title: what was halted.
  """
  fixed, *others = records
  figure = Figure(figsize=(6.4, 4.6), layout="constrained")
  axes = figure.subplots()
  axes.axhline(
    fixed["exact_accuracy"], color="black", ls="--", lw=0.8,
    label=f"fixed, {fixed['mean_steps']:.0f} steps",
  )  # fmt: skip
  for rule in RULES:
    found = [record for record in others if record["rule"].halt == (rule.name,)]
    found.sort(key=lambda record: record["mean_steps"])
    if found:
      _curve(
        axes, [record["mean_steps"] for record in found], found,
        "exact_accuracy", rule.name, rule.colour, rule.marker,
      )  # fmt: skip
  axes.set_xscale("log", base=2)
  axes.xaxis.set_major_formatter(ScalarFormatter())
  axes.set_xlabel("supervision steps of a puzzle, mean")
  axes.set_ylabel("puzzles right, held out")
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.grid(alpha=0.3)
  axes.legend(title="halting by", fontsize="small")
  figure.suptitle(title, fontsize="medium")
  _save(figure, path)


def _curve(
  axes: Axes, x, records: Sequence[Mapping[str, Any]], name: str, label: str,
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
