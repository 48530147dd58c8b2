"""Pictures of calibration and of solving show the numbers they are given."""

import types

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import special

from trm_jax.draw import curves as plots
from trm_jax.errors import UserError
from trm_jax.solve import calibration


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
    np.testing.assert_array_equal(line[:, 1], found.share)
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


def test_every_halting_rule_is_drawn(figures, tmp_path):
  """However many there are, each with its own look."""
  kinds = [f"rule{k}" for k in range(9)]
  found = [
    {
      "rule": types.SimpleNamespace(halt=(kind,)),
      "exact_accuracy": 0.5,
      "exact_accuracy_se": 0.1,
      "mean_steps": steps,
    }
    for kind in ("fixed", *kinds)
    for steps in ((16,) if kind == "fixed" else (2, 4))
  ]
  plots.halting_rules(found, tmp_path / "a.png", "the model")
  (axes,) = figures[0].axes
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert texts == ["fixed, 16 steps", *kinds]
  looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
  assert len(looks) == 10


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
