"""Figures of a study: exact accuracy against depth and compute.

Each function in `FIGURES` draws trials at some test depths; trials that
diverged are left out.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from trm_jax.core.family import FAMILIES
from trm_jax.study import power_law, statistics
from trm_jax.study.power_law import Fit
from trm_jax.study.results import Trial
from trm_jax.study.statistics import Point, by_setting, families
from trm_jax.study.style import (
  SettingStyle,
  Styles,
  add_legend,
  finish_depth,
  finish_flops,
  new_figure,
  say_if_empty,
  set_accuracy,
  setting_styles,
)

_INFERENCE = "inference FLOPs per puzzle"
_TRAINING = "training FLOPs"
_GREY = "#555555"
_SMALL = 7.5  # font size of numbers within axes


def _key(label: str, **style) -> Line2D:
  return Line2D([], [], color=_GREY, label=label, **style)


# Entries of legends besides the settings.
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
  """Draws exact accuracy against test depth: the mean and each seed."""
  points = statistics.depth_points(trials, depths)
  styles = setting_styles(trials)
  figure = new_figure(9, 4.8)
  _draw_depths(figure.subplots(), points, styles, with_seeds=True)
  seed = _SEED if _has_seeds(points) else None
  add_legend(figure, points, styles, seed, _BAND)
  return figure


def accuracy_by_inference_flops(
  trials: Sequence[Trial], depths: Iterable[int]
) -> Figure:
  """Draws exact accuracy against inference FLOPs, with a fit per family."""
  points = statistics.inference_points(trials, depths)
  return _accuracy_by_flops(trials, points, _INFERENCE)


def accuracy_by_training_flops(
  trials: Sequence[Trial], depths: Iterable[int]
) -> Figure:
  """Draws the evaluations during training against training FLOPs."""
  del depths
  points = statistics.training_points(trials)
  return _accuracy_by_flops(trials, points, _TRAINING)


def pareto(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws the Pareto front at inference and in training."""
  styles = setting_styles(trials)
  panels = _panels(trials, depths)
  figure = new_figure(13.5, 5)
  both = figure.subplots(1, 2, sharey=True)
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    front = statistics.pareto_front(points)
    for setting, row in by_setting(points).items():
      _draw_points(axes, row, styles[setting], alpha=0.3, size=4)
    for setting, row in by_setting(front).items():
      _draw_points(axes, row, styles[setting], size=8)
    if front:
      # Accuracy stays constant up to the next point of the front.
      x = [each.x for each in front] + [max(each.x for each in points)]
      y = [each.mean for each in front]
      axes.plot(
        np.repeat(x, 2)[1:-1], np.repeat(y, 2), color=_GREY, lw=1.2, zorder=1
      )
    if name == _INFERENCE:  # in training all points have one depth
      for point in front:
        _write(axes, point.x, point.mean, point, (7, -10), ha="left")
    finish_flops(axes, name, points)
  every = [*itertools.chain(*panels.values())]
  set_accuracy(both[0], every)
  both[1].set_ylabel("")
  add_legend(figure, every, styles, _FRONT, _BEATEN, _DEPTH, lines=False)
  return figure


def equal_flops(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws the best of each family within the same budgets of FLOPs."""
  styles = setting_styles(trials)
  panels = _panels(trials, depths)
  figure = new_figure(10, 7.2)
  both = figure.subplots(2, 1)
  for axes, (name, points) in zip(both, panels.items(), strict=True):
    budgets = statistics.at_equal_flops(points)
    present = families(points)
    recursive = {point.family for point in points if point.depth > 1}
    for column, best in enumerate(budgets.values()):
      for k, family in enumerate(present):
        x = column + 0.8 * ((k + 0.5) / len(present) - 0.5)
        with_depth = name == _INFERENCE and family in recursive
        _draw_best(axes, x, best[family], family, styles, with_depth)
    axes.set_xticks(range(len(budgets)), [as_flops(each) for each in budgets])
    axes.tick_params(axis="x", length=0)
    for edge in range(1, len(budgets)):
      axes.axvline(edge - 0.5, color="#CCCCCC", lw=0.8)
    axes.set_xlim(-0.5, max(len(budgets), 1) - 0.5)
    axes.set_xlabel(f"budget of {name}, at most")
    axes.grid(alpha=0.3, axis="y")
    say_if_empty(axes, points)
  every = [*itertools.chain(*panels.values())]
  for axes in both:
    set_accuracy(axes, every, margin=0.05)
  add_legend(figure, every, styles, _BAR, _DEPTH, _NONE, lines=False)
  return figure


def halting(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws the steps that puzzles use, and accuracy against mean steps."""
  styles = setting_styles(trials)
  halted = statistics.halting(trials)
  figure = new_figure(13.5, 4.8)
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
  finish_depth(left, ticks, "steps used by a puzzle")
  left.set_ylabel("fraction of puzzles")
  left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  left.set_ylim(bottom=0)
  finish_depth(right, ticks, "mean steps per puzzle")
  set_accuracy(right, halted)
  most_right = max((max(each.fixed_accuracy) for each in halted), default=0)
  right.set_ylim(top=max(right.get_ylim()[1], 1.03 * most_right))
  for axes in (left, right):
    say_if_empty(axes, halted, "no model here halts by itself")
  add_legend(figure, halted, styles, _HALTED, _FIXED)
  return figure


def overview(trials: Sequence[Trial], depths: Iterable[int]) -> Figure:
  """Draws depth, inference FLOPs and training FLOPs side by side."""
  styles = setting_styles(trials)
  by_depth = statistics.depth_points(trials, depths)
  panels = _panels(trials, depths)
  figure = new_figure(16, 4.6)
  first, *others = figure.subplots(1, 3, sharey=True)
  _draw_depths(first, by_depth, styles, with_seeds=False)
  found = []
  for axes, (name, points) in zip(others, panels.items(), strict=True):
    found += _draw_flops(axes, name, points, styles, with_seeds=False)
  every = [*by_depth, *itertools.chain(*panels.values())]
  set_accuracy(first, every)
  for axes in others:
    axes.set_ylabel("")
  add_legend(figure, every, styles, _BAR, _FIT if found else None)
  return figure


# File name -> figure of a study.
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
  """Family -> its fit, or the reason why there is none."""
  every = tuple(points)
  return {family: _fit(every, family) for family in families(every)}


# A fit takes a second and is used several times.
_fit = functools.lru_cache(maxsize=64)(power_law.fit_family)


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
  """Label of the x axis -> points."""
  return {
    _INFERENCE: statistics.inference_points(trials, depths),
    _TRAINING: statistics.training_points(trials),
  }


# Drawing.


def _draw_points(
  axes: Axes, points: Sequence[Point], style: SettingStyle, alpha=1.0, size=6.0
):
  """Draws means, with their intervals if opaque."""
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
  """Draws a curve for each seed; dots where seeds do not form curves."""
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
  axes: Axes, points: Sequence[Point], styles: Styles, with_seeds: bool
):
  last = max((point.x for point in points), default=1)
  for setting, row in by_setting(points).items():
    style = styles[setting]
    x, mean = [p.x for p in row], [p.mean for p in row]
    low, high = [p.low for p in row], [p.high for p in row]
    if len(row) > 1:
      axes.fill_between(x, low, high, color=style.colour, alpha=0.13, lw=0)
      axes.plot(x, mean, **style.of_line, ms=5, zorder=3)
    else:  # one depth: a horizontal line for comparison
      _draw_points(axes, row, style)
      axes.plot(
        [x[0], last], mean * 2, color=style.colour, ls=style.line,
        lw=0.7 * style.width, alpha=0.6, zorder=1,
      )  # fmt: skip
    if with_seeds and _has_seeds(row):
      _draw_seeds(axes, row, style)
  finish_depth(axes, [p.x for p in points], "test depth (supervision steps)")
  set_accuracy(axes, points)
  say_if_empty(axes, points)


def _draw_flops(
  axes: Axes, name: str, points: Sequence[Point], styles: Styles,
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
  finish_flops(axes, name, points)
  return found


def _accuracy_by_flops(
  trials: Sequence[Trial], points: Sequence[Point], name: str
) -> Figure:
  styles = setting_styles(trials)
  figure = new_figure(10, 5)
  axes = figure.subplots()
  found = _draw_flops(axes, name, points, styles, with_seeds=True)
  set_accuracy(axes, points)
  seed = _SEED if _has_seeds(points) else None
  add_legend(figure, points, styles, seed, _BAR, _FIT if found else None)
  return figure


def _draw_best(
  axes: Axes, x: float, point: Point | None, family: str, styles: Styles,
  with_depth: bool,
):  # fmt: skip
  """Draws the best point of a family within a budget as a dot on a stem."""
  style = FAMILIES[family].style
  if point is None:
    axes.text(
      x, 0.02, "none", transform=axes.get_xaxis_transform(), size=_SMALL,
      color=style.ink, ha="center", va="bottom", rotation="vertical",
    )  # fmt: skip
    return
  axes.vlines(x, 0, point.mean, style.colour, lw=2, alpha=0.4, zorder=2)
  moved = dataclasses.replace(point, x=x)
  _draw_points(axes, [moved], styles[point.setting], size=7)
  if with_depth:
    _write(axes, x, max(point.high, point.mean), point, (0, 3), ha="center")


def _write(
  axes: Axes, x: float, y: float, point: Point, offset: tuple[int, int],
  **style,
):  # fmt: skip
  """Writes the depth of a point at an offset in units of 1/72 inch."""
  axes.annotate(
    str(point.depth), (x, y), offset, textcoords="offset points", size=_SMALL,
    color=FAMILIES[point.family].style.ink, **style,
  )  # fmt: skip
