"""Which rollout answers, by every rule, on rollouts written by hand."""

import numpy as np

from trm_jax.solve.choose import Answers
from trm_jax.solve.solver import Rollouts


def _rollouts(answers, q, residual, steps, halted, marks=(4,)):
  """Rollouts of one mark, from `[N][K]`; answers are numbers."""
  answers = np.array(answers, np.uint8)[:, :, None, None]
  return Rollouts(
    marks=marks,
    answers=np.broadcast_to(answers, (*answers.shape[:3], 16)),
    q_halt=np.array(q, np.float32)[:, :, None],
    residual=np.array(residual, np.float32)[:, :, None],
    steps=np.array(steps, np.int32)[:, :, None],
    halted=np.array(halted, bool),
    spent=0, passes=0, flops_per_step=1.0, seconds=1.0,
  )  # fmt: skip


def test_every_way_of_choosing():
  found = _rollouts(
    answers=[[2, 3, 3, 4, 5]],
    q=[[1.0, 0.5, 0.0, 2.0, 9.0]],
    residual=[[0.3, 0.2, 0.1, 0.4, 0.0]],
    steps=[[4, 2, 3, 2, 0]],  # the last was stopped, and has no say
    halted=[[0, 1, 1, 1, 0]],
  )
  answers = Answers.of(found, 0, 5)
  solved = np.array([[True, False, True, False, True]])
  assert answers.choose("q").tolist() == [3]
  assert answers.choose("residual").tolist() == [2]
  assert answers.choose("vote").tolist() == [1]  # two of them
  assert answers.choose("first").tolist() == [3]  # as soon as 1, and surer
  assert answers.choose("solved", solved).tolist() == [0]
  assert answers.choose("solved", solved & False).tolist() == [3]
  assert answers.votes.tolist() == [[1, 2, 2, 1, 0]]
  narrow = Answers.of(found, 0, 1)
  for select in ("q", "residual", "vote", "first"):
    assert narrow.choose(select).tolist() == [0]


def test_without_a_halt_the_surest_is_first():
  found = _rollouts([[2, 3]], [[0.1, 0.2]], [[0, 0]], [[4, 4]], [[0, 0]])
  assert Answers.of(found, 0, 2).choose("first").tolist() == [1]


def test_votes_tie_by_mean_confidence():
  found = _rollouts(
    [[2, 2, 3, 3]], [[3.0, -3.0, 1.0, 1.0]], [[0] * 4], [[4] * 4], [[0] * 4]
  )
  assert Answers.of(found, 0, 4).choose("vote").tolist() == [2]
