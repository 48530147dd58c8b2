"""Pictures of puzzles, answers and a model's answers.

`Task.draw` draws a puzzle and marks wrong cells; this file chooses panels,
their captions and layout, and writes files.
"""

import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from trm_jax.data.task import Task
from trm_jax.draw import scenes as scenes_lib
from trm_jax.draw.scenes import Example, Guess, Scene
from trm_jax.run import files

# In inches; the sizes of fonts and marks in points fit to these.
_SIDE = 2.8  # of a panel
_GAP = 0.3
_LINE = 0.18  # of text
_BAR = 0.2

# Pixels per inch, reduced if a picture or film would exceed _MOST_PIXELS.
_RESOLUTION = 110
_MOST_PIXELS = 5e7

_EDGE, _CHANGED, _HALTS, _GOES_ON = "#999999", "#CC00CC", "#8FD9BF", "#DDDDDD"


@dataclasses.dataclass(frozen=True, eq=False)
class _Panel:
  """The arguments of `Task.draw`, a title, and a guess for the halting bar."""

  question: np.ndarray
  answer: np.ndarray | None = None
  label: np.ndarray | None = None
  title: str = ""
  guess: Guess | None = None


_Tier = Sequence[_Panel | None]  # side by side; None is a gap


def _row(scene: Scene, task: Task, has_answers: bool) -> list[_Tier]:
  """Panels side by side, with gaps for missing answers."""
  tier: list[_Panel | None] = []
  for example, guess in _guessed(scene):
    tier.append(_Panel(example.question, title="puzzle"))
    if has_answers:
      tier.append(_answer(example, "answer"))
    if guess:
      tier.append(_guess(example, guess, task))
  tier += [_answer(example, example.title) for example in scene.copies]
  return [tier]


def _columns(scene: Scene, task: Task, shown: int) -> list[_Tier]:
  """Columns of examples, padded to `shown` solved ones at the left."""

  def column(example):
    return _Panel(example.question, title=example.title), _answer(example, "")

  columns: list[_Tier] = [column(example) for example in scene.shown]
  columns += [(None, None)] * (shown - len(columns))
  for example, guess in _guessed(scene):
    columns.append(column(example))
    if guess:
      columns.append((None, _guess(example, guess, task)))
  columns += [column(example) for example in scene.copies]
  return list(zip(*columns, strict=True))


def _guessed(scene: Scene) -> list[tuple[Example, Guess | None]]:
  guesses = scene.guesses or [None] * len(scene.asked)
  return list(zip(scene.asked, guesses, strict=True))


def _answer(example: Example, title: str) -> _Panel | None:
  if not np.any(example.label):
    return None
  return _Panel(example.question, example.label, title=title)


def _guess(example: Example, guess: Guess, task: Task) -> _Panel:
  verdict = scenes_lib.verdict(example, guess, task)
  # A solution other than the label has no wrong cells.
  is_compared = np.any(example.label) and not guess.is_solution
  return _Panel(
    example.question,
    guess.answer,
    example.label if is_compared else None,
    title=": ".join(text for text in (guess.title, verdict) if text),
    guess=guess,
  )


def panels(
  scenes: Sequence[Scene], task: Task, title: str = "", frames: int = 1
) -> Figure:
  """Draws one or more puzzles below each other, with a title above.

  In ARC, answers are below their questions; otherwise panels are in a row.
  Sizes do not depend on cells or on the words of titles, so pictures of the
  same puzzles can be the `frames` of a film; a long one has fewer pixels.
  """
  shown = max(len(scene.shown) for scene in scenes)
  has_answers = any(np.any(p.label) for scene in scenes for p in scene.asked)
  strips = [
    _row(scene, task, has_answers)
    if task.in_place
    else _columns(scene, task, shown)
    for scene in scenes
  ]
  left = 2.5 * _LINE if any(scene.name for scene in scenes) else _GAP
  longest = max(len(tier) for tiers in strips for tier in tiers)
  width = left + longest * (_SIDE + _GAP)
  height = _GAP / 2 + 2 * _LINE * bool(title)
  height += sum(_height(tier) for tiers in strips for tier in tiers)
  most = math.sqrt(_MOST_PIXELS / (width * height * frames))
  figure = Figure(figsize=(width, height), dpi=min(_RESOLUTION, most))
  y = height - _GAP / 2  # decreases downwards
  if title:
    y -= 2 * _LINE
    _write(figure, width / 2, y + _LINE, title, size="large", va="center")
  for scene, tiers in zip(scenes, strips, strict=True):
    if scene is not scenes[0]:
      ends, middle = [left, width - _GAP], y + _GAP / 2
      figure.add_artist(
        Line2D(
          ends, [middle, middle], transform=figure.dpi_scale_trans, color=_EDGE,
          lw=1,
        )
      )  # fmt: skip
    begin = y
    for tier in tiers:
      _draw_tier(figure, tier, task, left, y)
      y -= _height(tier)
    middle = (begin + y + _GAP) / 2
    _write(figure, left / 2, middle, scene.name, rotation=90, va="center")
  return figure


def _height(tier: _Tier) -> float:
  return _captions(tier) + _SIDE + _bars(tier) + _GAP


def _captions(tier: _Tier) -> float:
  """Height in inches of the titles above panels."""
  titles = [panel.title for panel in tier if panel and panel.title]
  return max((_LINE * (title.count("\n") + 1.5) for title in titles), default=0)


def _bars(tier: _Tier) -> float:
  """Height in inches of the bars below panels and the gap above them."""
  return (_BAR + _LINE / 2) * any(panel and panel.guess for panel in tier)


def _draw_tier(
  figure: Figure, tier: _Tier, task: Task, left: float, top: float
):
  """Draws panels side by side; `left` and `top` are in inches."""
  bottom = top - _captions(tier) - _SIDE
  for column, panel in enumerate(tier):
    if not panel:
      continue
    x = left + column * (_SIDE + _GAP)
    above = bottom + _SIDE + _LINE / 2
    _write(figure, x + _SIDE / 2, above, panel.title, va="bottom")
    axes = _axes(figure, x, bottom, _SIDE)
    points = _cell_points(panel, task)
    task.draw(axes, panel.question, panel.answer, panel.label)
    axes.add_patch(
      Rectangle(
        (0, 0), 1, 1, transform=axes.transAxes, fill=False, ec=_EDGE, lw=1,
        clip_on=False,
      )
    )  # fmt: skip
    if panel.guess:
      if panel.guess.before is not None:
        _frame_changes(axes, panel.guess, task, points)
      below = bottom - _bars(tier)
      _draw_bar(_axes(figure, x, below, _BAR), panel.guess.halting)


def _cell_points(panel: _Panel, task: Task) -> float:
  """The side of a cell, in points."""
  side = math.isqrt(task.seq_len)
  if not task.in_place:  # a grid of any size fills its panel
    shown = panel.question if panel.answer is None else panel.answer
    known = shown if panel.label is None else panel.label
    sizes = [scenes_lib.extent(task.rows(grid)) for grid in (shown, known)]
    side = max(1, *sizes[0], *sizes[1])
  return 72 * _SIDE / side


def _axes(figure: Figure, x: float, y: float, height: float) -> Axes:
  """Axes as wide as a panel, placed in inches."""
  across, up = figure.get_size_inches()
  return figure.add_axes((x / across, y / up, _SIDE / across, height / up))


def _write(figure: Figure, x: float, y: float, text: str, **style):
  figure.text(
    x, y, text, transform=figure.dpi_scale_trans, ha="center",
    parse_math=False, **style,
  )  # fmt: skip


def _frame_changes(axes: Axes, guess: Guess, task: Task, points: float):
  """Frames changed cells; a cell has a side of `points`."""
  line = min(points / 7, 2)
  # White edges keep the frame visible on cells of its colour.
  edge = withStroke(linewidth=2 * line, foreground="white")
  side = math.isqrt(task.seq_len)
  shown = np.ones((side, side), bool)
  if not task.in_place:  # ignores the canvas outside of the grid
    height, width = scenes_lib.extent(task.rows(guess.answer))
    shown[height:], shown[:, width:] = False, False
  changed = (guess.answer != guess.before).reshape(side, side) & shown
  for row, column in np.argwhere(changed).tolist():
    axes.add_patch(
      Rectangle(
        (column + 0.1, row + 0.1), 0.8, 0.8, fill=False,
        ec=_CHANGED, lw=line, path_effects=[edge], zorder=3,
      )
    )  # fmt: skip


def _draw_bar(axes: Axes, halting: float):
  """Draws the halting probability; the model would halt above one half."""
  axes.barh(0, halting, 1, color=_HALTS if halting > 0.5 else _GOES_ON)
  axes.axvline(0.5, color="black", lw=0.8, ls=":")
  axes.text(
    0.75, 0, f"halting {halting:.1%}", size="small",
    ha="center", va="center_baseline",
  )  # fmt: skip
  axes.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])


def save_png(figure: Figure, path: pathlib.Path):
  """Writes a picture atomically, with its folders."""
  picture = io.BytesIO()
  FigureCanvasAgg(figure).print_png(picture)
  files.write({path: picture.getvalue()})


def save_gif(frames: Iterable[Figure], path: pathlib.Path, seconds: float):
  """Writes a film that repeats, atomically, with its folders.

  Frames have one size and are shown for some seconds each, the last for four
  times as long.
  """
  from PIL import Image  # slow to import

  # Quantized together; different palettes would flicker.
  pixels = [_pixels(frame) for frame in frames]
  sheet = Image.fromarray(np.concatenate(pixels))
  sheet = sheet.quantize(dither=Image.Dither.NONE)
  height = len(pixels[0])
  first, *others = (
    sheet.crop((0, top, sheet.width, top + height))
    for top in range(0, sheet.height, height)
  )
  milliseconds = [round(1000 * seconds)] * len(pixels)
  milliseconds[-1] *= 4
  film = io.BytesIO()
  first.save(
    film, format="gif", save_all=True, append_images=others,
    duration=milliseconds, loop=0,
  )  # fmt: skip
  files.write({path: film.getvalue()})


def _pixels(figure: Figure) -> np.ndarray:
  """Renders a picture: uint8 [height, width, 3]."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]
