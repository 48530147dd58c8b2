"""How families and their settings look, the same in every picture.

A family has one colour, one marker and one line style. Its settings differ by
the width of the line and the filling of the marker: the more weights, the
thicker and fuller.
"""

import dataclasses
import textwrap
from collections.abc import Sequence

from matplotlib.colors import to_rgb

from trm_jax.study import statistics
from trm_jax.study.results import FAMILY_NAMES, Cell

RESOLUTION = 150  # pixels an inch


@dataclasses.dataclass(frozen=True)
class Style:
  """How a family is drawn."""

  colour: str
  marker: str
  line: str | tuple[int, tuple[float, ...]]

  @property
  def ink(self) -> tuple[float, ...]:
    """The colour of text: darker, for thin strokes on white."""
    return tuple(0.7 * part for part in to_rgb(self.colour))


# Colour-blind safe (Okabe and Ito). Seven greys can't all be far apart: where
# two are alike, markers and dashes are not.
STYLES = {
  "trm": Style("#0072B2", "o", "-"),
  "hrm": Style("#56B4E9", "s", (0, (6, 1.5))),
  "single_latent": Style("#009E73", "^", (0, (4, 1.2, 1, 1.2))),
  "multi_latent": Style("#CC79A7", "v", (0, (4, 1, 1, 1, 1, 1))),
  "transformer": Style("#D55E00", "D", (0, (3, 1.5))),
  "feedforward": Style("#E69F00", "P", (0, (1, 1))),
  "autoregressive": Style("#000000", "X", (0, (5, 1.5, 1, 1.5))),
}


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
  for family, style in STYLES.items():
    settings = sorted(
      {cell.setting for cell in cells if cell.family == family},
      key=lambda setting: (weights[setting], labels[setting], setting),
    )
    for k, setting in enumerate(settings):
      full = 1.0 if len(settings) == 1 else k / (len(settings) - 1)
      label = _plain(labels[setting])
      short = label.removeprefix(FAMILY_NAMES[family]).strip(" ,:")
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
