import functools
import json
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from matplotlib import colors, figure

from trm_jax.data.arc import grids
from trm_jax.data.arc import names as names_lib
from trm_jax.data.arc import symmetry as symmetry_lib
from trm_jax.data.arc.task import arc_task
from trm_jax.errors import UserError

DATA = pathlib.Path(__file__).parent.parent / "recorded" / "arc"
SIZE = 7

# By number, in numpy's words.
SQUARE = (
  lambda grid: grid,
  lambda grid: np.rot90(grid, 1),
  lambda grid: np.rot90(grid, 2),
  lambda grid: np.rot90(grid, 3),
  np.fliplr,
  np.flipud,
  np.transpose,
  lambda grid: np.fliplr(np.rot90(grid, 1)),
)

transform = jax.jit(symmetry_lib.transform)
undo = jax.jit(symmetry_lib.undo)
translate = jax.jit(
  jax.vmap(symmetry_lib.TRANSLATION.augment, in_axes=(0, None, None))
)


@st.composite
def some_grid(draw, size=SIZE):
  height, width = draw(st.integers(1, size)), draw(st.integers(1, size))
  seed = draw(st.integers(0, 2**32 - 1))
  colours = draw(st.integers(1, 10))  # few colours give grids with symmetries
  rng = np.random.default_rng(seed)
  return rng.integers(0, colours, (height, width)).astype(np.uint8)


@st.composite
def some_symmetry(draw):
  colours = draw(st.permutations(range(10)))
  return np.array([draw(st.integers(0, 7)), *colours], np.uint8)


@st.composite
def some_tokens(draw, size=SIZE):
  """Mostly colours, so that rectangles of many shapes appear."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  tokens = rng.integers(2, 12, size * size)
  others = rng.choice([-(2**31), -1, 0, 1, 12, 255, 2**31 - 1], size * size)
  share = draw(st.sampled_from([0, 0.02, 0.05, 0.1, 0.3, 1]))
  return np.where(rng.random(size * size) < share, others, tokens).astype(int)


def largest_rectangle(tokens, size):
  """All rectangles, one by one: the largest, then the one with fewer rows."""
  canvas = tokens.reshape(size, size)
  best = (0, 0)
  for height in range(1, size + 1):
    for width in range(1, size + 1):
      part = canvas[:height, :width]
      fits = ((part >= 2) & (part <= 11)).all()
      if fits and height * width > best[0] * best[1]:
        best = (height, width)
  return canvas[: best[0], : best[1]] - 2


def test_a_grid_on_a_canvas():
  grid = np.array([[0, 9, 3], [1, 2, 0]], np.uint8)
  tokens = grids.encode(grid, 5, 1, 0)
  assert tokens.dtype == np.uint8
  assert tokens.reshape(5, 5).tolist() == [
    [0, 0, 0, 0, 0],
    [2, 11, 5, 1, 0],
    [3, 4, 2, 1, 0],
    [1, 1, 1, 0, 0],
    [0, 0, 0, 0, 0],
  ]
  at_the_end = grids.encode(grid, 5, 3, 2).reshape(5, 5)
  assert (at_the_end == 1).sum() == 0
  assert grids.encode(np.zeros((30, 30), np.uint8)).tolist() == [2] * 900


@pytest.mark.parametrize(("row", "column"), [(0, 4), (5, 0)])
def test_a_grid_must_fit(row, column):
  with pytest.raises(UserError, match="does not fit on a canvas of 6x6"):
    grids.encode(np.zeros((2, 3), np.uint8), 6, row, column)


@hypothesis.settings(deadline=None)
@hypothesis.given(grid=some_grid(30))
def test_decode_undoes_encode(grid):
  decoded = grids.decode(grids.encode(grid))
  assert decoded.dtype == np.uint8
  assert decoded.shape == grid.shape
  assert (decoded == grid).all()


@hypothesis.settings(deadline=None)
@hypothesis.given(tokens=some_tokens())
def test_decode_finds_the_largest_rectangle(tokens):
  expected = largest_rectangle(tokens, SIZE)
  decoded = grids.decode(tokens)
  assert decoded.shape == expected.shape
  assert (decoded == expected).all()


def test_of_equally_large_rectangles_the_one_with_fewer_rows():
  canvas = np.zeros((4, 4), int)
  canvas[0] = 2
  canvas[:, 0] = 3
  assert grids.decode(canvas.reshape(-1)).shape == (1, 4)
  canvas[:2, :2] = 4
  assert grids.decode(canvas.reshape(-1)).shape == (1, 4)
  canvas[0, 3] = 1
  assert grids.decode(canvas.reshape(-1)).shape == (2, 2)


@hypothesis.settings(deadline=None)
@hypothesis.given(tokens=some_tokens(), symmetry=some_symmetry())
def test_transform_does_as_numpy_to_any_tokens(tokens, symmetry):
  grid = symmetry[1:][SQUARE[symmetry[0]](largest_rectangle(tokens, SIZE))]
  image = transform(symmetry, tokens.astype(np.int32))
  assert image.dtype == jnp.int32
  assert np.asarray(image).tolist() == grids.encode(grid, SIZE).tolist()


@hypothesis.settings(deadline=None)
@hypothesis.given(grid=some_grid(), symmetry=some_symmetry())
def test_undo_undoes_transform(grid, symmetry):
  tokens = grids.encode(grid, SIZE)
  image = transform(symmetry, tokens)
  assert image.dtype == jnp.uint8
  assert np.asarray(undo(symmetry, image)).tolist() == tokens.tolist()


@hypothesis.settings(deadline=None)
@hypothesis.given(symmetry=some_symmetry())
def test_inverse_is_an_involution_in_both_libraries(symmetry):
  there = symmetry_lib.inverse(np.stack([symmetry, grids.IDENTITY]))
  assert isinstance(there, np.ndarray)
  assert there.dtype == np.uint8
  assert symmetry_lib.inverse(there)[0].tolist() == symmetry.tolist()
  assert there[1].tolist() == grids.IDENTITY.tolist()
  on_device = symmetry_lib.inverse(jnp.asarray(symmetry))
  assert on_device.dtype == jnp.uint8
  assert np.asarray(on_device).tolist() == there[0].tolist()


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(grid=some_grid(), label=some_grid(), data=st.data())
def test_translate_moves_both_by_one_offset_to_all_places(grid, label, data):
  height, width = np.maximum(grid.shape, label.shape)
  row = data.draw(st.integers(0, SIZE - height))
  column = data.draw(st.integers(0, SIZE - width))
  keys = jax.random.split(jax.random.key(0), 512)
  moved = translate(
    keys,
    grids.encode(grid, SIZE, row, column),
    grids.encode(label, SIZE, row, column),
  )
  assert moved[0].dtype == moved[1].dtype == jnp.uint8
  found = {
    (one.tobytes(), other.tobytes())
    for one, other in zip(*map(np.asarray, moved), strict=True)
  }
  assert found == {
    tuple(grids.encode(g, SIZE, r, c).tobytes() for g in (grid, label))
    for r in range(SIZE - height + 1)
    for c in range(SIZE - width + 1)
  }


def test_offsets_are_equally_likely_and_unknown_labels_stay_unknown():
  grid = np.full((SIZE - 1, SIZE - 1), 3, np.uint8)
  keys = jax.random.split(jax.random.key(1), 512)
  inputs, labels = translate(
    keys, grids.encode(grid, SIZE), np.zeros(SIZE * SIZE, np.uint8)
  )
  assert not np.asarray(labels).any()
  counts = np.bincount(np.asarray(inputs == 5).argmax(-1))
  assert np.flatnonzero(counts).tolist() == [0, 1, SIZE, SIZE + 1]
  assert abs(counts[counts > 0] - 128).max() < 60


def test_recorded_questions_map_back_to_their_originals():
  with np.load(DATA / "predictions.npz") as recorded:
    inputs, ids = recorded["inputs"], recorded["puzzle_identifiers"]
  names = json.loads((DATA / "identifiers.json").read_text())
  puzzles = json.loads((DATA / "test_puzzles.json").read_text())
  tasks, symmetries = names_lib.parse_names(names)
  assert set(symmetries[ids, 0].tolist()) == set(range(8))
  originals = np.asarray(jax.vmap(undo)(symmetries[ids], inputs))
  for tokens, puzzle_id in zip(originals, ids, strict=True):
    asked = [pair["input"] for pair in puzzles[tasks[puzzle_id]]["test"]]
    assert grids.decode(tokens).tolist() in asked


@hypothesis.settings(deadline=None)
@hypothesis.given(grid=some_grid())
def test_parse_and_render_are_inverse(grid):
  parse = functools.partial(grids.parse, size=SIZE)
  tokens = grids.encode(grid, SIZE)
  text = grids.render(tokens)
  assert parse(text).tolist() == tokens.tolist()
  spaced = text.replace("", " ").replace("/", "\n")
  assert parse(f"\n{spaced}\n").tolist() == tokens.tolist()
  assert parse(json.dumps(grid.tolist())).tolist() == tokens.tolist()


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("", "no rows"),
    ("12/3", r"rows of one length.*\[1, 2\]"),
    ("12/3x", "row 2 of the grid is '3x'"),
    ("12/3²", "row 2 of the grid is '3²'"),
    ("[[1, 2]", "is not JSON"),
    ("[1, 2]", "a list of rows"),
    ("[[1, 10]]", "row 1 of the grid holds 10"),
    ("[[1, true]]", "holds True"),
    ("[[]]", "rows of one length"),
    ("[" * 100_000, "is not JSON"),
    ("1" * 8, "does not fit on a canvas of 7x7"),
  ],
)
def test_text_that_is_no_grid_is_refused(text, problem):
  with pytest.raises(UserError, match=problem):
    grids.parse(text, size=SIZE)


def drawn(*tokens):
  axes = figure.Figure().add_subplot()
  grids.draw(axes, *tokens)
  crosses = [line for line in axes.lines if line.get_marker() == "x"]
  outlines = [line for line in axes.lines if line.get_linestyle() == "--"]
  found = [pair for line in crosses for pair in line.get_xydata().tolist()]
  return axes, found, len(outlines)


def test_a_drawing_has_the_official_colours():
  grid = np.arange(10, dtype=np.uint8).reshape(2, 5)
  axes, crosses, outlines = drawn(grids.encode(grid))
  cells = axes.collections[0]
  colours = cells.to_rgba(cells.get_array().reshape(-1))
  assert [colors.to_hex(c).upper() for c in colours] == list(grids.COLOURS)
  assert not crosses and not outlines
  assert (axes.get_xlim(), axes.get_ylim()) == ((0, 5), (2, 0))


def test_a_drawing_crosses_out_what_is_wrong():
  puzzle = grids.encode(np.zeros((1, 1), np.uint8))
  right = np.zeros((2, 3), np.uint8)
  wrong = right.copy()
  wrong[1, 0] = 4
  label = grids.encode(right)
  assert drawn(puzzle, label, label)[1:] == ([], 0)
  assert drawn(puzzle, grids.encode(wrong), label)[1:] == ([[0.5, 1.5]], 0)
  axes, crosses, outlines = drawn(puzzle, grids.encode(wrong.T), label)
  assert (crosses, outlines) == ([[1.5, 0.5], [0.5, 2.5], [1.5, 2.5]], 1)
  assert (axes.get_xlim(), axes.get_ylim()) == ((0, 3), (3, 0))
  nothing = np.zeros_like(label)
  assert drawn(puzzle, nothing, label)[1:] == ([], 1)
  assert drawn(puzzle, label, nothing)[1:] == ([], 0)


def test_task():
  task = arc_task(SIZE)
  assert task is arc_task(SIZE)
  assert (task.seq_len, task.vocab_size) == (49, 12)
  assert arc_task().seq_len == 900
  tokens = task.parse("12/34")
  symmetry = np.array([1, *range(10)], np.uint8)
  assert task.render(jax.jit(task.copies.apply)(symmetry, tokens)) == "24/13"
  assert task.render(jax.jit(task.copies.undo)(symmetry, tokens)) == "31/42"
  assert task.is_solution is None
  keys = jax.random.split(jax.random.key(0), 100)
  drawn = jax.vmap(task.copies.sample, (0, None, None))(keys, None, None)
  assert drawn.dtype == jnp.uint8 and not drawn[:, 1].any()
  assert (jnp.sort(drawn[:, 1:]) == jnp.arange(10)[None]).all()
  assert set(np.asarray(drawn[:, 0]).tolist()) == set(range(8))
