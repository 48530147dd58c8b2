"""Names of settings, written into a picture near what they name."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from trm_jax.study.looks import RESOLUTION, Look
from trm_jax.study.statistics import Point

SMALL = 7.5  # points, of labels within axes
_NEAR = 16  # pixels; a label that stands further off has a leader
_TOO_BAD = 130  # pixels away, or of ink covered; a marker has a hundred

# Where a label may stand: pixels from its point, and the direction.
_AROUND = [
  (reach, angle)
  for reach in (8, 16, 28, 44, 66, 96, 140, 200)
  for angle in np.arange(16) * np.pi / 8
]

# Text, the point (x, y) that it belongs to, and its colour.
Label = tuple[str, float, float, tuple[float, ...]]


def write_beside(
  figure: Figure,
  axes: Axes,
  points: Sequence[Point],
  looks: Mapping[str, Look],
):
  """Writes the name of each setting right of the axes, level with its end."""
  rightmost = sorted(points, key=lambda point: point.x)
  ends = {point.setting: point.mean for point in rightmost}
  order = sorted(ends, key=lambda setting: ends[setting])
  figure.draw_without_rendering()  # or else the height is not known
  height = axes.get_window_extent().height / RESOLUTION * 72
  low, high = axes.get_ylim()
  wanted = [height * (ends[setting] - low) / (high - low) for setting in order]
  line = 11.0  # points from one name to the next
  places: list[float] = []
  for place in wanted:
    places.append(max([place] + [p + line for p in places[-1:]]))
  limit = height
  for k in reversed(range(len(places))):
    places[k] = limit = min(places[k], limit)
    limit -= line
  for setting, wish, place in zip(order, wanted, places, strict=True):
    look = looks[setting]
    axes.annotate(
      look.label, (1, wish / height), (1.04, place / height),
      "axes fraction", "axes fraction", color=look.ink, size="small",
      va="center", annotation_clip=False,
      arrowprops=dict(
        arrowstyle="-", color=look.colour, lw=0.6, shrinkA=1, shrinkB=0,
        relpos=(0, 0.5),
      ),
    )  # fmt: skip


def setting_labels(
  ends: Mapping[str, tuple[float, float]], looks: Mapping[str, Look]
) -> list[Label]:
  """Names of settings at (x, y); where a family has one, its name will do."""
  return [
    (looks[setting].short, x, y, looks[setting].ink)
    for setting, (x, y) in ends.items()
    if looks[setting].short
  ]


def front_labels(
  front: Sequence[Point], looks: Mapping[str, Look]
) -> list[Label]:
  """Names of settings, where they change, and of depths, where any does."""
  several = len({point.depth for point in front}) > 1
  labels = []
  previous = ""
  for point in front:
    look = looks[point.setting]
    text = [look.label] if point.setting != previous else []
    text += [f"depth {point.depth}"] if several else []
    labels.append((", ".join(text), point.x, point.mean, look.ink))
    previous = point.setting
  return [label for label in labels if label[0]]


def place_labels(figure: Figure, labels: Mapping[Axes, Sequence[Label]]):
  """Writes labels near their points, where they cover least.

  None overlaps another or leaves its axes. One that would cover too much is
  left out: how full its marker is still tells the setting.
  """
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  figure.set_layout_engine("none")  # all stays where it is now
  pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]  # upwards, as y is
  ink = 1 - pixels.min(axis=-1) / 255  # so that orange is ink as well
  for axes, each in labels.items():
    frame = axes.get_window_extent()
    for text, x, y, colour in each:
      point = axes.transData.transform((x, y))
      size = _text_size(axes, text, canvas.get_renderer())
      cost, reach, centre = _best_place(ink, frame, point, size)
      if cost > _TOO_BAD:
        continue
      ink[_pixels(centre, size)] = np.inf  # taken
      leader = dict(arrowstyle="-", color=colour, lw=0.5, shrinkA=0, shrinkB=5)
      axes.annotate(
        text, (x, y), tuple((centre - point) * 72 / RESOLUTION),
        textcoords="offset points", size=SMALL, color=colour, ha="center",
        va="center", zorder=5, in_layout=False,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops=leader if reach > _NEAR else None,
      )  # fmt: skip


def _best_place(
  ink: np.ndarray, frame: Bbox, point: np.ndarray, size: np.ndarray
) -> tuple[float, float, np.ndarray]:
  """Looks for room around a point; all in pixels.

  Args:
    ink: float [height, width], 0 where it is white, inf where a label is.
    frame: what must not be left.
    point: what is labelled, (x, y).
    size: width and height of the label.

  Returns:
    How bad the best place is, its distance, and its centre.
  """
  best = (np.inf, 0.0, point)
  for reach, angle in _AROUND:
    way = np.array([np.cos(angle), np.sin(angle)])
    centre = point + way * (size / 2 + reach)
    low, high = centre - size / 2, centre + size / 2
    if (low < frame.min).any() or (high > frame.max).any():
      continue
    cost = reach + ink[_pixels(centre, size)].sum()
    if reach > _NEAR:  # What the leader crosses is harder to tell apart.
      leader = np.linspace(point + 10 * way, centre - way * size / 2, 50)
      x, y = np.clip(leader, frame.min, frame.max).astype(int).T
      cost += 3 * ink[y, x].sum()
    if cost < best[0]:
      best = (cost, reach, centre)
  return best


def _pixels(centre: np.ndarray, size: np.ndarray) -> tuple[slice, slice]:
  """The rows and columns of a box."""
  (x0, y0), (x1, y1) = centre - size / 2, centre + size / 2
  return slice(int(y0), int(y1) + 1), slice(int(x0), int(x1) + 1)


def _text_size(axes: Axes, text: str, renderer) -> np.ndarray:
  """Width and height in pixels, with a margin."""
  sample = axes.text(0, 0, text, size=SMALL)
  box = sample.get_window_extent(renderer)
  sample.remove()
  return np.array([box.width, box.height]) + 4
