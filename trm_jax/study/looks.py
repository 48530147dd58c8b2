"""How families and their settings look, the same in every picture.

A family has one colour, one marker and one line style. Its settings differ by
the width of the line and the filling of the marker: the more weights, the
thicker and fuller.
"""

import dataclasses
import textwrap
from collections.abc import Sequence

from matplotlib.colors import to_rgb

from trm_jax.core.family import FAMILIES, Style
from trm_jax.study import statistics
from trm_jax.study.results import Cell

RESOLUTION = 150  # pixels an inch


@dataclasses.dataclass(frozen=True)
class Look(Style):
  """How a setting of a family is drawn, and what it is called.

  Attributes:
    width: of the line, in points.
    face: colour of the marker inside.
    label: with the family's name.
    short: without it; empty if the family has no other setting.
  """

  width: float
  face: tuple[float, ...]
  label: str
  short: str


def find_looks(cells: Sequence[Cell]) -> dict[str, Look]:
  """How each setting looks, the same in every picture of these cells."""
  labels = statistics.labels(cells)
  weights = {cell.setting: cell.weights for cell in cells}
  looks = {}
  for name, family in FAMILIES.items():
    style = family.style
    settings = sorted(
      {cell.setting for cell in cells if cell.family == name},
      key=lambda setting: (weights[setting], labels[setting], setting),
    )
    for k, setting in enumerate(settings):
      full = 1.0 if len(settings) == 1 else k / (len(settings) - 1)
      label = _plain(labels[setting])
      short = label.removeprefix(family.title).strip(" ,:")
      looks[setting] = Look(
        **dataclasses.asdict(style),
        width=1.2 + 1.2 * full,
        face=tuple(1 - full * (1 - part) for part in to_rgb(style.colour)),
        label=label,
        short=short if len(settings) > 1 else "",
      )
  return looks


def _plain(text: str) -> str:
  """Short text in which matplotlib finds no formulas."""
  text = textwrap.shorten(text, 60, placeholder=" …")
  return text.replace("$", r"\$")
