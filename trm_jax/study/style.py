"""How the settings of a study are drawn, the same in every figure.

A family has one colour, one marker and one line style. Its settings differ by
the width of the line and the filling of the marker: the more weights, the
thicker and fuller.
"""

import dataclasses
import textwrap
from collections.abc import Sequence

from matplotlib.colors import to_rgb

from trm_jax.core.family import FAMILIES, Style
from trm_jax.study.results import Trial, labels


@dataclasses.dataclass(frozen=True)
class SettingStyle(Style):
  """How a setting of a family is drawn, and what it is called.

  Attributes:
    width: of the line, in points.
    face: RGB of the marker's inside.
    label: in legends.
  """

  width: float
  face: tuple[float, ...]
  label: str

  @property
  def of_line(self) -> dict:
    """Arguments of matplotlib for a line with markers."""
    return self.of_marker | {"ls": self.line, "lw": self.width}

  @property
  def of_marker(self) -> dict:
    """Arguments of matplotlib for markers alone."""
    return {
      "color": self.colour,
      "marker": self.marker,
      "mfc": self.face,
      "mec": self.colour,
      "ls": "",
    }


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
