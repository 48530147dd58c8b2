import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.data import batches


def epoch_rows(seed, epoch, n):
  epoch = np.uint32(epoch)
  return np.asarray(batches.shuffled_row(seed, epoch, jnp.arange(n), n))


@pytest.mark.parametrize(
  "n", [1, 2, 3, 4, 5, 7, 9, 10, 17, 64, 81, 100, 101, 999, 1000, 65537]
)
def test_bijection(n):
  for seed, epoch in ((0, 0), (0, 1), (7, 2**32 - 1)):
    rows = epoch_rows(seed, epoch, n)
    assert rows.dtype == np.int32
    assert (np.sort(rows) == np.arange(n)).all()


def test_epochs_and_seeds_differ():
  orders = [epoch_rows(s, e, 1000) for s in range(3) for e in range(3)]
  for i, first in enumerate(orders):
    for second in orders[:i]:
      # Two random orders agree in one place on average.
      assert (first == second).sum() < 10


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_rows_are_uniform_over_epochs(n):
  epochs = 4000
  positions, numbers = jnp.arange(n), jnp.arange(epochs)[:, None]
  rows = np.asarray(batches.shuffled_row(3, numbers, positions, n))
  for position in {0, n // 2, n - 1}:
    observed = np.bincount(rows[:, position], minlength=n)
    expected = epochs / n
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < n - 1 + 5 * np.sqrt(2 * (n - 1))
  # ... and neighbours do not stay neighbours.
  steps = np.bincount((rows[:, 1] - rows[:, 0]) % n, minlength=n)[1:]
  expected = epochs / (n - 1)
  assert abs(steps - expected).max() < 6 * np.sqrt(expected) + 1


def test_every_order_of_three_rows_occurs_equally():
  numbers = jnp.arange(6000)[:, None]
  rows = np.asarray(batches.shuffled_row(0, numbers, jnp.arange(3), 3))
  _, counts = np.unique(rows, axis=0, return_counts=True)
  assert len(counts) == 6
  assert abs(counts - 1000).max() < 6 * np.sqrt(1000)


def test_takes_of_an_epoch_cover_each_row_once():
  n, batch = 103, 16
  cursor, rows, epochs = batches.start(), [], []
  for _ in range(2 * n):
    row, epoch, position = batches.take(cursor, jnp.arange(batch), 5, n)
    assert (position >= 0).all() and (position < n).all()
    rows += row.tolist()
    epochs += epoch.tolist()
    cursor = batches.advance(cursor, batch, n)
    assert 0 <= int(cursor.position) < n
    if int(cursor.epoch) >= 3:
      break
  rows, epochs = np.array(rows), np.array(epochs)
  for epoch in range(3):
    assert sorted(rows[epochs == epoch]) == list(range(n))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 12345])
def test_advance_agrees_with_take(count):
  n = 10
  start = batches.Cursor(jnp.uint32(4), jnp.int32(7))
  ahead = batches.advance(start, count, n)
  assert (int(ahead.epoch), int(ahead.position)) == divmod(4 * n + 7 + count, n)
  offsets = jnp.arange(25)
  for mine, theirs in zip(
    batches.take(ahead, offsets, 1, n),
    batches.take(start, offsets + count, 1, n),
    strict=True,
  ):
    assert (mine == theirs).all()


def test_steps_add_up():
  one = many = batches.start()
  for count in (3, 100, 7, 2**30):
    one = batches.advance(one, count, 2**31 - 1)
  many = batches.advance(many, 110 + 2**30, 2**31 - 1)
  assert int(one.position) == int(many.position) == 110 + 2**30
  # The largest sum there is: it would overflow int32.
  last = batches.Cursor(jnp.uint32(0), jnp.int32(2**31 - 2))
  last = batches.advance(last, 2**31 - 1, 2**31 - 1)
  assert (int(last.epoch), int(last.position)) == (1, 2**31 - 2)


def test_jit_equals_eager_and_traces_the_cursor():
  n = 1000
  cursor = batches.Cursor(jnp.uint32(2), jnp.int32(990))
  offsets = jnp.arange(32)
  compiled = jax.jit(batches.take, static_argnames="num_rows")
  eager = batches.take(cursor, offsets, 9, n)
  with jax.disable_jit():
    by_hand = batches.take(cursor, offsets, 9, n)
  for a, b, c in zip(
    compiled(cursor, offsets, jnp.uint32(9), num_rows=n),
    eager,
    by_hand,
    strict=True,
  ):
    assert (a == b).all() and (b == c).all()
  mapped = jax.vmap(lambda o: batches.take(cursor, o, 9, n)[0])(offsets)
  assert (mapped == eager[0]).all()


def test_large_tables():
  positions = jnp.arange(4096, dtype=jnp.int32) * 500_000
  rows = np.asarray(batches.shuffled_row(0, 0, positions, 2**31 - 1))
  assert (rows >= 0).all() and len(np.unique(rows)) == len(rows)
  assert abs(rows.mean() / 2**30 - 1) < 0.1
