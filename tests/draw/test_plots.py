"""Pictures of calibration and of solving show the numbers they are given."""

import pathlib

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import special

from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.draw import curves as plots
from trm_jax.errors import UserError
from trm_jax.solve import calibration, rules, score
from trm_jax.solve.solver import Rollouts


@pytest.fixture
def figures(monkeypatch):
  """Figures as they would be written."""
  drawn = []
  monkeypatch.setattr(
    plots, "save_png", lambda figure, path: drawn.append(figure)
  )
  return drawn


@pytest.fixture(scope="module")
def judged():
  rng = np.random.default_rng(0)
  q = rng.normal(1, 6, 500)
  right = rng.random(500) < special.expit(q / 5)
  return calibration.evaluate_fit(q, right, "isotonic", seed=0)


def records():
  """Two depths, breadths and selections, in no order."""
  return [
    {
      "depth": depth,
      "breadth": breadth,
      "select": select,
      "halt": "q > 0",
      "exact_accuracy": 0.1 * depth + 0.05 * breadth,
      "exact_accuracy_se": 0.01,
      "oracle_accuracy": 0.1 * depth + 0.1 * breadth,
      "mean_steps": 0.5 * depth,
      "flops_per_puzzle": 1e6 * depth * breadth,
    }
    for depth in (4, 1)
    for breadth in (4, 1)
    for select in ("q", "vote")
  ]


def curves(axes, style):
  """The lines of a style: colour -> [(x, y)]."""
  return {
    to_rgb(line.get_color()): np.transpose(line.get_data()).tolist()
    for line in axes.get_lines()
    if line.get_linestyle() == style
  }


def test_reliability_shows_bins_counts_and_errors(figures, judged, tmp_path):
  before, after = judged
  plots.reliability(before, after, tmp_path / "a.png", "the model")
  (figure,) = figures
  shares, counts = figure.axes
  texts = [text.get_text() for text in shares.get_legend().get_texts()]
  assert f"{before.error:.1%}" in " ".join(texts[1:])
  assert f"{after.error:.1%}" in texts[-1]
  heights = [bar.get_height() for bar in counts.patches]
  assert heights == [*before.count, *after.count]
  diagonal, *drawn = [
    np.transpose(line.get_data())
    for line in shares.get_lines()
    if line.get_linestyle() != "None"
  ]
  assert (diagonal[:, 0] == diagonal[:, 1]).all()
  for found, line in zip(judged, drawn, strict=True):
    np.testing.assert_array_equal(line[:, 0], found.confidence)
    np.testing.assert_array_equal(line[:, 1], found.fraction)
  assert figure.get_suptitle() == "the model"


def test_a_grid_has_a_line_for_each_breadth(figures, tmp_path):
  plots.solve_grid(records(), tmp_path / "a.png", "the model")
  (figure,) = figures
  assert len(figure.axes) == 4  # a row for each way to select
  left, right = figure.axes[:2]
  found, oracle = curves(left, "-"), curves(left, "--")
  np.testing.assert_allclose(
    sorted(found.values()),
    [[[1, 0.15], [4, 0.45]], [[1, 0.3], [4, 0.6]]],
  )
  # One rollout is its own best.
  ((colour, best),) = oracle.items()
  np.testing.assert_allclose(best, [[1, 0.5], [4, 0.8]])
  np.testing.assert_allclose(found[colour], [[1, 0.3], [4, 0.6]])
  np.testing.assert_allclose(
    curves(right, "-")[colour], [[4e6, 0.3], [16e6, 0.6]]
  )
  assert "select q; halting: q > 0" in left.get_ylabel()
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == [
    "breadth 1", "breadth 4", "any rollout right",
  ]  # fmt: skip


def test_files_are_pictures_and_folders_are_made(judged, tmp_path):
  plots.reliability(*judged, tmp_path / "new" / "a.png", "a")
  plots.solve_grid(records()[:1], tmp_path / "new" / "b.png", "b")
  for name in ("a", "b"):
    with Image.open(tmp_path / "new" / f"{name}.png") as image:
      assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_refusals(judged, tmp_path):
  with pytest.raises(UserError, match="nothing to plot"):
    plots.solve_grid([], tmp_path / "a.png", "")
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="cannot write"):
    plots.reliability(*judged, tmp_path / "file" / "a.png", "")


def test_a_new_halting_rule_is_replayed_and_drawn(figures, monkeypatch):
  """One record more is a rule of the config, of the replay and of the plot."""
  new = rules.HaltingRule(
    name="certain", field="threshold", dtype="float32", never=-np.inf,
    halts=lambda values, limit: values.margin < limit, label="certain {:g}",
    tried=(-1.0,), colour="#CC79A7", marker="D",
  )  # fmt: skip
  every = (*rules.RULES, new)
  for module in (rules, score, plots):
    monkeypatch.setattr(module, "RULES", every)
  monkeypatch.setattr(rules, "HALTS", (*rules.HALTS, "certain"))
  random = np.random.default_rng(0)
  labels = random.integers(1, 5, (6, 16), np.uint8)
  shape = (6, 1, 3)
  found = Rollouts(
    marks=(1, 2, 3),
    answers=random.integers(1, 5, (*shape, 16), np.uint8),
    q_halt=random.normal(size=shape).astype(np.float32),
    residual=random.random(shape).astype(np.float32),
    steps=np.broadcast_to(np.arange(1, 4, dtype=np.int32), shape),
    halted=np.zeros((6, 1), bool),
    spent=18, passes=18, flops_per_step=1.0, seconds=1.0,
  )  # fmt: skip
  replayed = score.replay(found, labels, labels, sudoku_task(4), 3)
  kinds = {record["rule"].halt for record in replayed[1:]}
  assert kinds == {(rule.name,) for rule in every}
  plots.halting_rules(replayed, pathlib.Path("unused"), "")
  legend = figures[0].axes[0].get_legend().get_texts()
  assert [text.get_text() for text in legend] == [
    "fixed, 3 steps", *(rule.name for rule in every)
  ]  # fmt: skip


@pytest.mark.draw
def test_names_are_drawn_as_text(tmp_path, monkeypatch):
  """Whatever a notebook has set as its backend."""
  monkeypatch.setenv("MPLBACKEND", "module://there.is.none")
  rows = [{"step": k, "split": "train", "loss": 1 / k} for k in (1, 2)]
  tested = {"exact_accuracy": 0.5, "exact_accuracy_se": 0.1}
  rows.append({"step": 2, "split": "test", "cell_accuracy": 0.5} | tested)
  path = tmp_path / "a.png"
  plots.learning_curves({r"$\frac{": rows, "_hidden": rows}, path)
  plots.solve_grid(records()[:1], tmp_path / "b.png", r"$\frac{")
  for picture in tmp_path.iterdir():
    with Image.open(picture) as image:
      assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_runs_are_named_in_the_legend(figures, tmp_path):
  rows = [{"step": 1, "split": "train", "loss": 1.0}]
  names = [r"runs/$\frac{", "_hidden"]
  plots.learning_curves(dict.fromkeys(names, rows), tmp_path / "a.png")
  legend = figures[0].axes[0].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
  "row",
  [
    {"split": "train", "loss": 1.0},
    {"split": "train", "diverged": True},
    {"split": "test", "seconds": 1.0},
    {"split": "test", "exact_accuracy": 0.5},
    {"split": "test", "pass@1": 0.5, "cell_accuracy": 0.1},
    {"split": "all", "seconds": 3.0},
    {"split": "train/seed0", "loss": 1.0},
  ],
)
def test_what_a_run_did_not_measure_is_left_out(tmp_path, row):
  rows = [{"step": step} | row for step in (2, 4)]
  plots.learning_curves({"run": rows}, tmp_path / "a.png")
  assert (tmp_path / "a.png").exists()
