"""The report of a study: one HTML file with its figures inside.

It loads no scripts or fonts. Its text is in `report.html.jinja`.
"""

import base64
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jinja2

from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.run import files
from trm_jax.study import figures, statistics
from trm_jax.study.figures import as_flops
from trm_jax.study.results import Trial, labels
from trm_jax.study.statistics import Point, families

_percent = "{:.1%}".format


@dataclasses.dataclass(frozen=True)
class _Reach:
  """The FLOPs with which a family reaches the target."""

  flops: float | None  # None if it does not reach it
  words: str  # the same in words
  best: Point  # the family's best point


def write(
  path: pathlib.Path,
  trials: Sequence[Trial],
  depths: Iterable[int],
  target: float,
  pictures: Mapping[str, pathlib.Path],
  facts: Mapping[str, str],
):
  """Writes the report.

  Args:
    path: the HTML file, written atomically.
    trials: of the study, with those that diverged.
    depths: test depths.
    target: the exact accuracy in the verdict, in [0, 1].
    pictures: name in `figures.FIGURES` -> its PNG, in the order of the page.
    facts: heading -> text, such as the hardware.

  Raises:
    UserError: if a picture cannot be read or the file cannot be written.
  """
  depths = sorted(set(depths))
  inference = statistics.inference_points(trials, depths)
  training = statistics.training_points(trials)
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {
    "percent": _percent, "flops": as_flops, "count": "{:,}".format,
    "score": _score, "place": place,
  }  # fmt: skip
  template = importlib.resources.files("trm_jax.study") / "report.html.jinja"
  html = environment.from_string(template.read_text("utf-8")).render(
    verdict=verdict(trials, depths, target),
    target=f"{100 * target:g}%",
    families=[
      (FAMILIES[name], *(
        _reach(points, name, target) if name in families(points) else None
        for points in (inference, training)
      ))
      for name in families(trials)
    ],
    seeds={point.seeds for point in [*inference, *training]},
    pictures={name: _encoded(file) for name, file in pictures.items()},
    fits={
      "inference FLOPs per puzzle": figures.fits(inference),
      "training FLOPs": figures.fits(training),
    },
    titles={name: family.title for name, family in FAMILIES.items()},
    columns=sorted({point.depth for point in inference}),
    settings=_settings(trials, inference),
    diverged=[trial for trial in trials if trial.diverged_at is not None],
    labels=labels(trials),
    facts=facts,
  )  # fmt: skip
  files.write({path: html.encode()})


def verdict(
  trials: Sequence[Trial], depths: Iterable[int], target: float
) -> list[str]:
  """The results of the study in sentences; `target` is in [0, 1]."""
  num_diverged = sum(trial.diverged_at is not None for trial in trials)
  diverged = f"{num_diverged} of {len(trials)} models diverged"
  inference = statistics.inference_points(trials, depths)
  if not inference:
    missing = "no model was evaluated at these depths"
    reason = diverged if num_diverged else missing
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
  training = statistics.training_points(trials)
  if training:
    needs = _needs(training, target, "of training")
    sentences.append(
      f"To come that far, {needs}."
      if needs
      else f"No family gets {goal} in the evaluations during training."
    )
  sentences.append(
    f"The best of all is {place(best)}: {_percent(best.mean)} (95% "
    f"interval {_percent(best.low)} to {_percent(best.high)}) right, for "
    f"{as_flops(best.x)} a puzzle."
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
  if num_diverged:
    sentences.append(f"{diverged}, which no other number here counts in.")
  return sentences


def place(point: Point) -> str:
  """The setting and depth of a point as text."""
  return f"{point.label} at depth {point.depth}"


def _needs(points: Sequence[Point], target: float, of_what: str) -> str:
  """The FLOPs of each family that reaches the target, the cheapest first."""
  reached = [
    (reach.flops, family, reach.words)
    for family in families(points)
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
    for family in families(points)
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
  rows = statistics.by_setting(p for p in points if p.family == family)
  flops = statistics.flops_to_reach(points, family, target)
  every = [point for row in rows.values() for point in row]
  if flops is None:
    most = max(point.x for point in every)
    words = f"never reached within {as_flops(most)}"
  else:
    # The cheapest measured point reaches the target: less may be enough.
    firsts = [row[0] for row in rows.values()]
    is_upper_bound = any(p.x == flops and p.mean > target for p in firsts)
    words = f"{'at most ' if is_upper_bound else ''}{as_flops(flops)}"
  best = max(every, key=lambda point: (point.mean, -point.x))
  return _Reach(flops, words, best)


def _score(point: Point | None) -> str:
  """A mean, and its interval on a second line."""
  if point is None:
    return ""
  ends = f"{100 * point.low:.1f} to {100 * point.high:.1f}"
  return f"{_percent(point.mean)}\n{ends}"


def _settings(
  trials: Sequence[Trial], points: Sequence[Point]
) -> list[tuple[list[Trial], dict[int, Point]]]:
  """The trials of each setting that has points, and its points by depth."""
  return [
    (
      [t for t in trials if t.setting == setting and t.diverged_at is None],
      {point.depth: point for point in row},
    )
    for setting in labels(trials)
    if (row := [point for point in points if point.setting == setting])
  ]


def _encoded(path: pathlib.Path) -> str:
  try:
    return base64.b64encode(path.read_bytes()).decode()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
