"""Pictures of a study: exact accuracy against depth and compute.

A family has one colour, one marker and one line style in every picture. Its
settings differ by the width of the line and the filling of the marker: the
more weights, the thicker and fuller. Cells that diverged are in no picture.

Every picture is a function of the cells, the test depths and the PNG to write,
and raises `UserError` if that cannot be written; see `PICTURES`.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
  PercentFormatter,
  ScalarFormatter,
)

from trm_jax.core.family import FAMILIES
from trm_jax.draw import pictures
from trm_jax.study import names, power_law, statistics
from trm_jax.study.looks import RESOLUTION, Look, find_looks
from trm_jax.study.power_law import Fit
from trm_jax.study.results import Cell
from trm_jax.study.statistics import Halting, Point

_INFERENCE = "inference FLOPs per puzzle"
_TRAINING = "training FLOPs"
_GREY = "#555555"


# What a legend says besides the families.
_SEED = Line2D([], [], color=_GREY, lw=0.6, alpha=0.7, label="one seed")
_BAR = Line2D([], [], color=_GREY, marker="|", ms=9, lw=0, label="95% interval")
_BAND = Patch(color=_GREY, alpha=0.2, lw=0, label="95% interval")
_FIT = Patch(color=_GREY, alpha=0.2, lw=0, label="fit of the best, 95%")
_FRONT = Line2D([], [], color=_GREY, lw=1.2, label="Pareto front")
_BEATEN = Line2D(
  [], [], color=_GREY, alpha=0.3, marker="o", ms=4, lw=0, label="beaten"
)
_HALTED = Line2D(
  [], [], color=_GREY, marker="o", ms=6, lw=2, label="halting by q"
)
_FIXED = Line2D(
  [], [], color=_GREY, marker="o", ms=3, lw=0.7, alpha=0.6, label="fixed depth"
)
_NOTE = Line2D([], [], lw=0, label="number: depth    none: not as cheap")


def accuracy_by_depth(
  cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path
):
  """Draws exact accuracy against test depth, seed by seed and in the mean."""
  points = statistics.depth_points(cells, depths)
  looks = find_looks(cells)
  figure = _figure(9, max(4.8, 1.5 + 0.2 * len(_by_setting(points))))
  axes = figure.subplots()
  _draw_depths(axes, points, looks, with_seeds=True)
  seed = _SEED if _has_seeds(points) else None
  _add_legend(figure, points, seed, _BAND)
  names.write_beside(figure, axes, points, looks)
  pictures.save_png(figure, path)


def accuracy_by_inference_flops(
  cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path
):
  """Draws exact accuracy against inference FLOPs, with a fit a family."""
  points = statistics.inference_points(cells, depths)
  _draw_flops_alone(cells, points, _INFERENCE, path)


def accuracy_by_training_flops(
  cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path
):
  """Draws exact accuracy against training FLOPs, with a fit a family.

  The test depths do not matter here: the points are the evaluations made
  during training, at the depth of those.
  """
  del depths
  points = statistics.training_points(cells)
  _draw_flops_alone(cells, points, _TRAINING, path)


def pareto(cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path):
  """Draws what nothing cheaper beats, at inference and in training."""
  looks = find_looks(cells)
  panels = _panels(cells, depths)
  figure = _figure(12, 5.4)
  both = figure.subplots(1, 2, sharey=True)
  labels = {}
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    front = statistics.pareto_front(points)
    for setting, row in _by_setting(points).items():
      _draw_points(axes, row, looks[setting], alpha=0.3, size=4)
    for setting, row in _by_setting(front).items():
      _draw_points(axes, row, looks[setting], size=8)
    if front:
      # What a budget buys stays the same until the next can be paid.
      x = [each.x for each in front] + [max(each.x for each in points)]
      y = [each.mean for each in front]
      axes.plot(
        np.repeat(x, 2)[1:-1], np.repeat(y, 2), color=_GREY, lw=1.2, zorder=1
      )
    _finish_flops(axes, name, points)
    labels[axes] = names.front_labels(front, looks)
  every = [*itertools.chain(*panels.values())]
  _set_accuracy(both[0], every)
  both[1].set_ylabel("")
  _add_legend(figure, every, _FRONT, _BEATEN)
  names.place_labels(figure, labels)
  pictures.save_png(figure, path)


def equal_flops(
  cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path
):
  """Draws the best of each family within the same budgets of FLOPs."""
  looks = find_looks(cells)
  panels = _panels(cells, depths)
  figure = _figure(9, 7.6)
  both = figure.subplots(2, 1)
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    budgets = statistics.at_equal_flops(points)
    families = _families(points)
    recursive = {point.family for point in points if point.depth > 1}
    for place, best in enumerate(budgets.values()):
      for k, family in enumerate(families):
        x = place + 0.8 * ((k + 0.5) / len(families) - 0.5)
        with_depth = name == _INFERENCE and family in recursive
        _draw_best(axes, x, best[family], family, looks, with_depth)
    axes.set_xticks(range(len(budgets)), [as_flops(each) for each in budgets])
    axes.tick_params(axis="x", length=0)
    for edge in range(1, len(budgets)):
      axes.axvline(edge - 0.5, color="#CCCCCC", lw=0.8)
    axes.set_xlim(-0.5, max(len(budgets), 1) - 0.5)
    axes.set_xlabel(f"budget of {name}, at most")
    axes.grid(alpha=0.3, axis="y")
    _say_if_empty(axes, points)
  every = [*itertools.chain(*panels.values())]
  for axes in both:
    _set_accuracy(axes, every, room=0.05)
  _add_legend(figure, every, _BAR, _NOTE, lines=False)
  pictures.save_png(figure, path)


def halting(cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path):
  """Draws how many steps puzzles use, and what halting costs and saves."""
  looks = find_looks(cells)
  halted = [each for each in statistics.halting(cells) if each.shares]
  figure = _figure(12, 5)
  left, right = figure.subplots(1, 2)
  most = max((len(each.shares) for each in halted), default=1)
  ticks = sorted(depth for depth in set(depths) if depth <= most)
  for each in halted:
    look = looks[each.setting]
    steps = np.arange(1, len(each.shares) + 1)
    chosen = [depth - 1 for depth in ticks if depth <= len(steps)]
    _draw_line(left, steps, each.shares, look, ms=4)
    _draw_line(
      right, each.mean_steps, each.accuracy, look, markevery=chosen, ms=6
    )
    right.fill_between(
      each.mean_steps, each.low, each.high, color=look.colour, alpha=0.13, lw=0
    )
    right.plot(
      steps[chosen], np.array(each.fixed_accuracy)[chosen], color=look.colour,
      marker=look.marker, ms=3, lw=0.7, alpha=0.6,
    )  # fmt: skip
  _finish_depth(left, ticks, "steps used by a puzzle")
  left.set_ylabel("share of puzzles")
  left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  left.set_ylim(bottom=0)
  _finish_depth(right, ticks, "mean steps per puzzle")
  _set_accuracy(right, halted)
  most_right = max((max(each.fixed_accuracy) for each in halted), default=0)
  right.set_ylim(top=max(right.get_ylim()[1], 1.03 * most_right))
  for axes in (left, right):
    _say_if_empty(axes, halted, "no model here halts by itself")
  _add_legend(figure, halted, _HALTED, _FIXED)
  tops = {
    each.setting: (int(np.argmax(each.shares)) + 1, max(each.shares))
    for each in halted
  }
  ends = {
    each.setting: (each.mean_steps[-1], each.accuracy[-1]) for each in halted
  }
  names.place_labels(
    figure,
    {
      left: names.setting_labels(tops, looks),
      right: names.setting_labels(ends, looks),
    },
  )
  pictures.save_png(figure, path)


def overview(cells: Sequence[Cell], depths: Iterable[int], path: pathlib.Path):
  """Draws depth, inference FLOPs and training FLOPs side by side."""
  looks = find_looks(cells)
  by_depth = statistics.depth_points(cells, depths)
  panels = _panels(cells, depths)
  figure = _figure(13.5, 4.6)
  first, *others = figure.subplots(1, 3, sharey=True)
  _draw_depths(first, by_depth, looks, with_seeds=False)
  found = []
  for axes, (name, points) in zip(others, panels.items(), strict=True):
    found += _draw_flops(axes, points, looks, with_seeds=False)
    _finish_flops(axes, name, points)
  every = [*by_depth, *itertools.chain(*panels.values())]
  _set_accuracy(first, every)
  for axes in others:
    axes.set_ylabel("")
  _add_legend(figure, every, _BAR, _FIT if found else None)
  pictures.save_png(figure, path)


# What a study draws, by the names that `page` knows.
PICTURES = {
  "overview": overview,
  "depth": accuracy_by_depth,
  "inference": accuracy_by_inference_flops,
  "training": accuracy_by_training_flops,
  "pareto": pareto,
  "equal_flops": equal_flops,
  "halting": halting,
}


def fits(points: Iterable[Point]) -> dict[str, Fit | str]:
  """Family -> its fit, or why there is none.

  A fit takes a second, and several pictures and the page show the same one:
  those made are kept.
  """
  every = tuple(points)
  return {family: _fit(every, family) for family in _families(every)}


@functools.lru_cache(maxsize=64)
def _fit(points: tuple[Point, ...], family: str) -> Fit | str:
  return power_law.fit_family(points, family)


def as_flops(count: float) -> str:
  """A number of FLOPs as one reads it: three digits, as in "66.2 MFLOP"."""
  prefixes = {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k"}
  rounded = float(f"{count:.3g}")
  for exponent, prefix in prefixes.items():
    if rounded >= 10**exponent:
      return f"{rounded / 10**exponent:.3g} {prefix}FLOP"
  return f"{rounded:g} FLOP"


def _by_setting(points: Iterable[Point]) -> dict[str, list[Point]]:
  """The points of each setting from left to right."""
  rows: dict[str, list[Point]] = {}
  for point in sorted(points, key=lambda point: point.x):
    rows.setdefault(point.setting, []).append(point)
  return rows


def _has_seeds(points: Iterable[Point]) -> bool:
  return any(point.seeds > 1 for point in points)


def _families(points: Iterable[Point | Halting]) -> list[str]:
  present = {point.family for point in points}
  return [family for family in FAMILIES if family in present]


def _panels(
  cells: Sequence[Cell], depths: Iterable[int]
) -> dict[str, list[Point]]:
  """Name of an axis of FLOPs -> what stands over it."""
  return {
    _INFERENCE: statistics.inference_points(cells, depths),
    _TRAINING: statistics.training_points(cells),
  }


# Drawing.


def _figure(width: float, height: float) -> Figure:
  return Figure((width, height), dpi=RESOLUTION, layout="constrained")


def _draw_line(axes: Axes, x, y, look: Look, **style):
  axes.plot(
    x, y, color=look.colour, ls=look.line, lw=look.width, marker=look.marker,
    mfc=look.face, mec=look.colour, **style,
  )  # fmt: skip


def _draw_points(
  axes: Axes, points: Sequence[Point], look: Look, alpha=1.0, size=6.0
):
  """Draws means with their intervals; the interval only if not faint."""
  x, mean = [each.x for each in points], np.array([p.mean for p in points])
  low, high = (
    np.array([getattr(p, n) for p in points]) for n in ("low", "high")
  )
  bars = np.maximum([mean - low, high - mean], 0)
  axes.errorbar(
    x, mean, yerr=bars if alpha == 1 else None, fmt=look.marker, ms=size,
    color=look.colour, mfc=look.face, mec=look.colour, alpha=alpha,
    elinewidth=0.9, capsize=2, zorder=3,
  )  # fmt: skip


def _draw_seeds(axes: Axes, row: Sequence[Point], look: Look):
  """Draws the curve of each seed; dots where they do not make curves."""
  x = [point.x for point in row]
  if len(row) > 1 and len({point.seeds for point in row}) == 1:
    for curve in zip(*(point.values for point in row), strict=True):
      axes.plot(x, curve, color=look.colour, lw=0.6, alpha=0.5)
  else:
    axes.plot(
      np.repeat(x, [point.seeds for point in row]),
      list(itertools.chain(*(point.values for point in row))),
      color=look.colour, marker=".", ms=4, mew=0, lw=0, alpha=0.5,
    )  # fmt: skip


def _draw_depths(
  axes: Axes, points: Sequence[Point], looks: Mapping[str, Look],
  with_seeds: bool,
):  # fmt: skip
  last = max((point.x for point in points), default=1)
  for setting, row in _by_setting(points).items():
    look = looks[setting]
    x, mean = [p.x for p in row], [p.mean for p in row]
    low, high = [p.low for p in row], [p.high for p in row]
    if len(row) > 1:
      axes.fill_between(x, low, high, color=look.colour, alpha=0.13, lw=0)
      _draw_line(axes, x, mean, look, ms=5, zorder=3)
    else:  # No depth to choose: the line is there to compare with.
      _draw_points(axes, row, look)
      axes.plot(
        [x[0], last], mean * 2, color=look.colour, ls=look.line,
        lw=0.7 * look.width, alpha=0.6, zorder=1,
      )  # fmt: skip
    if with_seeds and _has_seeds(row):
      _draw_seeds(axes, row, look)
  _finish_depth(axes, [p.x for p in points], "test depth (supervision steps)")
  _set_accuracy(axes, points)
  _say_if_empty(axes, points)


def _draw_flops(
  axes: Axes, points: Sequence[Point], looks: Mapping[str, Look],
  with_seeds: bool,
) -> list[Fit]:  # fmt: skip
  for setting, row in _by_setting(points).items():
    look = looks[setting]
    axes.plot(
      [p.x for p in row], [p.mean for p in row], color=look.colour, lw=0.9,
      alpha=0.6, zorder=2,
    )  # fmt: skip
    _draw_points(axes, row, look, size=5)
    if with_seeds and _has_seeds(row):
      _draw_seeds(axes, row, look)
  found = [fit for fit in fits(points).values() if isinstance(fit, Fit)]
  for fit in found:
    style = FAMILIES[fit.family].style
    axes.plot(
      fit.x, fit.mean, color=style.colour, ls=style.line, lw=2.4, zorder=2.5
    )
    axes.fill_between(
      fit.x, fit.low, fit.high, color=style.colour, alpha=0.15, lw=0
    )
  return found


def _draw_flops_alone(
  cells: Sequence[Cell], points: Sequence[Point], name: str, path: pathlib.Path
):
  looks = find_looks(cells)
  figure = _figure(9, 5.6)
  axes = figure.subplots()
  found = _draw_flops(axes, points, looks, with_seeds=True)
  _finish_flops(axes, name, points)
  _set_accuracy(axes, points)
  seed = _SEED if _has_seeds(points) else None
  _add_legend(figure, points, seed, _BAR, _FIT if found else None)
  ends = {
    setting: (row[-1].x, row[-1].mean)
    for setting, row in _by_setting(points).items()
  }
  names.place_labels(figure, {axes: names.setting_labels(ends, looks)})
  pictures.save_png(figure, path)


def _draw_best(
  axes: Axes, x: float, point: Point | None, family: str,
  looks: Mapping[str, Look], with_depth: bool,
):  # fmt: skip
  """Draws the best of a family within a budget as a dot on a stem."""
  if point is None:
    _write_above(axes, x, 0, "none", family)
    return
  colour = FAMILIES[family].style.colour
  axes.vlines(x, 0, point.mean, colour, lw=2, alpha=0.4, zorder=2)
  at_place = dataclasses.replace(point, x=x)
  _draw_points(axes, [at_place], looks[point.setting], size=7)
  if with_depth:
    _write_above(axes, x, max(point.high, point.mean), str(point.depth), family)


def _write_above(axes: Axes, x: float, y: float, text: str, family: str):
  axes.annotate(
    text, (x, y), (0, 3), textcoords="offset points", ha="center",
    va="bottom", size=names.SMALL, color=FAMILIES[family].style.ink,
    rotation="vertical" if y == 0 else "horizontal",
  )  # fmt: skip


# Axes and legends.


def _finish_depth(axes: Axes, depths: Iterable[float], label: str):
  """A log axis in base 2 with plain numbers, none too near another."""
  ticks: list[float] = []
  for depth in sorted(
    {*depths}, key=lambda d: (not math.log2(d).is_integer(), d)
  ):
    if all(max(depth / tick, tick / depth) >= 1.4 for tick in ticks):
      ticks.append(depth)
  axes.set_xscale("log", base=2)
  axes.set_xticks(ticks)
  axes.xaxis.set_major_formatter(ScalarFormatter())
  axes.minorticks_off()
  axes.set_xlabel(label)
  axes.grid(alpha=0.3)


def _finish_flops(axes: Axes, label: str, points: Sequence[Point]):
  axes.set_xscale("log")
  axes.set_xlabel(label)
  axes.grid(alpha=0.3)
  _say_if_empty(axes, points)


def _set_accuracy(
  axes: Axes, points: Iterable[Point | Halting], room: float = 0.0
):
  """An axis of per cent, from 0 to just above what there is."""
  highs = [np.max([*np.atleast_1d(point.high), 0]) for point in points]
  top = max(highs, default=1.0) or 1.0
  axes.set_ylabel("puzzles exactly right")
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.set_ylim(-0.02 * top, (1.03 + room) * top)


def _say_if_empty(axes: Axes, points: Sequence, text="nothing was measured"):
  if not points:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)


def _add_legend(
  figure: Figure, points: Sequence[Point | Halting], *keys: Artist | None,
  lines: bool = True,
):  # fmt: skip
  """Adds one legend below all axes: the families, then `keys`."""
  handles: list[Artist] = []
  for family in _families(points):
    style = FAMILIES[family].style
    handles.append(
      Line2D(
        [], [], color=style.colour, marker=style.marker, ms=6,
        ls=style.line if lines else "", lw=2, label=FAMILIES[family].title,
      )
    )  # fmt: skip
  if not handles:
    return
  extra = [key for key in keys if key]
  room = int(figure.get_figwidth() / 1.6)
  columns = len(handles) + len(extra)
  if columns > room:
    columns = min(max(len(handles), len(extra)), room)
  handles += extra
  # It is filled column by column, and read row by row.
  turned = [each for k in range(columns) for each in handles[k::columns]]
  figure.legend(
    handles=turned, loc="outside lower center", ncols=columns,
    fontsize="small", frameon=False, handlelength=3.2,
  )  # fmt: skip
