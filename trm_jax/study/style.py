"""Styles of settings, axes and legends in the figures of a study.

A family has one colour, marker and line style. The more weights a setting has,
the thicker its line and the fuller its marker.
"""

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from trm_jax.core.family import FAMILIES, Style
from trm_jax.study.results import Trial, labels
from trm_jax.study.statistics import Halting, Point


@dataclasses.dataclass(frozen=True)
class SettingStyle(Style):
  """The style of a setting."""

  width: float  # of the line, in points
  face: tuple[float, ...]  # RGB of the marker's inside
  label: str  # in legends

  @property
  def of_line(self) -> dict:
    """Matplotlib arguments for a line with markers."""
    return self.of_marker | {"ls": self.line, "lw": self.width}

  @property
  def of_marker(self) -> dict:
    """Matplotlib arguments for markers without a line."""
    return {
      "color": self.colour,
      "marker": self.marker,
      "mfc": self.face,
      "mec": self.colour,
      "ls": "",
    }


# Digest of a setting -> its style.
Styles = Mapping[str, SettingStyle]


def setting_styles(trials: Sequence[Trial]) -> dict[str, SettingStyle]:
  """Digest of each setting -> its style."""
  label_of = labels(trials)
  weights = {trial.setting: trial.weights for trial in trials}
  styles = {}
  for name, family in FAMILIES.items():
    settings = sorted(
      {trial.setting for trial in trials if trial.family == name},
      key=lambda setting: (weights[setting], label_of[setting], setting),
    )
    for k, setting in enumerate(settings):
      full = 1.0 if len(settings) == 1 else k / (len(settings) - 1)
      label = textwrap.shorten(label_of[setting], 60, placeholder=" …")
      styles[setting] = SettingStyle(
        **dataclasses.asdict(family.style),
        width=1.2 + 1.2 * full,
        face=tuple(1 - full * (1 - c) for c in to_rgb(family.style.colour)),
        label=textwrap.fill(label, 34),
      )
  return styles


def new_figure(width: float, height: float) -> Figure:
  """A figure without axes; sizes are in inches."""
  return Figure((width, height), dpi=150, layout="constrained")


def finish_depth(axes: Axes, depths: Iterable[float], label: str):
  """Formats x as a log axis in base 2 with ticks that do not overlap."""
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


def finish_flops(axes: Axes, label: str, points: Sequence[Point]):
  """Formats x as a log axis of FLOPs."""
  axes.set_xscale("log")
  axes.set_xlabel(label)
  axes.grid(alpha=0.3)
  say_if_empty(axes, points)


def set_accuracy(
  axes: Axes, points: Iterable[Point | Halting], margin: float = 0.0
):
  """Formats y in per cent, from 0 to just above the highest interval."""
  highs = [np.max([*np.atleast_1d(point.high), 0]) for point in points]
  top = max(highs, default=1.0) or 1.0
  axes.set_ylabel("puzzles exactly right")
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.set_ylim(-0.02 * top, (1.03 + margin) * top)


def say_if_empty(axes: Axes, points: Sequence, text="nothing was measured"):
  """Writes a text into axes without points."""
  if not points:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)


def add_legend(
  figure: Figure, points: Iterable[Point | Halting], styles: Styles,
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
    text.set_parse_math(False)  # "$" in a name must not start a formula
