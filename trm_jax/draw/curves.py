"""Figures of results, drawn on matplotlib's off-screen canvas.

External text, such as names of runs, is never parsed as mathematics.
"""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trm_jax.draw.pictures import save_png
from trm_jax.errors import UserError
from trm_jax.run.metrics import Row
from trm_jax.solve.calibration import Reliability
from trm_jax.solve.rules import RULES

# Safe for colour blindness (Okabe and Ito), and different in grey.
_EXACT, _CELLS, _HALTED = "#0072B2", "#999999", "#D55E00"


def depth_curve(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
):
  """Draws accuracy against depth and against FLOPs, side by side, as a PNG.

  The records are evaluations at several depths, from `evaluate.evaluate`.
  """
  figure = _figure(10, 4.2, title)
  left, right = figure.subplots(1, 2, sharey=True)
  depths = [record["depth"] for record in records]
  work = [record["flops_per_puzzle"] for record in records]
  # With halting, the mean work is below the allowed depth's.
  spent = [
    r["mean_steps"] * r["flops_per_puzzle"] / r["depth"] for r in records
  ]
  halted = [record["halted_exact_accuracy"] for record in records]
  for axes, x, x_halted in ((left, depths, depths), (right, work, spent)):
    _curve(axes, x, records, "exact_accuracy", "puzzles right", _EXACT, "o")
    _curve(axes, x, records, "cell_accuracy", "cells right", _CELLS, "s")
    axes.plot(
      x_halted, halted, color=_HALTED, ls=":", marker="^", ms=4,
      label="puzzles right, halting when q says so",
    )  # fmt: skip
    axes.grid(alpha=0.3)
  _depth_axis(left, depths, "depth (supervision steps at inference)")
  _accuracy_axis(left, "accuracy")
  left.legend(loc="best")
  right.set_xscale("log")
  right.set_xlabel("inference FLOPs per puzzle (mean, where it halts)")
  save_png(figure, path)


def learning_curves(runs: Mapping[str, Sequence[Row]], path: pathlib.Path):
  """Draws loss and accuracies against optimizer steps, one colour per run.

  The runs map names to rows of their `metrics.jsonl`.
  """
  if not any(runs.values()):
    raise UserError("there is nothing to plot yet: no run has a metric row")
  figure = _figure(12, 4.2)
  loss, train, test = figure.subplots(1, 3)
  handles = []
  for k, rows in enumerate(runs.values()):
    style = {"color": f"C{k}", "lw": 1.2, "ms": 4}
    handles.append(Line2D([], [], **style))
    trained = [row for row in rows if row["split"] == "train"]
    tested = [row for row in rows if row["split"] == "test"]
    _line(loss, trained, "loss", **style)
    _line(train, trained, "accuracy", ls=":", **style)
    _line(train, trained, "exact_accuracy", **style)
    _line(test, tested, "cell_accuracy", ls=":", marker="s", **style)
    _line(test, tested, "exact_accuracy", marker="o", **style)
    banded = [
      row for row in tested if {"exact_accuracy", "exact_accuracy_se"} <= {*row}
    ]
    _band(
      test, [row["step"] for row in banded], banded, "exact_accuracy",
      style["color"], 1.0,
    )  # fmt: skip
  loss.set_ylabel("training loss per puzzle (nats)")
  loss.set_yscale("log")
  # Passed explicitly, as matplotlib hides labels that begin with "_".
  legend = loss.legend(handles, list(runs), fontsize="small")
  for text in legend.get_texts():
    text.set_parse_math(False)
  train.set_title("training, puzzles that halted", fontsize="medium")
  test.set_title("held-out, averaged weights", fontsize="medium")
  for axes in (train, test):
    axes.plot([], [], "k-", label="puzzles right")
    axes.plot([], [], "k:", label="cells right")
    axes.legend(fontsize="small")
    _accuracy_axis(axes, "accuracy")
  for axes in (loss, train, test):
    axes.set_xlabel("optimizer steps")
    axes.grid(alpha=0.3)
  save_png(figure, path)


def reliability(
  before: Reliability, after: Reliability, path: pathlib.Path, title: str
):
  """Draws the fraction of correct answers against their confidence, as a PNG.

  `before` is for confidence by the halting head alone, `after` for calibrated
  confidence, on puzzles not used for calibration.
  """
  figure = _figure(5.6, 6.4, title)
  fractions, counts = figure.subplots(
    2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
  )
  fractions.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--", label="ideal")
  for found, name, colour, marker, side in (
    (before, "before", _HALTED, "^", -0.21),
    (after, "calibrated", _EXACT, "o", 0.21),
  ):
    margins = [found.fraction - found.low, found.high - found.fraction]
    fractions.errorbar(
      found.confidence, found.fraction, np.maximum(margins, 0),
      color=colour, marker=marker, ms=5, lw=1.2, elinewidth=0.8, capsize=2,
      label=f"{name}: off by {found.error:.1%} (ECE)",
    )  # fmt: skip
    places = np.arange(len(found.count)) + 0.5 + side
    counts.bar(
      places / len(found.count), found.count, 0.4 / len(found.count),
      color=colour,
    )  # fmt: skip
  _accuracy_axis(fractions, "fraction of these answers that are right")
  fractions.legend(loc="best", fontsize="small")
  counts.set_ylabel("puzzles")
  # Logarithmic, as most puzzles are often in two bins.
  counts.set_yscale("log")
  counts.set_ylim(0.7, 1.5 * max(before.count.max(), after.count.max()))
  counts.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  counts.yaxis.set_minor_formatter(ticker.NullFormatter())
  counts.set_xlabel("confidence that the answer is right")
  for axes in (fractions, counts):
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
  save_png(figure, path)


def solve_grid(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
):
  """Draws accuracy against depth and cost per number of rollouts, as a PNG.

  Each record is one setting of solving: `depth`, `breadth` (the number of
  rollouts), `select`, `halt`, `exact_accuracy` and its `_se`, `oracle_accuracy`
  (any rollout is right), and `flops_per_puzzle`, the mean spent. Each pair of
  `select` and `halt` has its own row of axes.
  """
  if not records:
    raise UserError("there is nothing to plot: nothing was solved with labels")
  rules = list(dict.fromkeys((r["select"], r["halt"]) for r in records))
  breadths = sorted({record["breadth"] for record in records})
  # More rollouts are lighter, in grey as well.
  ramp = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(breadths)))
  colours = dict(zip(breadths, ramp, strict=True))
  figure = _figure(11, 0.8 + 3.6 * len(rules), title)
  rows = figure.subplots(
    len(rules), 2, sharex="col", sharey=True, squeeze=False
  )
  for (left, right), rule in zip(rows, rules, strict=True):
    for breadth in breadths:
      line = [
        r for r in records
        if (r["breadth"], r["select"], r["halt"]) == (breadth, *rule)
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
    for axes in (left, right):
      axes.set_xscale("log", base=2 if axes is left else 10)
      axes.grid(alpha=0.3)
    rule_text = textwrap.fill(f"select {rule[0]}; halting: {rule[1]}", 40)
    _accuracy_axis(left, f"puzzles right\n{rule_text}")
  left, right = rows[-1]
  depths = {record["depth"] for record in records}
  _depth_axis(left, sorted(depths), "depth (supervision steps allowed)")
  right.set_xlabel("inference FLOPs per puzzle (mean spent)")
  keys = [
    Line2D([], [], color=colours[b], marker="o", ms=5, label=f"breadth {b}")
    for b in breadths
  ]
  if breadths[-1] > 1:
    keys.append(Line2D([], [], color="k", ls="--", label="any rollout right"))
  figure.legend(handles=keys, loc="outside right center", fontsize="small")
  save_png(figure, path)


def halting_rules(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
):
  """Draws accuracy against the steps that halting rules spend, as a PNG.

  There is one record for each limit of each rule, the fixed depth first:
  `rule` (its field `halt` names it), `exact_accuracy`, its `_se`, `mean_steps`.
  """
  fixed, *others = records
  kinds: dict[str, list] = {}
  for record in others:
    kinds.setdefault(" or ".join(record["rule"].halt), []).append(record)
  figure = _figure(6.4, 4.6, title)
  axes = figure.subplots()
  axes.axhline(
    fixed["exact_accuracy"], color="black", ls="--", lw=0.8,
    label=f"fixed, {fixed['mean_steps']:.0f} steps",
  )  # fmt: skip
  rules = {rule.name: rule for rule in RULES}
  for kind, found in kinds.items():
    rule = rules[kind]
    found.sort(key=lambda record: record["mean_steps"])
    _curve(
      axes, [record["mean_steps"] for record in found], found,
      "exact_accuracy", rule.name, rule.colour, rule.marker,
    )  # fmt: skip
  axes.set_xscale("log", base=2)
  axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
  axes.set_xlabel("supervision steps of a puzzle, mean")
  axes.set_ylabel("puzzles right")
  axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
  axes.grid(alpha=0.3)
  axes.legend(title="halting by", fontsize="small")
  save_png(figure, path)


def _figure(width: float, height: float, title: str = "") -> Figure:
  figure = Figure((width, height), dpi=150, layout="constrained")
  if title:
    lines = [textwrap.fill(line, 90) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), size="medium", parse_math=False)
  return figure


def _depth_axis(axes: Axes, depths: Sequence[int], label: str):
  axes.set_xscale("log", base=2)
  axes.set_xticks(depths)
  axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
  axes.minorticks_off()
  axes.set_xlabel(label)


def _accuracy_axis(axes: Axes, label: str):
  axes.set_ylabel(label, parse_math=False)
  axes.set_ylim(-0.02, 1.02)
  axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))


def _curve(
  axes: Axes, x, records: Sequence[Mapping[str, Any]], name: str, label: str,
  colour, marker: str,
):  # fmt: skip
  mean = [record[name] for record in records]
  axes.plot(x, mean, color=colour, marker=marker, ms=5, label=label)
  _band(axes, x, records, name, colour, 1.96)


def _band(
  axes: Axes, x, records: Sequence[Mapping[str, Any]], name: str, colour,
  errors: float,
):  # fmt: skip
  """Shades this many standard errors on both sides of a fraction."""
  mean = np.array([record[name] for record in records])
  spread = errors * np.array([record[f"{name}_se"] for record in records])
  low, high = np.clip([mean - spread, mean + spread], 0, 1)
  axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def _line(axes: Axes, rows: Sequence[Row], name: str, **style):
  present = [row for row in rows if name in row]
  axes.plot(
    [row["step"] for row in present], [row[name] for row in present], **style
  )
