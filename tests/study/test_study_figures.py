"""Pictures and the page of a study: whole, honest and safe."""

import base64
import dataclasses
import html.parser
import itertools
import math
import pathlib

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from trm_jax.core.family import FAMILIES
from trm_jax.draw.pictures import save_png
from trm_jax.errors import UserError
from trm_jax.study import figures, page
from trm_jax.study.results import Trial
from trm_jax.study.style import setting_styles

DEPTHS = (1, 2, 4, 8, 16, 32)
PUZZLES = 500

# family -> how right it gets, how many steps that takes, work of a step.
_NATURE = {
  "trm": (0.97, 1.2, 2e7),
  "hrm": (0.88, 1.6, 6e7),
  "transformer": (0.7, 2.5, 1.2e7),
  "feedforward": (0.45, 0.0, 5e7),
  "autoregressive": (0.3, 0.0, 4e8),
}


def a_trial(
  family: str = "trm", seed: int = 0, width: int = 64, most: int = 32, **changes
) -> Trial:
  """A model as it might have come out: wider is better and costs more."""
  rng = np.random.default_rng([seed, width, *family.encode()])
  top, pace, work = _NATURE[family]
  recursive = family not in ("feedforward", "autoregressive")
  work *= (width / 64) ** 2
  top = min(top * (width / 64) ** 0.15 + 0.02 * rng.standard_normal(), 1.0)

  def exact(depth, trained=1.0):
    rise = 1 - 0.8 * math.exp(-depth / pace) if recursive else 1.0
    share = top * rise * (1 - 0.9 * 0.03**trained)
    share += 0.008 * rng.standard_normal()
    return round(min(max(share, 0.0), 1.0) * PUZZLES) / PUZZLES

  def scores(depth, share):
    error = math.sqrt(share * (1 - share) / PUZZLES)
    return {
      "depth": depth,
      "puzzles": PUZZLES,
      "exact_accuracy": share,
      "exact_accuracy_se": error,
      "cell_accuracy": 1 - (1 - share) / 3,
      "cell_accuracy_se": error / 3,
    }

  depths, steps, running = [], 0.0, 1.0
  for depth in range(1, most + 1 if recursive else 2):
    steps += running
    share = exact(depth)
    running *= 0.3 + 0.15 * pace + 0.001 * width if depth < 6 else 0.95
    depths.append(
      scores(depth, share)
      | {
        "q_accuracy": 0.9,
        "halted_exact_accuracy": 0.97 * share,
        "mean_steps": steps,
        "flops_per_puzzle": work * depth,
      }
    )
  evaluated = min(16, len(depths))
  learning = [
    scores(evaluated, exact(evaluated, k / 8))
    | {"step": 500 * k, "training_flops": 3 * work * 64 * 500 * k}
    for k in range(1, 9)
  ]
  trial = Trial(
    setting=f"{width:06x}{sum(family.encode()):06x}",
    seed=seed,
    family=family,
    fields={"width": width, "layers": 2},
    comparable={"data": {"task": "sudoku"}, "eval": {"depth": 16}},
    weights=3 * width**2 * 8,
    steps=4000,
    batch_size=64,
    training_flops=3 * work * 64 * 4000,
    seconds=60.0,
    hardware="two CPU cores",
    diverged_at=None,
    learning=learning,
    depths=depths,
  )
  return dataclasses.replace(trial, **changes)


def diverged(trial: Trial) -> Trial:
  return dataclasses.replace(
    trial, diverged_at=1210, depths=[], learning=trial.learning[:2]
  )


def a_study() -> list[Trial]:
  """Four families, two settings of each, two or three seeds, one diverged."""
  trials = [
    a_trial(family, seed, width)
    for family in ("trm", "transformer", "feedforward", "autoregressive")
    for width in (64, 128)
    for seed in range(3 if family in ("trm", "feedforward") else 2)
  ]
  return [*trials[:-1], diverged(trials[-1])]


@pytest.fixture(scope="module")
def study() -> list[Trial]:
  return a_study()


def measured(family: str, per_step: float, shares: list[float], **changes):
  """A model whose accuracy is known at each depth and evaluation."""
  scores = [
    {
      "depth": k,
      "puzzles": 100,
      "exact_accuracy": share,
      "flops_per_puzzle": k * per_step,
      "halted_exact_accuracy": share,
      "mean_steps": (k + 1) / 2,
    }
    for k, share in enumerate(shares, start=1)
  ]
  learning = [
    score | {"depth": len(shares), "step": k, "training_flops": 1e12 * 4**k}
    for k, score in enumerate(scores)
  ]
  return a_trial(family, **changes, depths=scores, learning=learning)


ONE = [measured("trm", 1e8, [0.5, 0.9])]
SMALL = {
  "one family": [
    measured("hrm", 1e8, [0.01, 0.02], seed=seed, width=width)
    for seed in range(3)
    for width in (64, 128)
  ],
  "no recursion, one seed, never right": [
    measured("feedforward", 3e8, [0.0]),
    measured("autoregressive", 9e8, [0.0]),
  ],
  "all diverged": [diverged(a_trial("trm", seed)) for seed in range(3)],
}


def draw(name: str, trials, path: pathlib.Path) -> Figure:
  """Draws and writes a figure."""
  figure = figures.FIGURES[name](trials, DEPTHS)
  save_png(figure, path)
  return figure


def check_png(path: pathlib.Path):
  with Image.open(path) as image:
    image.load()
    width, height = image.size
    assert image.format == "PNG"
    assert 1000 <= width <= 2400 and 500 <= height <= 2200
    assert np.asarray(image.convert("L")).std() > 5  # something is drawn


def written_boxes(figure: Figure) -> list[tuple[Text, Bbox]]:
  """All text but the numbers of the axes, and where it stands in pixels."""
  renderer = FigureCanvasAgg(figure).get_renderer()
  numbers = {
    number
    for axes in figure.axes
    for axis in (axes.xaxis, axes.yaxis)
    for number in axis.get_ticklabels(which="both")
  }
  return [
    # An annotation's own extent would have its leader in it.
    (text, Text.get_window_extent(text, renderer))
    for text in figure.findobj(Text)
    if text.get_visible() and text.get_text() and text not in numbers
  ]


@pytest.mark.draw
@pytest.mark.parametrize("name", figures.FIGURES)
def test_pictures_are_whole(name, study, tmp_path):
  figure = draw(name, study, tmp_path / "new" / f"{name}.png")
  check_png(tmp_path / "new" / f"{name}.png")
  assert not list(tmp_path.rglob("*.tmp"))
  boxes = written_boxes(figure)
  for text, box in boxes:
    assert figure.bbox.count_contains([box.min, box.max]) == 2, text
  for (one, box), (other, its) in itertools.combinations(boxes, 2):
    assert not box.overlaps(its), (one, other)


@pytest.mark.draw
@pytest.mark.parametrize("case", SMALL)
def test_small_and_failed_studies_are_reported(case, tmp_path):
  trials = SMALL[case]
  drawn = {}
  for name in figures.FIGURES:
    drawn[name] = tmp_path / f"{name}.png"
    draw(name, trials, drawn[name])
    check_png(drawn[name])
  page.write(tmp_path / "report.html", trials, DEPTHS, 0.8, drawn, {})
  text = read(tmp_path / "report.html").text
  for sentence in page.verdict(trials, DEPTHS, 0.8):
    assert sentence in text
  assert ("Nothing can be said: 3 of 3 models diverged." in text) == (
    case == "all diverged"
  )


def test_every_family_is_told_by_colour_by_marker_and_by_line():
  styles = [family.style for family in FAMILIES.values()]
  for name in ("colour", "marker", "line"):
    assert len({getattr(style, name) for style in styles}) == len(FAMILIES)


def test_a_setting_looks_the_same_whatever_stands_beside_it(study):
  found = setting_styles(study)
  only = setting_styles([trial for trial in study if trial.family == "trm"])
  assert only == {setting: found[setting] for setting in only}
  assert len({(style.colour, style.face) for style in found.values()}) == 8


@pytest.mark.draw
def test_legends_name_every_setting(study):
  labels = {style.label for style in setting_styles(study).values()}
  for name, figure in figures.FIGURES.items():
    texts = figure(study, DEPTHS).legends[0].get_texts()
    named = labels & {text.get_text() for text in texts}
    # Half of the settings recur, and can halt.
    assert len(named) == (4 if name == "halting" else 8), name


@pytest.mark.draw
def test_formulas_and_endless_names_are_drawn_as_text(tmp_path):
  trials = [
    measured("trm", 1e8, [0.5, 0.9], width=width) for width in (64, 128)
  ]
  trials = [
    dataclasses.replace(trial, fields={"a": r"$\frac{" + "x " * 99 + str(k)})
    for k, trial in enumerate(trials)
  ]
  for name in ("depth", "pareto"):
    draw(name, trials, tmp_path / f"{name}.png")
    check_png(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
  ("count", "words"),
  [
    (0, "0 FLOP"),
    (950, "950 FLOP"),
    (66_200_000, "66.2 MFLOP"),
    (999_600, "1 MFLOP"),
    (3.28e13, "32.8 TFLOP"),
    (2.5e22, "2.5e+04 EFLOP"),
  ],
)
def test_flops_in_words(count, words):
  assert figures.as_flops(count) == words


# The verdict.


def test_the_verdict_states_what_each_family_needs():
  trials = [
    measured("trm", 1e8, [0.5, 0.9]),
    measured("feedforward", 5e8, [0.75]),
    measured("autoregressive", 1e9, [0.6]),
    diverged(a_trial("hrm")),
  ]
  assert page.verdict(trials, DEPTHS, 0.7) == [
    # Half way in log(FLOPs) between 100 and 200 MFLOP.
    "To get 70% of the puzzles exactly right, TRM needs 141 MFLOP a puzzle; "
    "the feed-forward stack 3.54 times as much, at most 500 MFLOP.",
    "Not enough for that, at any depth tried: the decoder (at best 60.0%, for "
    "1 GFLOP).",
    "To come that far, the feed-forward stack needs at most 1 TFLOP of "
    "training; TRM 2 times as much, 2 TFLOP.",
    "The best of all is TRM at depth 2: 90.0% (95% interval 82.6% to 94.5%) "
    "right, for 200 MFLOP a puzzle.",
    "The same weights get 50.0% right at depth 1 and 90.0% at depth 2.",
    "1 of 4 models diverged, which no other number here counts in.",
  ]


def test_the_verdict_says_where_nobody_gets_far_enough():
  trials = [measured("trm", 1e8, [0.5, 0.9]), measured("hrm", 1e8, [0.3, 0.2])]
  assert page.verdict(trials, DEPTHS, 0.95)[:2] == [
    "No family gets 95% of the puzzles exactly right: TRM (at best 90.0%, for "
    "200 MFLOP) and HRM (at best 30.0%, for 100 MFLOP).",
    "No family gets 95% of the puzzles exactly right in the evaluations "
    "during training.",
  ]


def test_without_evaluations_in_training_nothing_is_said_of_it():
  trial = dataclasses.replace(measured("trm", 1e8, [0.5, 0.9]), learning=[])
  assert not [s for s in page.verdict([trial], DEPTHS, 0.7) if "train" in s]


# The page.


class Reader(html.parser.HTMLParser):
  """Text, tags and addresses of a page."""

  def __init__(self):
    super().__init__()
    self.tags: set[str] = set()
    self.addresses: list[str] = []
    self.rows: list[list[str]] = []
    self.text = ""
    self.style = ""
    self._open: list[str] = []

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self._open.append(tag)
    for name, value in attrs:
      assert not name.startswith("on"), "a script in an attribute"
      if name in ("src", "href", "srcset", "data", "action"):
        self.addresses.append(value or "")
    if tag == "tr":
      self.rows.append([])
    elif tag in ("td", "th"):
      self.rows[-1].append("")

  def handle_endtag(self, tag):
    while self._open and self._open.pop() != tag:
      pass  # img and meta have no end

  def handle_data(self, data):
    if "style" in self._open:
      self.style += data
    else:
      self.text += data
      if {"td", "th"} & set(self._open):
        self.rows[-1][-1] += data


def read(path: pathlib.Path) -> Reader:
  reader = Reader()
  reader.feed(path.read_text())
  return reader


@pytest.fixture
def pictures(tmp_path) -> dict[str, pathlib.Path]:
  """Files that stand for pictures, which a page does not look into."""
  paths = {}
  for k, name in enumerate(figures.FIGURES):
    paths[name] = tmp_path / f"{name}.png"
    paths[name].write_bytes(bytes([137, 80, 78, 71, k]))
  return paths


def test_a_page_has_all_within_it(pictures, tmp_path):
  trials = ONE
  facts = {"source": "https://example.org", "hardware": "two CPU cores"}
  page.write(tmp_path / "report.html", trials, DEPTHS, 0.8, pictures, facts)
  reader = read(tmp_path / "report.html")
  prefix = "data:image/png;base64,"
  assert [
    base64.b64decode(address.removeprefix(prefix))
    for address in reader.addresses
  ] == [path.read_bytes() for path in pictures.values()]
  assert not {"script", "link", "iframe", "object", "base"} & reader.tags
  assert "url(" not in reader.style and "@import" not in reader.style
  assert "two CPU cores" in reader.text
  assert not list(tmp_path.glob("*.tmp"))


def test_tables_hold_each_seed_and_what_diverged(pictures, tmp_path):
  trials = [
    measured("trm", 1e8, [0.5, 0.9], seed=0),
    measured("trm", 1e8, [0.6, 0.8], seed=7),
    measured("autoregressive", 1e9, [0.25]),
    diverged(a_trial("hrm", seed=5)),
  ]
  page.write(tmp_path / "report.html", trials, (2, 1), 0.8, pictures, {})
  rows = read(tmp_path / "report.html").rows
  assert ["seed 0", "", "", "", "", "50.0%", "90.0%"] in rows
  assert ["seed 7", "", "", "", "", "60.0%", "80.0%"] in rows
  assert [row[-2:] for row in rows if row[0] == "decoder"][1][1] == ""
  assert any(row[:3] == ["HRM", "5", "1,210"] for row in rows)
  best = {row[0]: row for row in rows[1:5]}
  assert best["TRM"][3] == "178 MFLOP"
  assert best["decoder"][3] == "never reached within 1 GFLOP"
  assert best["HRM"][1] == "diverged"


def test_names_and_facts_are_never_markup(pictures, tmp_path):
  hostile = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
  trials = [
    dataclasses.replace(
      measured("trm", 1e8, [0.5, 0.9], width=width),
      fields={hostile: width}, hardware=hostile,
    )
    for width in (64, 128)
  ]  # fmt: skip
  drawn = {hostile: pictures["depth"]}
  path = tmp_path / "report.html"
  page.write(path, trials, DEPTHS, 0.8, drawn, {hostile: hostile})
  reader = read(path)
  assert len(reader.addresses) == 1
  assert "script" not in reader.tags
  assert reader.text.count("<script>") >= 5


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_page_says_what_its_intervals_are(seeds, pictures, tmp_path):
  trials = [
    measured("trm", 1e8, [0.5, 0.9], seed=seed) for seed in range(seeds)
  ]
  page.write(tmp_path / "report.html", trials, DEPTHS, 0.8, pictures, {})
  text = " ".join(read(tmp_path / "report.html").text.split())
  assert ("Student's t" in text) == (seeds >= 3)
  assert "Wilson" in text
  assert ("nothing of what other seeds" in text) == (seeds < 3)


def test_what_cannot_be_read_or_written_is_told(pictures, tmp_path):
  (tmp_path / "file").write_text("")
  inside = tmp_path / "file" / "report"
  trials = ONE
  with pytest.raises(UserError, match="cannot write"):
    page.write(inside, trials, DEPTHS, 0.8, pictures, {})
  kept = tmp_path / "report.html"
  kept.write_text("old")
  gone = {"depth": tmp_path / "gone.png"}
  with pytest.raises(UserError, match=r"cannot read .*gone\.png"):
    page.write(kept, trials, DEPTHS, 0.8, gone, {})
  assert kept.read_text() == "old"
