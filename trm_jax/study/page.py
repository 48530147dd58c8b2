"""The report of a study: one HTML file that opens anywhere, offline.

Pictures are inside the file, and it loads nothing: no scripts, no fonts.
"""

import base64
import contextlib
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jinja2

from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.study import figures, statistics
from trm_jax.study.figures import as_flops
from trm_jax.study.power_law import Fit
from trm_jax.study.results import Cell
from trm_jax.study.statistics import Point

# Name of a picture in `figures.PICTURES` -> its title, and how to read it.
_CAPTIONS = {
  "overview": (
    "In short",
    "Accuracy against test depth, against inference FLOPs and against "
    "training FLOPs; each family looks the same in all pictures. Left of "
    "another curve is cheaper, above it is better.",
  ),
  "depth": (
    "Test depth",
    "Each setting at every test depth: thick the mean over its seeds, thin "
    "each seed, shaded the interval. Models without recursion have one depth "
    "only; their horizontal lines are there to compare with.",
  ),
  "inference": (
    "Inference FLOPs",
    "The same scores over what they cost per puzzle, all puzzles at full "
    "depth: markers with bars are means with their intervals, thin lines or "
    "dots the seeds, the thick curve with its band the fit of a family's "
    "best setting.",
  ),
  "training": (
    "Training FLOPs",
    "The evaluations made during training, over the FLOPs spent until then, "
    "at the depth of those evaluations. Markers, bars, thin lines and fits as "
    "in the picture before.",
  ),
  "pareto": (
    "Pareto front",
    "The line joins what nothing cheaper, or as cheap, beats: it gives the "
    "best accuracy that a budget buys. Small and faint is what is beaten.",
  ),
  "equal_flops": (
    "Equal FLOPs",
    "For each budget the best that each family gives within it: the number "
    "above is the test depth of the choice, a bar its interval. Choosing the "
    "best of several flatters a family with many settings a little.",
  ),
  "halting": (
    "Halting",
    "Left: after how many steps puzzles stop if each stops where the halting "
    "head says so; the last step holds those that never did. Right: accuracy "
    "under that rule over the mean steps it takes, allowing 1, 2, 3 ... steps "
    "at most (markers: test depths; shaded: intervals), and thin beside it "
    "the accuracy with as many steps for every puzzle.",
  ),
}
_SHADES = (
  "Of the settings of a family those with more weights have the fuller "
  "markers and thicker lines."
)


@dataclasses.dataclass(frozen=True)
class _Reach:
  """What a family needs for the target.

  Attributes:
    flops: the least; None if it never gets there.
    is_bound: whether that is the least that was measured, so that less might
      do.
    most: the largest compute that was measured.
    best: its best point.
  """

  flops: float | None
  is_bound: bool
  most: float
  best: Point

  @property
  def words(self) -> str:
    """The FLOPs, or that they were not enough."""
    if self.flops is None:
      return f"never reached within {as_flops(self.most)}"
    return f"{'at most ' if self.is_bound else ''}{as_flops(self.flops)}"


def write(
  path: pathlib.Path,
  cells: Sequence[Cell],
  depths: Iterable[int],
  target: float,
  pictures: Mapping[str, pathlib.Path],
  facts: Mapping[str, str],
):
  """Writes the report.

  Args:
    path: the HTML file, written whole or not at all.
    cells: of the study, those that diverged included.
    depths: test depths.
    target: exact accuracy in [0, 1] that the verdict asks for.
    pictures: name in `figures.PICTURES` -> its PNG, in the order of the page.
    facts: what was measured where: heading -> text.

  Raises:
    UserError: if a picture cannot be read or the file not be written.
  """
  depths = sorted(set(depths))
  inference = statistics.inference_points(cells, depths)
  training = statistics.training_points(cells)
  seeds = {point.seeds for point in [*inference, *training]}
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  template = importlib.resources.files("trm_jax.study") / "report.html.jinja"
  html = environment.from_string(template.read_text("utf-8")).render(
    verdict=verdict(cells, depths, target),
    target=f"{100 * target:g}%",
    families=_family_rows(cells, inference, training, target),
    shades=_SHADES,
    intervals=_interval_words(seeds),
    interval=_interval_in_short(seeds),
    pictures=[_picture(*item) for item in pictures.items()],
    fits=[
      ("inference FLOPs per puzzle", _fit_rows(inference)),
      ("training FLOPs", _fit_rows(training)),
    ],
    columns=sorted({point.depth for point in inference}),
    settings=_setting_rows(cells, inference),
    diverged=_diverged_rows(cells),
    facts=facts,
  )
  unfinished = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(html, encoding="utf-8")
    unfinished.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      unfinished.unlink()
    raise UserError(f"cannot write {path}: {error.strerror}") from error


def verdict(
  cells: Sequence[Cell], depths: Iterable[int], target: float
) -> list[str]:
  """What the study says, in plain sentences.

  Args:
    cells: of the study, those that diverged included.
    depths: test depths.
    target: exact accuracy in [0, 1] that is asked for.

  Returns:
    The sentences.
  """
  lost = sum(cell.diverged_at is not None for cell in cells)
  diverged = f"{lost} of {len(cells)} models diverged"
  inference = statistics.inference_points(cells, depths)
  if not inference:
    reason = diverged if lost else "no model was evaluated at these depths"
    return [f"Nothing can be said: {reason}."]
  best = max(inference, key=lambda point: (point.mean, -point.x))
  goal = f"{100 * target:g}% of the puzzles exactly right"
  needs = _needs(inference, target, "a puzzle")
  if needs:
    sentences = [f"To get {goal}, {needs}."]
    failed = _failed(inference, target)
    if failed:
      sentences.append(f"Not enough for that, at any depth tried: {failed}.")
  else:
    sentences = [f"No family gets {goal}: {_failed(inference, target)}."]
  training = statistics.training_points(cells)
  if training:
    needs = _needs(training, target, "of training")
    sentences.append(
      f"To come that far, {needs}."
      if needs
      else f"No family gets {goal} in the evaluations during training."
    )
  sentences.append(
    f"The best of all is {_place(best)}: {_share(best)} right, "
    f"for {as_flops(best.x)} a puzzle."
  )
  curve = sorted(
    (point for point in inference if point.setting == best.setting),
    key=lambda point: point.depth,
  )
  if len(curve) > 1:
    sentences.append(
      f"The same weights get {_percent(curve[0].mean)} right at depth "
      f"{curve[0].depth} and {_percent(curve[-1].mean)} at depth "
      f"{curve[-1].depth}."
    )
  if lost:
    sentences.append(f"{diverged}, which no other number here counts in.")
  return sentences


# Words.


def _needs(points: Sequence[Point], target: float, of_what: str) -> str:
  """The FLOPs of each family that reaches the target, the cheapest first."""
  reached = [
    (reach.flops, family, reach.words)
    for family in _families(points)
    if (reach := _reach(points, family, target)).flops is not None
  ]
  clauses = []
  for flops, family, words in sorted(reached):
    more = flops / min(reached)[0]
    clauses.append(
      f"{FAMILIES[family].phrase} {more:.3g} times as much, {words}"
      if clauses
      else f"{FAMILIES[family].phrase} needs {words} {of_what}"
    )
  return "; ".join(clauses)


def _failed(points: Sequence[Point], target: float) -> str:
  """The best of each family that never reaches the target, best first."""
  failed = [
    (-reach.best.mean, family, reach.best)
    for family in _families(points)
    if (reach := _reach(points, family, target)).flops is None
  ]
  return _and([
    f"{FAMILIES[family].phrase} (at best {_percent(best.mean)}, for "
    f"{as_flops(best.x)})"
    for _, family, best in sorted(failed, key=lambda each: each[:2])
  ])  # fmt: skip


def _and(parts: Sequence[str]) -> str:
  *most, last = [*parts] or [""]
  return f"{', '.join(most)} and {last}" if most else last


def _reach(points: Sequence[Point], family: str, target: float) -> _Reach:
  members = [point for point in points if point.family == family]
  flops = statistics.flops_to_reach(members, family, target)
  cheapest: dict[str, Point] = {}
  for point in sorted(members, key=lambda point: -point.x):
    cheapest[point.setting] = point
  return _Reach(
    flops=flops,
    is_bound=any(p.x == flops and p.mean > target for p in cheapest.values()),
    most=max(point.x for point in members),
    best=max(members, key=lambda point: (point.mean, -point.x)),
  )


def _families(items: Iterable[Point | Cell]) -> list[str]:
  present = {item.family for item in items}
  return [family for family in FAMILIES if family in present]


def _percent(share: float) -> str:
  return f"{share:.1%}"


def _share(point: Point) -> str:
  low, high = _percent(point.low), _percent(point.high)
  return f"{_percent(point.mean)} (95% interval {low} to {high})"


def _place(point: Point) -> str:
  return f"{point.label} at depth {point.depth}"


def _interval_words(seeds: set[int]) -> str:
  """What the intervals say, which depends on how many seeds there are."""
  words = []
  if any(count >= 3 for count in seeds):
    words.append(
      "Where a setting has three seeds or more they are the wider of two: "
      "Student's t over the seeds, and Wilson's over the puzzles of all of "
      "them. They say what other seeds, or other puzzles, would give."
    )
  if any(count < 3 for count in seeds):
    words.append(
      "Where a setting has one or two seeds they are Wilson's over the puzzles "
      "of all its seeds: they say how these very models would do on other "
      "puzzles, and nothing of what other seeds would give."
    )
  return " ".join(["All intervals are of 95% confidence.", *words])


def _interval_in_short(seeds: set[int]) -> str:
  over = []
  if any(count >= 3 for count in seeds):
    over.append(
      "over the seeds (Student's t) or the puzzles (Wilson), whichever is "
      "wider, where there are three seeds or more"
    )
  if any(count < 3 for count in seeds):
    over.append("over the puzzles (Wilson) where there are one or two seeds")
  return f"Intervals: 95%, {', '.join(over)}." if over else ""


# Tables. Cells are text, fine print after a newline.


def _family_rows(
  cells: Sequence[Cell], inference: Sequence[Point],
  training: Sequence[Point], target: float,
) -> list[tuple[str, ...]]:  # fmt: skip
  rows = []
  for family in _families(cells):
    name = FAMILIES[family].title
    if family not in _families(inference):
      rows.append((name, "diverged", "", "", "", ""))
      continue
    reach = _reach(inference, family, target)
    trained = "not measured"
    if family in _families(training):
      trained = _reach(training, family, target).words
    best = reach.best
    rows.append(
      (name, _score(best), f"{_place(best)}\n{as_flops(best.x)} per puzzle",
       reach.words, trained, f"{best.weights:,}")
    )  # fmt: skip
  return rows


def _fit_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
  """A fit in numbers and words; alone the reason where there is none."""
  rows = []
  for family, fit in figures.fits(points).items():
    if not isinstance(fit, Fit):
      rows.append((fit[:1].upper() + fit[1:],))
      continue
    rows.append(
      (FAMILIES[family].title, _percent(fit.top), _percent(fit.drop),
       as_flops(fit.scale), f"{fit.exponent:.3g}", str(fit.points),
       fit.words[:1].upper() + fit.words[1:])
    )  # fmt: skip
  return rows


def _setting_rows(
  cells: Sequence[Cell], points: Sequence[Point]
) -> list[dict[str, object]]:
  """Each setting with its mean, and then each of its seeds.

  Returns:
    Rows with `head`, `is_seed`, and `values`: what is known of the model, and
    its accuracy at each depth of the study.
  """
  columns = sorted({point.depth for point in points})
  labels = statistics.labels(cells)
  rows = []
  for setting, label in labels.items():
    seeds = [c for c in cells if c.setting == setting and c.diverged_at is None]
    by_depth = {p.depth: p for p in points if p.setting == setting}
    if not by_depth:
      continue
    first = seeds[0]
    known = [
      f"{first.weights:,}", f"{first.steps:,}", as_flops(first.training_flops),
      as_flops(first.depths[0]["flops_per_puzzle"]),
    ]  # fmt: skip
    scores = [_score(by_depth.get(depth)) for depth in columns]
    rows.append(dict(head=label, is_seed=False, values=known + scores))
    for k, cell in enumerate(seeds):
      scores = [
        _percent(by_depth[depth].values[k]) if depth in by_depth else ""
        for depth in columns
      ]
      blank = [""] * len(known)
      head = f"seed {cell.seed}"
      rows.append(dict(head=head, is_seed=True, values=blank + scores))
  return rows


def _score(point: Point | None) -> str:
  if point is None:
    return ""
  low, high = f"{100 * point.low:.1f}", f"{100 * point.high:.1f}"
  return f"{_percent(point.mean)}\n{low} to {high}"


def _diverged_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
  labels = statistics.labels(cells)
  return [
    (labels[cell.setting], str(cell.seed), f"{cell.diverged_at:,}",
     f"{cell.steps:,}", as_flops(cell.training_flops))
    for cell in cells
    if cell.diverged_at is not None
  ]  # fmt: skip


def _picture(name: str, path: pathlib.Path) -> dict[str, str]:
  try:
    data = base64.b64encode(path.read_bytes()).decode()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  title, caption = _CAPTIONS.get(name, (name, ""))
  return dict(title=title, caption=caption, data=data)
