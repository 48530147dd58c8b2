import dataclasses
import itertools
import json
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from programs import run_program

from trm_jax.data.arc import grids, predictions
from trm_jax.data.arc import names as names_lib
from trm_jax.data.arc.task import arc_task
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.solve import vote

DATA = pathlib.Path(__file__).parent.parent / "recorded" / "arc"
TASK = arc_task(30)


def read(name):
  return json.loads((DATA / name).read_text())


@pytest.fixture(scope="module")
def recorded():
  with np.load(DATA / "predictions.npz") as archive:
    return dict(archive)


def as_split(recorded, **changes):
  """What the recorded predictions are for, each copy as it is shown."""
  tasks, symmetries = names_lib.parse_names(read("identifiers.json"))
  ids = recorded["puzzle_identifiers"]
  first = np.flatnonzero(np.diff(ids, prepend=-1))
  task_of = np.array(tasks)[ids[first]]
  first_puzzle = np.flatnonzero(task_of != np.roll(task_of, 1))
  split = Split(
    inputs=recorded["inputs"],
    labels=recorded["labels"],
    puzzle_ids=ids[first],
    first_puzzle=np.append(first_puzzle, len(first)).astype(np.int32),
    first_example=first.astype(np.int32),
    num_examples=np.diff(first, append=len(ids)).astype(np.int32),
    symmetries=symmetries[ids[first]],
    is_viewed=True,
    names=tuple(task_of[first_puzzle].tolist()),
  )
  return dataclasses.replace(split, **changes)


def as_originals(split):
  """The same split with nothing stored but the originals."""
  originals = split.first_puzzle[:-1]
  counts = split.num_examples[originals]
  examples = np.concatenate(
    [
      np.arange(first, first + count)
      for first, count in zip(
        split.first_example[originals], counts, strict=True
      )
    ]
  )
  copies = np.diff(split.first_puzzle)
  return dataclasses.replace(
    split,
    inputs=split.inputs[examples],
    labels=split.labels[examples],
    first_example=np.repeat(np.cumsum(counts) - counts, copies).astype(
      np.int32
    ),
    is_viewed=False,
  )


def ballot_of(votes, cuts=()):
  """Casts votes (question, answer, q) in parts that end at `cuts`."""
  questions = np.array([question for question, _, _ in votes], int)
  answers = np.array([answer for _, answer, _ in votes], np.uint8)[:, None]
  q = np.array([q for _, _, q in votes])
  keys = answers[:, 0].astype(np.uint64)
  ballot = vote.Ballot()
  bounds = [0, *sorted(cuts), len(votes)]
  for begin, end in itertools.pairwise(bounds):
    part = slice(begin, end)
    ballot.add(questions[part], keys[part], q[part], answers[part])
  return ballot


def ranked_as_in_the_reference(votes, question):
  """One vote at a time, with nothing but dicts: shares nothing with vote."""
  stats = {}
  for asked, answer, q in votes:
    if asked == question:
      stats.setdefault(answer, [0, 0])
      stats[answer][0] += 1
      stats[answer][1] += q
  for stat in stats.values():
    stat[1] /= stat[0]
  ranked = sorted(stats.items(), key=lambda item: item[1], reverse=True)
  return [(answer, count, q) for answer, (count, q) in ranked]


# Few answers and few confidences, for ties are what matters; 0.1, 0.2 and 0.3
# have sums that depend on their order.
VOTES = st.lists(
  st.tuples(
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 1 / 3]),
  ),
  max_size=60,
)


@hypothesis.given(votes=VOTES, data=st.data())
def test_ranking_is_the_references_however_votes_come(votes, data):
  cuts = data.draw(st.lists(st.integers(0, len(votes)), max_size=5))
  ballot = ballot_of(votes, cuts)
  for question in range(3):
    candidates = ballot.ranking(question)
    expected = ranked_as_in_the_reference(votes, question)
    assert [(c.key, c.count, c.q) for c in candidates] == expected
    assert all(c.answer.tolist() == [c.key] for c in candidates)
    for place, candidate in enumerate(candidates):
      assert ballot.place(question, candidate.key) == place
    assert ballot.place(question, 77) == np.inf
    assert ballot.place(question, None) == np.inf


def test_ranks_by_votes_then_confidence_then_first_seen():
  votes = [(0, 1, 0.5), (0, 2, 0.5), (0, 3, 0.9), (0, 4, 0.1), (0, 4, 0.2)]
  assert [c.key for c in ballot_of(votes).ranking(0)] == [4, 3, 1, 2]


def test_a_nan_is_no_confidence_and_answers_may_be_left_out():
  ballot = vote.Ballot()
  keys = np.array([5, 6], np.uint64)
  ballot.add(np.array([0, 0]), keys, np.array([np.nan, 0.1]))
  assert [(c.key, c.q, c.answer) for c in ballot.ranking(0)] == [
    (6, 0.1, None),
    (5, 0.0, None),
  ]


def test_confidences_are_sigmoids_of_float64():
  logits = np.array([-1e30, -np.inf, -1, 0, 2, np.inf], np.float32)
  found = vote.confidences(logits)
  assert found.dtype == np.float64
  assert found[[0, 1, 3, 5]].tolist() == [0, 0, 0.5, 1]
  assert found[4] == 1 / (1 + np.exp(-2.0))


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=20)
def test_fingerprints_have_the_same_bits_in_both_libraries(seed):
  tokens = np.random.default_rng(seed).integers(0, 12, (2, 3, 49))
  on_host = vote.fingerprints(tokens.astype(np.uint8), np)
  on_device = fingerprints(tokens.astype(np.uint8))
  assert on_host.dtype == on_device.dtype == np.uint32
  assert on_host.shape == (2, 3, 2)
  assert (on_host == np.asarray(on_device)).all()
  for dtype in (np.int32, np.int64):
    assert (vote.fingerprints(tokens.astype(dtype), np) == on_host).all()
  assert (vote.fingerprints(tokens[1, 2], np) == on_host[1, 2]).all()


fingerprints = jax.jit(lambda tokens: vote.fingerprints(tokens, jnp))


def test_fingerprints_tell_sequences_apart():
  rng = np.random.default_rng(0)
  base = rng.integers(0, 12, 100)
  # All that differ in one token, and many that differ in two.
  near = np.tile(base, (1200, 1))
  near[np.arange(1200), np.repeat(np.arange(100), 12)] = np.arange(1200) % 12
  pairs = np.tile(base, (20_000, 1))
  for _ in range(2):
    where = np.arange(len(pairs)), rng.integers(0, 100, len(pairs))
    pairs[where] = rng.integers(0, 12, len(pairs))
  tokens = np.unique(np.concatenate([near, pairs]).astype(np.uint8), axis=0)
  prints = vote.fingerprints(tokens, np)
  assert len(np.unique(vote.as_keys(prints))) == len(tokens)
  # A half collides as seldom as 32 bits do: 0.05 pairs are to be expected.
  for half in prints.T:
    assert len(np.unique(half)) >= len(tokens) - 3
  # And the halves know nothing of each other.
  bits = np.unpackbits(prints.view(np.uint8), axis=-1) - 0.5
  assert abs(4 * bits.T @ bits / len(bits) - np.eye(64)).max() < 0.05


def test_keys_join_the_halves():
  prints = np.array([[[0, 1], [1, 0]], [[2**32 - 1, 2], [0, 0]]], np.uint32)
  keys = vote.as_keys(prints)
  assert keys.dtype == np.uint64
  assert keys.tolist() == [[1, 2**32], [2**64 - 2**32 + 2, 0]]


def pair(task, question, label):
  return vote.Pair(task, question, label)


def test_pass_at_k():
  votes = [(0, 1, 0.9), (0, 2, 0.8), (0, 3, 0.7), (1, 4, 0.5)]
  ballot = ballot_of(votes)
  pairs = [
    pair("a", 0, 2),
    pair("b", 1, 4),
    pair("b", 0, 3),
    pair("unknown", 1, None),
    pair("partly", 1, None),
    pair("partly", 1, 4),
    pair("silent", 9, 4),
  ]
  # Tasks a, b, partly and silent are scored.
  assert vote.pass_at_k(ballot, pairs, ks=(1, 2, 3)) == {
    1: (0 + 1 / 2 + 1 / 2 + 0) / 4,
    2: (1 + 1 / 2 + 1 / 2 + 0) / 4,
    3: (1 + 1 + 1 / 2 + 0) / 4,
  }
  assert vote.pass_at_k(ballot, [pair("unknown", 1, None)]) == {}


def test_submission():
  ballot = vote.Ballot()
  texts = ["12/34", "5", "5", "6"]
  answers = np.stack([grids.parse(text, size=4) for text in texts])
  keys = vote.as_keys(vote.fingerprints(answers, np))
  ballot.add(np.array([0, 0, 0, 1]), keys, np.ones(4), answers)
  pairs = [pair("a", 1, None), pair("b", 7, 3), pair("a", 0, None)]
  first, second, third = [[5]], [[1, 2], [3, 4]], [[6]]
  assert vote.submission(ballot, pairs, TASK) == {
    "a": [
      {"attempt_1": third, "attempt_2": third},
      {"attempt_1": first, "attempt_2": second},
    ],
    "b": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
  }
  assert vote.submission(ballot, pairs[2:], TASK, attempts=3)["a"] == [
    {"attempt_1": first, "attempt_2": second, "attempt_3": first}
  ]


@pytest.mark.parametrize("is_viewed", [True, False])
def test_the_recorded_vote_has_the_recorded_scores(recorded, is_viewed):
  split = as_split(recorded)
  if not is_viewed:
    split = as_originals(split)
  questions, pairs = vote.questions_of(split, TASK)
  assert questions.dtype == np.int32
  _, puzzles = split.rows
  answers, keys = vote.unviewed(
    recorded["preds"], split.symmetries[puzzles], TASK
  )
  ballot = vote.Ballot()
  ballot.add(
    questions, keys, vote.confidences(recorded["q_halt_logits"]), answers
  )
  scores = vote.pass_at_k(ballot, pairs)
  assert {f"ARC/pass@{k}": s for k, s in scores.items()} == read(
    "expected.json"
  )
  assert vote.submission(ballot, pairs, TASK) == read("submission.json")


def test_a_question_is_a_task_and_an_input():
  a, b, c = (grids.parse(text, size=3) for text in ("12", "21", "3"))
  unknown = np.zeros_like(a)
  split = Split(
    inputs=np.stack([a, b, a, a]),
    labels=np.stack([b, c, c, unknown]),
    puzzle_ids=np.arange(4, dtype=np.int32),
    first_puzzle=np.array([0, 2, 4], np.int32),
    first_example=np.array([0, 0, 3, 3], np.int32),
    num_examples=np.array([3, 3, 1, 1], np.int32),
    symmetries=np.tile(grids.IDENTITY, (4, 1)),
    names=("one", "two"),
  )
  questions, pairs = vote.questions_of(split, arc_task(3))
  assert questions.tolist() == [0, 1, 0, 0, 1, 0, 2, 2]
  keys = vote.as_keys(vote.fingerprints(np.stack([b, c]), np)).tolist()
  assert pairs == [
    pair("one", 0, keys[0]),
    pair("one", 1, keys[1]),
    pair("one", 0, keys[1]),
    pair("two", 2, None),
  ]
  nothing = split.take(np.zeros(0, int))
  questions, pairs = vote.questions_of(nothing, arc_task(3))
  assert (len(questions), pairs) == (0, [])


def test_the_program_scores_the_recorded_predictions(tmp_path):
  printed = run_program(
    "arc_score",
    f"--puzzles={DATA}",
    f"--predictions={DATA / 'predictions.npz'}",
    f"--submission={tmp_path / 'new' / 'submission.json'}",
  )
  assert json.loads(printed) == read("expected.json")
  written = json.loads((tmp_path / "new" / "submission.json").read_text())
  assert written == read("submission.json")


def test_the_program_reads_challenges_and_tells_of_gaps(tmp_path, recorded):
  challenges = read("arc_evaluation_challenges.json")
  (tmp_path / "my_challenges.json").write_text(json.dumps(challenges))
  blank = {name: array.copy() for name, array in recorded.items()}
  blank["puzzle_identifiers"][:10] = 0
  blank["q_halt_logits"][:10] = np.nan  # not looked at in skipped rows
  np.savez(tmp_path / "predictions.npz", **blank)
  names = (DATA / "identifiers.json").read_text()
  (tmp_path / "identifiers.json").write_text(names)
  printed = run_program(
    "arc_score",
    f"--puzzles={tmp_path}",
    f"--predictions={tmp_path / 'predictions.npz'}",
  )
  assert "1 of 15 test inputs have no prediction" in printed
  assert "15 of 15 test inputs have no known solution" in printed
  assert "{}" in printed


def test_the_program_refuses_files_that_do_not_belong_together():
  printed = run_program(
    "arc_score",
    f"--puzzles={DATA / 'arc_training_challenges.json'}",
    f"--predictions={DATA / 'predictions.npz'}",
    status=2,
  )
  assert "no row answers a test input" in printed
  assert len(printed.splitlines()) == 1


SOUND = {
  "inputs": np.zeros((3, 16), np.uint8),
  "preds": np.full((3, 16), 2, np.int64),
  "q_halt_logits": np.array([0, np.inf, -1], np.float32),
  "puzzle_identifiers": np.array([1, 0, 2], np.int32),
}


def test_predictions(tmp_path):
  changed = {"preds": np.array([[3] * 16, [4] * 16, [-1, 12, *[300] * 14]])}
  np.savez(tmp_path / "p.npz", **(SOUND | changed))
  found = predictions.read(tmp_path / "p.npz", 3)
  assert found.answers.tolist() == [[3] * 16, [0] * 16]
  assert found.answers.dtype == found.inputs.dtype == np.uint8
  assert found.q_halt.tolist() == [0, -1]
  assert found.puzzle_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
  ("changed", "problem"),
  [
    ({"preds": None}, "lacks preds"),
    ({"preds": np.zeros((3, 16), np.float32)}, "preds has dtype float32"),
    ({"inputs": np.zeros((3, 16), bool)}, "inputs has dtype bool"),
    ({"inputs": np.zeros(3, np.uint8)}, r"inputs has shape \[3\]"),
    ({"preds": np.zeros((2, 16), int)}, r"preds has shape \[2, 16\]"),
    ({"q_halt_logits": np.zeros((3, 1))}, r"q_halt_logits has shape \[3, 1\]"),
    ({"q_halt_logits": np.zeros(3, int)}, "q_halt_logits has dtype int64"),
    (
      {"q_halt_logits": np.array([0, 0, np.nan])},
      r"q_halt_logits\[2\] is NaN",
    ),
    (
      {"puzzle_identifiers": np.array([0, 3, 1])},
      r"puzzle_identifiers\[1\] is 3; expected 0 to 2",
    ),
    ({"puzzle_identifiers": np.array([0, -1, 1])}, r"\[1\] is -1"),
    (
      {"inputs": np.zeros((3, 15), int), "preds": np.zeros((3, 15), int)},
      "15 tokens a row; expected a square",
    ),
    ({"inputs": np.full((3, 16), None)}, "cannot be read .*holds object"),
  ],
)
def test_bad_predictions_are_refused(tmp_path, changed, problem):
  arrays = {k: v for k, v in (SOUND | changed).items() if v is not None}
  np.savez(tmp_path / "p.npz", **arrays)
  with pytest.raises(UserError, match=problem) as raised:
    predictions.read(tmp_path / "p.npz", 3)
  assert str(tmp_path / "p.npz") in str(raised.value)


def test_what_is_no_npz_is_refused(tmp_path):
  whole = tmp_path / "whole.npz"
  np.savez(whole, **SOUND)
  np.save(tmp_path / "array.npy", SOUND["inputs"])
  (tmp_path / "text").write_text("inputs")
  (tmp_path / "empty").write_bytes(b"")
  (tmp_path / "cut").write_bytes(whole.read_bytes()[:300])
  damaged = bytearray(whole.read_bytes())
  damaged[60:90] = bytes(30)
  (tmp_path / "damaged").write_bytes(damaged)
  for name in ("array.npy", "text", "empty", "cut", "damaged", "none", "."):
    with pytest.raises(UserError, match="cannot be read"):
      predictions.read(tmp_path / name, 3)


def test_tasks_are_found(tmp_path):
  with pytest.raises(UserError, match="no such file or folder"):
    predictions.find_tasks(tmp_path / "none")
  with pytest.raises(UserError, match=r"expected test_puzzles\.json"):
    predictions.find_tasks(tmp_path)
  (tmp_path / "._a_challenges.json").touch()  # left by an archiver
  one = tmp_path / "a_challenges.json"
  one.touch()
  assert predictions.find_tasks(tmp_path) == one
  (tmp_path / "b_challenges.json").touch()
  with pytest.raises(
    UserError, match=r"a_challenges\.json, b_challenges\.json"
  ):
    predictions.find_tasks(tmp_path)
  assert predictions.find_tasks(one) == one
  (tmp_path / "test_puzzles.json").touch()
  assert predictions.find_tasks(tmp_path).name == "test_puzzles.json"


def test_tasks_of_both_layouts_are_the_same():
  ours = predictions.read_pairs(DATA / "test_puzzles.json")
  kaggle = predictions.read_pairs(DATA / "arc_evaluation_challenges.json")
  assert ours.keys() == kaggle.keys()
  for name, pairs in ours.items():
    for one, other in zip(pairs, kaggle[name], strict=True):
      assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[]", "holds no task"),
    ("[3]", "of an object of tasks by name"),
    ("{}", "holds no task"),
    ('{"a": []}', "task 'a': .*expected an object with 'train'"),
    ('{"a": {"test": 3}}', "task 'a': 'train' is None"),
  ],
)
def test_bad_tasks_are_refused(tmp_path, text, problem):
  path = tmp_path / "test_puzzles.json"
  path.write_text(text)
  with pytest.raises(UserError, match=problem):
    predictions.read_pairs(path)


def test_identifiers(tmp_path):
  near, far = tmp_path / "near", tmp_path / "far"
  near.mkdir()
  far.mkdir()
  with pytest.raises(UserError, match=r"near.*identifiers\.json or .*far"):
    predictions.read_identifiers(near, far)
  (far / "identifiers.json").write_text('["<blank>", "a|||t2|||1023456789"]')
  tasks, symmetries = predictions.read_identifiers(near, far)
  assert tasks == ["<blank>", "a"]
  assert symmetries[1].tolist() == [2, 1, 0, *range(2, 10)]
  for text, problem in (
    ("{}", "a list of names"),
    ("[1]", "a list of names"),
    ('["a|||b"]', "'a|||b' is not the name"),
    ("", "not JSON"),
  ):
    (near / "identifiers.json").write_text(text)
    with pytest.raises(UserError, match=problem):
      predictions.read_identifiers(near, far)
