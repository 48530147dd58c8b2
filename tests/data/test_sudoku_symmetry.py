import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.data.sudoku import board, symmetry
from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.task import sudoku_task

SIZES = (4, 6, 9)


@pytest.fixture(scope="module", params=SIZES)
def puzzles(request):
  size = request.param
  givens = {4: (5, 8), 6: (12, 16), 9: (30, 40)}[size]
  inputs, labels, _ = generate(size, 4, seed=3, givens=givens)
  return size, inputs, labels


@functools.partial(jax.jit, static_argnames=("size", "count"))
def views(inputs, labels, size, count=64):
  keys = jax.random.split(jax.random.key(7), count)
  one = sudoku_task(size).augmentation.augment
  return jax.vmap(one, (0, None, None))(keys, inputs, labels)


@functools.partial(jax.jit, static_argnames=("size", "count"))
def symmetries(size, count):
  keys = jax.random.split(jax.random.key(1), count)
  return jax.vmap(lambda key: symmetry.sample(key, size=size))(keys)


def test_solved_stays_solved_and_givens_are_kept(puzzles):
  size, inputs, labels = puzzles
  for x, y in zip(inputs, labels, strict=True):
    seen_x, seen_y = map(np.asarray, views(x, y, size))
    assert seen_x.dtype == seen_y.dtype == np.uint8
    assert board.solves(seen_x, seen_y, size=size).all()
    assert ((seen_x > 1).sum(-1) == (x > 1).sum()).all()


def test_inverse_undoes(puzzles):
  size, _, labels = puzzles

  @jax.jit
  @jax.vmap
  def there_and_back(key):
    drawn = symmetry.sample(key, size=size)
    image = symmetry.apply(drawn, tokens)
    return image, symmetry.undo(drawn, image)

  tokens = jnp.asarray(labels[0]).at[0].set(0).at[1].set(1)
  keys = jax.random.split(jax.random.key(0), 32)
  image, back = there_and_back(keys)
  assert (back == tokens[None]).all()
  assert (image != tokens[None]).any(-1).mean() > 0.9


def test_padding_and_blanks_map_to_themselves(puzzles):
  size, inputs, _ = puzzles
  for constant in (0, 1):
    tokens = np.full_like(inputs[0], constant)
    assert (np.asarray(views(tokens, tokens, size)[0]) == constant).all()


def test_every_digit_and_cell_is_reached_about_equally(puzzles):
  size, *_ = puzzles
  count = 4000
  drawn = symmetries(size, count)
  for values, choices in (
    (np.asarray(drawn.digits)[:, 2] - 2, size),
    (np.asarray(drawn.cells)[:, 0], size * size),
  ):
    expected = count / choices
    observed = np.bincount(values, minlength=choices)
    assert abs(observed - expected).max() < 6 * np.sqrt(expected)


def test_4x4_views_reach_every_grid_of_the_class():
  # 4x4 has 288 grids in two classes, of 96 and 192 (Sudoku enumeration).
  _, labels, _ = generate(4, 1, seed=0, givens=(6, 8))
  _, seen = views(labels[0], labels[0], 4, count=4000)
  assert len(np.unique(np.asarray(seen), axis=0)) in (96, 192)


def test_vmap_equals_one_at_a_time(puzzles):
  size, inputs, labels = puzzles
  keys = jax.random.split(jax.random.key(5), len(inputs))
  one = jax.jit(sudoku_task(size).augmentation.augment)
  batched = jax.vmap(one)(keys, inputs, labels)
  for row, key in enumerate(keys):
    single = one(key, inputs[row], labels[row])
    assert (single[0] == batched[0][row]).all()
    assert (single[1] == batched[1][row]).all()


def test_transposition_only_where_boxes_are_square():
  for size, transposes in ((4, True), (6, False), (9, True)):
    cells = np.asarray(symmetries(size, 4000).cells).reshape(-1, size, size)
    # Without transposition the first row of the image is a row of the board.
    from_one_row = (np.ptp(cells[:, 0] // size, axis=-1) == 0).mean()
    assert from_one_row == 1 if not transposes else 0.45 < from_one_row < 0.55
