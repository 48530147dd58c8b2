"""Figures of a study: exact accuracy against depth and compute.

Every figure is a function of the trials and the test depths, see `FIGURES`.
Trials that diverged are in none.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from trm_jax.core.family import FAMILIES
from trm_jax.study import power_law, statistics
from trm_jax.study.power_law import Fit
from trm_jax.study.results import Trial
from trm_jax.study.statistics import Halting, Point, by_setting, families
from trm_jax.study.style import SettingStyle, setting_styles

_INFERENCE = "inference FLOPs per puzzle"
_TRAINING = "training FLOPs"
_GREY = "#555555"
_SMALL = 7.5  # points, of numbers within axes

_Styles = Mapping[str, SettingStyle]


def _key(label: str, **style) -> Line2D:
  return Line2D([], [], color=_GREY, label=label, **style)


# What a legend says besides the settings.
_SEED = _key("one seed", lw=0.6, alpha=0.7)
_BAR = _key("95% interval", marker="|", ms=9, lw=0)
_BAND = Patch(color=_GREY, alpha=0.2, lw=0, label="95% interval")
_FIT = Patch(color=_GREY, alpha=0.2, lw=0, label="fit of the best, 95%")
_FRONT = _key("Pareto front", lw=1.2)
_BEATEN = _key("beaten", alpha=0.3, marker="o", ms=4, lw=0)
_HALTED = _key("halting by q", marker="o", ms=6, lw=2)
_FIXED = _key("fixed depth", marker="o", ms=3, lw=0.7, alpha=0.6)
_DEPTH = _key("number: test depth", lw=0)
_NONE = _key("none: not as cheap", lw=0)


def accuracy_by_depth(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws exact accuracy against test depth, seed by seed and in the mean."""
  points = statistics.depth_points(trials, depths)
  styles = setting_styles(trials)
  figure = _figure(9, 4.8)
  _draw_depths(figure.subplots(), points, styles, with_seeds=True)
  seed = _SEED if _has_seeds(points) else None
  _add_legend(figure, points, styles, seed, _BAND)
  return figure


def accuracy_by_inference_flops(
  trials: Sequence[Trial], depths: Iterable[int]
) -> Figure:
  """Draws exact accuracy against inference FLOPs, with a fit a family."""
  points = statistics.inference_points(trials, depths)
  return _accuracy_by_flops(trials, points, _INFERENCE)


def accuracy_by_training_flops(
  trials: Sequence[Trial], depths: Iterable[int]
) -> Figure:
  """Draws exact accuracy against training FLOPs, with a fit a family.

  The points are the evaluations during training, at the depth of those.
  """
  del depths
  points = statistics.training_points(trials)
  return _accuracy_by_flops(trials, points, _TRAINING)


def pareto(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws what nothing cheaper beats, at inference and in training."""
  styles = setting_styles(trials)
  panels = _panels(trials, depths)
  figure = _figure(13.5, 5)
  both = figure.subplots(1, 2, sharey=True)
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    front = statistics.pareto_front(points)
    for setting, row in by_setting(points).items():
      _draw_points(axes, row, styles[setting], alpha=0.3, size=4)
    for setting, row in by_setting(front).items():
      _draw_points(axes, row, styles[setting], size=8)
    if front:
      # What a budget buys stays the same until the next can be paid.
      x = [each.x for each in front] + [max(each.x for each in points)]
      y = [each.mean for each in front]
      axes.plot(
        np.repeat(x, 2)[1:-1], np.repeat(y, 2), color=_GREY, lw=1.2, zorder=1
      )
    if name == _INFERENCE:  # in training all are of one depth
      for point in front:
        _write(axes, point.x, point.mean, point, (7, -10), ha="left")
    _finish_flops(axes, name, points)
  every = [*itertools.chain(*panels.values())]
  _set_accuracy(both[0], every)
  both[1].set_ylabel("")
  _add_legend(figure, every, styles, _FRONT, _BEATEN, _DEPTH, lines=False)
  return figure


def equal_flops(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws the best of each family within the same budgets of FLOPs."""
  styles = setting_styles(trials)
  panels = _panels(trials, depths)
  figure = _figure(10, 7.2)
  both = figure.subplots(2, 1)
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    budgets = statistics.at_equal_flops(points)
    present = families(points)
    recursive = {point.family for point in points if point.depth > 1}
    for place, best in enumerate(budgets.values()):
      for k, family in enumerate(present):
        x = place + 0.8 * ((k + 0.5) / len(present) - 0.5)
        with_depth = name == _INFERENCE and family in recursive
        _draw_best(axes, x, best[family], family, styles, with_depth)
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
    _set_accuracy(axes, every, margin=0.05)
  _add_legend(figure, every, styles, _BAR, _DEPTH, _NONE, lines=False)
  return figure


def halting(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws how many steps puzzles use, and what halting costs and saves."""
  styles = setting_styles(trials)
  halted = statistics.halting(trials)
  figure = _figure(13.5, 4.8)
  left, right = figure.subplots(1, 2)
  most = max((len(each.fractions) for each in halted), default=1)
  ticks = sorted(depth for depth in set(depths) if depth <= most)
  for each in halted:
    style = styles[each.setting]
    steps = np.arange(1, len(each.fractions) + 1)
    chosen = [depth - 1 for depth in ticks if depth <= len(steps)]
    left.plot(steps, each.fractions, **style.of_line, ms=4)
    right.plot(
      each.mean_steps, each.accuracy, **style.of_line, markevery=chosen, ms=6
    )
    right.fill_between(
      each.mean_steps, each.low, each.high, color=style.colour, alpha=0.13, lw=0
    )
    right.plot(
      steps[chosen], np.array(each.fixed_accuracy)[chosen], color=style.colour,
      marker=style.marker, ms=3, lw=0.7, alpha=0.6,
    )  # fmt: skip
  _finish_depth(left, ticks, "steps used by a puzzle")
  left.set_ylabel("fraction of puzzles")
  left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  left.set_ylim(bottom=0)
  _finish_depth(right, ticks, "mean steps per puzzle")
  _set_accuracy(right, halted)
  most_right = max((max(each.fixed_accuracy) for each in halted), default=0)
  right.set_ylim(top=max(right.get_ylim()[1], 1.03 * most_right))
  for axes in (left, right):
    _say_if_empty(axes, halted, "no model here halts by itself")
  _add_legend(figure, halted, styles, _HALTED, _FIXED)
  return figure


def overview(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws depth, inference FLOPs and training FLOPs side by side."""
  styles = setting_styles(trials)
  by_depth = statistics.depth_points(trials, depths)
  panels = _panels(trials, depths)
  figure = _figure(16, 4.6)
  first, *others = figure.subplots(1, 3, sharey=True)
  _draw_depths(first, by_depth, styles, with_seeds=False)
  found = []
  for axes, (name, points) in zip(others, panels.items(), strict=True):
    found += _draw_flops(axes, name, points, styles, with_seeds=False)
  every = [*by_depth, *itertools.chain(*panels.values())]
  _set_accuracy(first, every)
  for axes in others:
    axes.set_ylabel("")
  _add_legend(figure, every, styles, _BAR, _FIT if found else None)
  return figure


# What a study draws, by the names of the files.
FIGURES = {
  "overview": overview,
  "depth": accuracy_by_depth,
  "inference": accuracy_by_inference_flops,
  "training": accuracy_by_training_flops,
  "pareto": pareto,
  "equal_flops": equal_flops,
  "halting": halting,
}


def fits(points: Iterable[Point]) -> dict[str, Fit | str]:
  """Family -> its fit, or why there is none."""
  every = tuple(points)
  return {family: _fit(every, family) for family in families(every)}


@functools.lru_cache(maxsize=64)  # a fit takes a second and is shown often
def _fit(points: tuple[Point, ...], family: str) -> Fit | str:
  return power_law.fit_family(points, family)


def as_flops(count: float) -> str:
  """A number of FLOPs in three digits, as in "66.2 MFLOP"."""
  prefixes = {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k"}
  rounded = float(f"{count:.3g}")
  for exponent, prefix in prefixes.items():
    if rounded >= 10**exponent:
      return f"{rounded / 10**exponent:.3g} {prefix}FLOP"
  return f"{rounded:g} FLOP"


def _has_seeds(points: Iterable[Point]) -> bool:
  return any(point.seeds > 1 for point in points)


def _panels(
  trials: Sequence[Trial], depths: Iterable[int]
) -> dict[str, list[Point]]:
  """Label of an axis of FLOPs -> its points."""
  return {
    _INFERENCE: statistics.inference_points(trials, depths),
    _TRAINING: statistics.training_points(trials),
  }


# Drawing.


def _figure(width: float, height: float) -> Figure:
  return Figure((width, height), dpi=150, layout="constrained")


def _draw_points(
  axes: Axes, points: Sequence[Point], style: SettingStyle, alpha=1.0, size=6.0
):
  """Draws means, and their intervals unless they are faint."""
  mean = np.array([point.mean for point in points])
  below = mean - [point.low for point in points]
  above = [point.high for point in points] - mean
  axes.errorbar(
    [point.x for point in points], mean,
    yerr=np.maximum([below, above], 0) if alpha == 1 else None,
    **style.of_marker, ms=size, alpha=alpha, elinewidth=0.9, capsize=2,
    zorder=3,
  )  # fmt: skip


def _draw_seeds(axes: Axes, row: Sequence[Point], style: SettingStyle):
  """Draws the curve of each seed; dots where they do not make curves."""
  x = [point.x for point in row]
  if len(row) > 1 and len({point.seeds for point in row}) == 1:
    for curve in zip(*(point.values for point in row), strict=True):
      axes.plot(x, curve, color=style.colour, lw=0.6, alpha=0.5)
  else:
    axes.plot(
      np.repeat(x, [point.seeds for point in row]),
      list(itertools.chain(*(point.values for point in row))),
      color=style.colour, marker=".", ms=4, mew=0, lw=0, alpha=0.5,
    )  # fmt: skip


def _draw_depths(
  axes: Axes, points: Sequence[Point], styles: _Styles, with_seeds: bool
):
  last = max((point.x for point in points), default=1)
  for setting, row in by_setting(points).items():
    style = styles[setting]
    x, mean = [p.x for p in row], [p.mean for p in row]
    low, high = [p.low for p in row], [p.high for p in row]
    if len(row) > 1:
      axes.fill_between(x, low, high, color=style.colour, alpha=0.13, lw=0)
      axes.plot(x, mean, **style.of_line, ms=5, zorder=3)
    else:  # No depth to choose: the line is there to compare with.
      _draw_points(axes, row, style)
      axes.plot(
        [x[0], last], mean * 2, color=style.colour, ls=style.line,
        lw=0.7 * style.width, alpha=0.6, zorder=1,
      )  # fmt: skip
    if with_seeds and _has_seeds(row):
      _draw_seeds(axes, row, style)
  _finish_depth(axes, [p.x for p in points], "test depth (supervision steps)")
  _set_accuracy(axes, points)
  _say_if_empty(axes, points)


def _draw_flops(
  axes: Axes, name: str, points: Sequence[Point], styles: _Styles,
  with_seeds: bool,
) -> list[Fit]:  # fmt: skip
  for setting, row in by_setting(points).items():
    style = styles[setting]
    axes.plot(
      [p.x for p in row], [p.mean for p in row], color=style.colour, lw=0.9,
      alpha=0.6, zorder=2,
    )  # fmt: skip
    _draw_points(axes, row, style, size=5)
    if with_seeds and _has_seeds(row):
      _draw_seeds(axes, row, style)
  found = [fit for fit in fits(points).values() if isinstance(fit, Fit)]
  for fit in found:
    style = FAMILIES[fit.family].style
    axes.plot(
      fit.x, fit.mean, color=style.colour, ls=style.line, lw=2.4, zorder=2.5
    )
    axes.fill_between(
      fit.x, fit.low, fit.high, color=style.colour, alpha=0.15, lw=0
    )
  _finish_flops(axes, name, points)
  return found


def _accuracy_by_flops(
  trials: Sequence[Trial], points: Sequence[Point], name: str
) -> Figure:
  styles = setting_styles(trials)
  figure = _figure(10, 5)
  axes = figure.subplots()
  found = _draw_flops(axes, name, points, styles, with_seeds=True)
  _set_accuracy(axes, points)
  seed = _SEED if _has_seeds(points) else None
  _add_legend(figure, points, styles, seed, _BAR, _FIT if found else None)
  return figure


def _draw_best(
  axes: Axes, x: float, point: Point | None, family: str, styles: _Styles,
  with_depth: bool,
):  # fmt: skip
  """Draws the best of a family within a budget as a dot on a stem."""
  style = FAMILIES[family].style
  if point is None:
    axes.text(
      x, 0.02, "none", transform=axes.get_xaxis_transform(), size=_SMALL,
      color=style.ink, ha="center", va="bottom", rotation="vertical",
    )  # fmt: skip
    return
  axes.vlines(x, 0, point.mean, style.colour, lw=2, alpha=0.4, zorder=2)
  at_place = dataclasses.replace(point, x=x)
  _draw_points(axes, [at_place], styles[point.setting], size=7)
  if with_depth:
    _write(axes, x, max(point.high, point.mean), point, (0, 3), ha="center")


def _write(
  axes: Axes, x: float, y: float, point: Point, offset: tuple[int, int],
  **style,
):  # fmt: skip
  """Writes the depth of a point so many points (1/72 inch) away."""
  axes.annotate(
    str(point.depth), (x, y), offset, textcoords="offset points", size=_SMALL,
    color=FAMILIES[point.family].style.ink, **style,
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
  axes: Axes, points: Iterable[Point | Halting], margin: float = 0.0
):
  """An axis of per cent, from 0 to just above what there is."""
  highs = [np.max([*np.atleast_1d(point.high), 0]) for point in points]
  top = max(highs, default=1.0) or 1.0
  axes.set_ylabel("puzzles exactly right")
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.set_ylim(-0.02 * top, (1.03 + margin) * top)


def _say_if_empty(axes: Axes, points: Sequence, text="nothing was measured"):
  if not points:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)


def _add_legend(
  figure: Figure, points: Iterable[Point | Halting], styles: _Styles,
  *keys: Artist | None, lines: bool = True,
):  # fmt: skip
  """Adds one legend beside all axes: the settings, then `keys`."""
  drawn = {point.setting for point in points}
  handles: list[Artist] = [
    Line2D(
      [], [], **(style.of_line if lines else style.of_marker), ms=6,
      label=style.label,
    )
    for setting, style in styles.items()
    if setting in drawn
  ]  # fmt: skip
  if not handles:
    return
  legend = figure.legend(
    handles=[*handles, *filter(None, keys)], loc="outside right center",
    fontsize="small", frameon=False, handlelength=3.2 if lines else 1.5,
  )  # fmt: skip
  for text in legend.get_texts():
    text.set_parse_math(False)  # a "$" in a name is no formula
