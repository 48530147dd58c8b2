"""Evaluation: one pass gives what every depth gives by itself."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from trm_jax.core import halting, network, recursion
from trm_jax.core.halting import Puzzles
from trm_jax.data.arc import grids
from trm_jax.data.arc.symmetry import inverse
from trm_jax.data.arc.task import arc_task
from trm_jax.data.task import Split, show
from trm_jax.run import sharding
from trm_jax.solve import evaluate, held_out, vote
from trm_jax.train import step as train


@pytest.fixture(scope="module")
def trained(recipe, table, compiled_steps):
  state = train.init_state(recipe)
  for _ in range(6):
    state, _ = compiled_steps(state, table)
  # A halting head that sometimes says yes makes the test worth its name.
  q_head = state.ema["q_head"]
  q_head = q_head | {"bias": q_head["bias"] * 0 + 0.2}
  q_head["kernel"] = jax.random.normal(
    jax.random.key(5), q_head["kernel"].shape
  )
  return state.params.replace(weights=state.ema | {"q_head": q_head})


def _by_hand(params, split, recipe, depth):
  """Answers and halting logits after each step, without a scan."""
  inputs = jnp.asarray(split.inputs, jnp.int32)
  rows = params.puzzle_table[split.puzzle_ids]
  latents = recursion.initial_latents(params.initial, len(inputs), recipe.model)
  step = jax.jit(
    lambda latents: halting.supervise(
      params.weights, rows, latents, inputs, recipe.model
    )
  )
  for _ in range(depth):
    latents, outputs = step(latents)
    answers = np.argmax(np.asarray(outputs.logits), -1)
    yield answers, np.asarray(outputs.q_halt)


def test_every_depth_equals_running_to_it(trained, split, recipe):
  depth = 6
  records = evaluate.evaluate(
    trained, split, recipe.model, recipe.task,
    depth=depth, batch_size=16, mesh=sharding.make_mesh(),
  )  # fmt: skip
  steps = list(_by_hand(trained, split, recipe, depth))
  halted_at = np.full(len(split), depth)
  for k in reversed(range(depth)):
    halted_at[steps[k][1] > 0] = k + 1
  assert len(np.unique(halted_at)) > 1
  for k, record in enumerate(records):
    answers, q_halt = steps[k]
    right = answers == split.labels
    exact = right.all(-1)
    assert record["depth"] == k + 1
    assert record["puzzles"] == len(split)  # 40 in batches of 16: padded
    assert record["cell_accuracy"] == pytest.approx(right.mean())
    assert record["exact_accuracy"] == pytest.approx(exact.mean())
    assert record["exact_accuracy_se"] == pytest.approx(
      np.std(exact) / np.sqrt(len(split))
    )
    assert record["cell_accuracy_se"] == pytest.approx(
      np.std(right.mean(-1)) / np.sqrt(len(split)), abs=1e-6
    )
    assert record["q_accuracy"] == pytest.approx(
      np.mean((q_halt >= 0) == exact)
    )
    used = np.minimum(halted_at, k + 1)
    assert record["mean_steps"] == pytest.approx(used.mean())
    kept = [(steps[d - 1][0][i] == split.labels[i]).all()
            for i, d in enumerate(used)]  # fmt: skip
    assert record["halted_exact_accuracy"] == pytest.approx(np.mean(kept))
    valid = recipe.task.is_solution(split.inputs, jnp.asarray(answers))
    assert record["valid_rate"] == pytest.approx(float(np.mean(valid)))


def test_the_chosen_part_is_seeded_and_without_repeats():
  rows = held_out.choose_groups(1000, 50, seed=3)
  np.testing.assert_array_equal(rows, held_out.choose_groups(1000, 50, seed=3))
  assert len(np.unique(rows)) == 50
  assert np.any(rows != held_out.choose_groups(1000, 50, seed=4))
  np.testing.assert_array_equal(
    held_out.choose_groups(7, 0, seed=3), np.arange(7)
  )
  np.testing.assert_array_equal(
    held_out.choose_groups(7, 99, seed=3), np.arange(7)
  )


SIZE, COPIES, DEPTH = 3, 5, 2


@pytest.fixture(scope="module")
def arc_split() -> Split:
  """Three tasks with two or three test pairs, of five copies each."""
  random = np.random.default_rng(0)
  counts = [2, 3, 2]
  tokens = np.array(
    [
      grids.encode(random.integers(0, 3, (2, 3), dtype=np.uint8), SIZE)
      for _ in range(2 * sum(counts))
    ]
  )
  inputs, labels = np.split(tokens, 2)
  inputs[1] = inputs[0]  # two pairs with one question
  labels[3] = 0  # a solution that is not known
  symmetries = np.array(
    [
      [random.integers(8) * (copy > 0), 0, *(
        1 + (random.permutation(9) if copy else np.arange(9)))]
      for _ in counts for copy in range(COPIES)
    ], np.uint8,
  )  # fmt: skip
  ends = np.cumsum(counts)
  return Split(
    inputs=inputs,
    labels=labels,
    puzzle_ids=np.arange(1, 1 + len(symmetries), dtype=np.int32),
    first_puzzle=np.arange(4, dtype=np.int32) * COPIES,
    first_example=np.repeat(ends - counts, COPIES).astype(np.int32),
    num_examples=np.repeat(counts, COPIES).astype(np.int32),
    symmetries=symmetries,
    names=("a", "b", "c"),
  )


@pytest.fixture(scope="module")
def arc_model(arc_split):
  """A model that answers something, and differently to different copies."""
  model = tiny_model(
    vocab_size=12, seq_len=SIZE * SIZE, num_puzzle_ids=16, width=32
  )
  params = network.init(jax.random.key(0), model)
  table = jax.random.normal(jax.random.key(1), params.puzzle_table.shape)
  return model, params.replace(puzzle_table=3 * table)


def _evaluate(split, arc_model, ballots=None, batch_size=16):
  model, params = arc_model
  return evaluate.evaluate(
    params, split, model, arc_task(SIZE), depth=DEPTH,
    batch_size=batch_size, mesh=sharding.make_mesh(), ballots=ballots,
  )  # fmt: skip


def test_copies_vote_as_counted_by_hand(arc_split, arc_model):
  model, params = arc_model
  task = arc_task(SIZE)
  ballots = evaluate.new_ballots([DEPTH])
  records = _evaluate(arc_split, arc_model, ballots)
  examples, puzzles = arc_split.rows
  symmetries = arc_split.symmetries[puzzles]
  shown, _ = show(arc_split, examples, puzzles, task)
  answers, q_halt = evaluate.refine(
    params,
    Puzzles.of(shown, shown, arc_split.puzzle_ids[puzzles]),
    DEPTH,
    model,
  )
  expected = collections.defaultdict(list)
  for row, example in enumerate(examples):
    grid = grids.decode(np.asarray(answers[-1, row]))
    back = inverse(symmetries[row])
    grid = np.asarray(back[1:])[grid]
    turn = [
      lambda g: g, np.rot90, lambda g: np.rot90(g, 2),
      lambda g: np.rot90(g, 3), np.fliplr, np.flipud, np.transpose,
      lambda g: np.fliplr(np.rot90(g)),
    ][back[0]]  # fmt: skip
    asked = (
      arc_split.names[puzzles[row] // COPIES],
      (arc_split.inputs[example].tobytes()),
    )
    q = vote.confidences(np.asarray(q_halt[-1, row]))
    expected[asked].append((str(turn(grid).tolist()), float(q)))
  _, pairs = vote.questions_of(arc_split, task)
  assert len({pair.question for pair in pairs}) == len(expected) == 6
  several = 0
  for number, votes in enumerate(expected.values()):
    tally = collections.Counter(grid for grid, _ in votes)
    found = ballots[DEPTH].ranking(number)
    several += len(found) > 1
    assert {
      str(grids.decode(c.answer).tolist()): c.count for c in found
    } == tally
    best = found[0]
    mine = [q for g, q in votes if g == str(grids.decode(best.answer).tolist())]
    assert best.q == pytest.approx(np.mean(mine), rel=1e-5)
    assert best.count == max(tally.values())
  assert several  # the vote decides something
  # Only where there is a ballot; by default that is everywhere.
  assert ["pass@1" in record for record in records] == [False, True]
  assert all("pass@1" in r for r in _evaluate(arc_split, arc_model))
  assert records[-1]["puzzles"] == len(examples)


def test_copies_stored_as_shown_give_the_same(arc_split, arc_model):
  """As in the folders that the reference's builder writes."""
  examples, puzzles = arc_split.rows
  inputs, labels = show(arc_split, examples, puzzles, arc_task(SIZE))
  ends = np.cumsum(arc_split.num_examples)
  viewed = dataclasses.replace(
    arc_split,
    inputs=np.asarray(inputs),
    labels=np.asarray(labels),
    first_example=(ends - arc_split.num_examples).astype(np.int32),
    is_viewed=True,
  )
  assert _evaluate(viewed, arc_model) == _evaluate(arc_split, arc_model)


def test_batches_of_any_size_vote_alike(arc_split, arc_model):
  records = _evaluate(arc_split, arc_model, batch_size=8)
  for ours, theirs in zip(
    records, _evaluate(arc_split, arc_model), strict=True
  ):
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_without_solutions_there_are_votes_but_no_scores(arc_split, arc_model):
  unsolved = dataclasses.replace(arc_split, labels=0 * arc_split.labels)
  ballots = evaluate.new_ballots([DEPTH])
  record = _evaluate(unsolved, arc_model, ballots)[-1]
  assert record.keys() == {"depth", "puzzles", "flops_per_puzzle", "weights"}
  assert ballots[DEPTH].ranking(0)


def test_votes_of_two_checkpoints_add_up(arc_split, arc_model):
  ballots = evaluate.new_ballots([DEPTH])
  _evaluate(arc_split, arc_model, ballots)
  once = [c.count for c in ballots[DEPTH].ranking(2)]
  _evaluate(arc_split, arc_model, ballots)
  assert [c.count for c in ballots[DEPTH].ranking(2)] == [2 * n for n in once]


def test_the_mean_embedding_is_of_the_trained_rows(arc_model):
  _, params = arc_model
  mean = held_out.with_mean_embedding(params, known=7).puzzle_table
  np.testing.assert_allclose(
    mean[0], np.mean(params.puzzle_table[1:7], 0), rtol=1e-5
  )
  np.testing.assert_array_equal(mean[1:], params.puzzle_table[1:])
