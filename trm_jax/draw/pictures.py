"""Pictures of puzzles, their answers and what a model makes of them.

How a puzzle is drawn and how wrong cells are marked is its task's affair, see
`Task.draw`; here panels are chosen, captioned, laid out and written.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from trm_jax.data.task import Task
from trm_jax.draw import scenes as scenes_lib
from trm_jax.draw.scenes import Guess, Pair, Scene
from trm_jax.errors import UserError

# In inches, as fonts and marks have sizes in points that suit them.
_SIDE = 2.8  # of a panel
_GAP = 0.3
_LINE = 0.18  # of text
_BAR = 0.2

# Pixels an inch, unless a picture or film would have more than so many in all.
_RESOLUTION = 110
_MOST_PIXELS = 5e7

_EDGE, _CHANGED, _HALTS, _GOES_ON = "#999999", "#CC00CC", "#8FD9BF", "#DDDDDD"


# Choosing panels.


@dataclasses.dataclass(frozen=True, eq=False)
class _Panel:
  """One drawing, as `Task.draw` takes it, and what stands about it."""

  question: np.ndarray
  answer: np.ndarray | None = None
  label: np.ndarray | None = None
  title: str = ""
  guess: Guess | None = None


_Tier = Sequence[_Panel | None]  # side by side; None leaves a place free


def _row(scene: Scene, task: Task, has_answers: bool) -> list[_Tier]:
  """Panels side by side, with room for right answers if any scene has them."""
  tier: list[_Panel | None] = []
  for pair, guess in _guessed(scene):
    tier.append(_Panel(pair.question, title="puzzle"))
    if has_answers:
      tier.append(_answer(pair, "answer"))
    if guess:
      tier.append(_guess(pair, guess, task))
  tier += [_answer(pair, pair.title) for pair in scene.copies]
  return [tier]


def _columns(scene: Scene, task: Task, room: int) -> list[_Tier]:
  """Columns of pairs, with room for so many examples in front."""

  def column(pair):
    return _Panel(pair.question, title=pair.title), _answer(pair, "")

  columns: list[_Tier] = [column(pair) for pair in scene.examples]
  columns += [(None, None)] * (room - len(columns))
  for pair, guess in _guessed(scene):
    columns.append(column(pair))
    if guess:
      columns.append((None, _guess(pair, guess, task)))
  columns += [column(pair) for pair in scene.copies]
  return list(zip(*columns, strict=True))


def _guessed(scene: Scene) -> list[tuple[Pair, Guess | None]]:
  guesses = scene.guesses or [None] * len(scene.asked)
  return list(zip(scene.asked, guesses, strict=True))


def _answer(pair: Pair, title: str) -> _Panel | None:
  if not np.any(pair.label):
    return None
  return _Panel(pair.question, pair.label, title=title)


def _guess(pair: Pair, guess: Guess, task: Task) -> _Panel:
  told = scenes_lib.verdict(pair, guess, task)
  return _Panel(
    pair.question,
    guess.answer,
    # Another solution than the label has no wrong cells, nor has a guess that
    # there is nothing to compare with.
    None if guess.is_solution or not np.any(pair.label) else pair.label,
    title=": ".join(text for text in (guess.title, told) if text),
    guess=guess,
  )


# Laying out.


def panels(
  scenes: Sequence[Scene], task: Task, title: str = "", frames: int = 1
) -> Figure:
  """Draws puzzles below each other.

  Where a task has pairs of grids, as in ARC, these stand in columns, answers
  below questions; otherwise all panels are in a row. Wrong cells of guesses
  are marked, unless the task's rules are content with them.

  Sizes do not depend on what the grids hold or on the words of titles, so
  pictures of the same puzzles can be the frames of a film.

  Args:
    scenes: the puzzles, one or more.
    task: their task.
    title: a line above everything.
    frames: how many frames a film has of which this is one. Long films are of
      a lower resolution.

  Returns:
    The picture.
  """
  room = max(len(scene.examples) for scene in scenes)
  has_answers = any(np.any(p.label) for scene in scenes for p in scene.asked)
  strips = [
    _row(scene, task, has_answers)
    if task.in_place
    else _columns(scene, task, room)
    for scene in scenes
  ]
  left = 2.5 * _LINE if any(scene.name for scene in scenes) else _GAP
  longest = max(len(tier) for tiers in strips for tier in tiers)
  width = left + longest * (_SIDE + _GAP)
  height = _GAP / 2 + 2 * _LINE * bool(title)
  height += sum(_height(tier) for tiers in strips for tier in tiers)
  most = math.sqrt(_MOST_PIXELS / (width * height * frames))
  resolution = min(_RESOLUTION, most)
  figure = Figure(figsize=(width, height), dpi=resolution)
  y = height - _GAP / 2  # from here downwards
  if title:
    y -= 2 * _LINE
    _write(figure, width / 2, y + _LINE, title, size="large", va="center")
  for scene, tiers in zip(scenes, strips, strict=True):
    if scene is not scenes[0]:
      _rule(figure, [left, width - _GAP], y + _GAP / 2)
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
  """Inches of the titles above panels."""
  titles = [panel.title for panel in tier if panel and panel.title]
  return max((_LINE * (title.count("\n") + 1.5) for title in titles), default=0)


def _bars(tier: _Tier) -> float:
  """Inches of the bars below panels, and of the gap above them."""
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
    _draw_edge(axes)
    if panel.guess:
      if panel.guess.before is not None:
        _frame_changes(axes, panel.guess, task, points)
      below = bottom - _bars(tier)
      _draw_bar(_axes(figure, x, below, _BAR), panel.guess.halting)


def _cell_points(panel: _Panel, task: Task) -> float:
  """How large cells are, in points."""
  side = math.isqrt(task.seq_len)
  if not task.in_place:  # grids fill their panels, however small they are
    shown = panel.question if panel.answer is None else panel.answer
    known = shown if panel.label is None else panel.label
    side = max(
      *scenes_lib.extent(task.rows(shown)),
      *scenes_lib.extent(task.rows(known)),
      1,
    )
  return 72 * _SIDE / side


def _axes(figure: Figure, x: float, y: float, height: float) -> Axes:
  """Axes as wide as a panel, placed in inches."""
  across, up = figure.get_size_inches()
  return figure.add_axes((x / across, y / up, _SIDE / across, height / up))


def _write(figure: Figure, x: float, y: float, text: str, **style):
  figure.text(
    x, y, text, transform=figure.dpi_scale_trans, ha="center", **style
  )


def _rule(figure: Figure, x: Sequence[float], y: float):
  line = Line2D(x, [y, y], transform=figure.dpi_scale_trans, color=_EDGE, lw=1)
  figure.add_artist(line)


def _draw_edge(axes: Axes):
  (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
  axes.add_patch(
    Rectangle(
      (left, top), right - left, bottom - top, fill=False, ec=_EDGE, lw=1,
      clip_on=False,
    )
  )  # fmt: skip


def _frame_changes(axes: Axes, guess: Guess, task: Task, points: float):
  """Frames cells within their edges; a cell has a side of `points`."""
  line = min(points / 7, 2)
  # An edge keeps the frame visible on cells of its colour.
  edge = withStroke(linewidth=2 * line, foreground="white")
  side = math.isqrt(task.seq_len)
  shown = np.ones((side, side), bool)
  if not task.in_place:  # what is beside the grid is not shown
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
  """Draws a probability; from one half on the model would halt."""
  axes.barh(0, halting, 1, color=_HALTS if halting > 0.5 else _GOES_ON)
  axes.axvline(0.5, color="black", lw=0.8, ls=":")
  axes.text(
    0.75, 0, f"halting {halting:.1%}", size="small",
    ha="center", va="center_baseline",
  )  # fmt: skip
  axes.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])


# Writing.


def save_png(figure: Figure, path: pathlib.Path):
  """Writes a picture; folders are made as needed.

  Args:
    figure: the picture.
    path: the file.

  Raises:
    UserError: it cannot be written.
  """
  _replace(path, lambda file: figure.savefig(file, format="png"))


def save_gif(frames: Iterable[Figure], path: pathlib.Path, seconds: float):
  """Writes a film that runs for ever; folders are made as needed.

  Args:
    frames: pictures of one size, one or more.
    path: the file.
    seconds: how long each is shown; the last is shown four times as long.

  Raises:
    UserError: it cannot be written.
  """
  from PIL import Image  # slow to import, and only films need it

  # Quantized together: with colours of its own each frame would flicker.
  painted = [_pixels(frame) for frame in frames]
  film = Image.fromarray(np.concatenate(painted))
  film = film.quantize(dither=Image.Dither.NONE)
  height = len(painted[0])
  first, *others = (
    film.crop((0, top, film.width, top + height))
    for top in range(0, film.height, height)
  )
  milliseconds = [round(1000 * seconds)] * len(painted)
  milliseconds[-1] *= 4
  _replace(
    path,
    lambda file: first.save(
      file, format="gif", save_all=True, append_images=others,
      duration=milliseconds, loop=0,
    ),
  )  # fmt: skip


def _pixels(figure: Figure) -> np.ndarray:
  """Paints a picture: uint8 [height, width, 3]."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def _replace(path: pathlib.Path, save: Callable[[pathlib.Path], None]):
  """Writes a file so that a reader sees the old one or the new, never half.

  Raises:
    UserError: it cannot be written.
  """
  unfinished = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(unfinished)
    unfinished.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      unfinished.unlink()
    raise UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error
