"""Choosing among the rollouts of a puzzle, and what the others say."""

import dataclasses

import numpy as np

from trm_jax import vote
from trm_jax.solve.solver import Rollouts


@dataclasses.dataclass(frozen=True, eq=False)
class Ballots:
  """The answers of the first K rollouts of each puzzle at one depth.

  Attributes:
    answers: uint8 `[N, K, S]`.
    q_halt: float32 `[N, K]`; -inf for rollouts that were stopped.
    residual: float32 `[N, K]`; inf for those.
    steps: int32 `[N, K]`; 0 for those.
    halted: bool `[N, K]`, whether a rule had halted them by then.
    same: int64 `[N, K]`, for each the first rollout with the same answer.
  """

  answers: np.ndarray
  q_halt: np.ndarray
  residual: np.ndarray
  steps: np.ndarray
  halted: np.ndarray
  same: np.ndarray

  @classmethod
  def of(cls, rollouts: Rollouts, mark: int, breadth: int) -> "Ballots":
    """What stood at the mark of that number, of so many rollouts."""
    answers = rollouts.answers[:, :breadth, mark]
    steps = rollouts.steps[:, :breadth, mark]
    there = steps > 0
    keys = vote.as_keys(vote.fingerprints(answers, np))  # [N, K]
    equal = (keys[:, :, None] == keys[:, None, :]) & there[:, None, :]
    # At the last mark, steps may be those of the depth and yet a rule's.
    early = steps < rollouts.marks[mark]
    last = rollouts.steps[:, :breadth, -1]
    return cls(
      answers=answers,
      q_halt=np.where(there, rollouts.q_halt[:, :breadth, mark], -np.inf),
      residual=np.where(there, rollouts.residual[:, :breadth, mark], np.inf),
      steps=steps,
      halted=rollouts.halted[:, :breadth] & (early | (last == steps)) & there,
      same=equal.argmax(-1),
    )

  @property
  def votes(self) -> np.ndarray:
    """How many rollouts have each one's answer, int64 `[N, K]`."""
    return self._equal.sum(-1)

  @property
  def mean_q(self) -> np.ndarray:
    """Mean sigmoid of q over the rollouts with each one's answer `[N, K]`."""
    q = vote.confidences(self.q_halt)[:, None, :]
    return (self._equal * q).sum(-1) / np.maximum(self.votes, 1)

  @property
  def _equal(self) -> np.ndarray:
    """Which rollouts agree, of those that were not stopped: `[N, K, K]`."""
    there = self.steps > 0
    equal = self.same[:, :, None] == self.same[:, None, :]
    return equal & there[:, :, None] & there[:, None, :]

  def choose(self, select: str, solved: np.ndarray | None = None) -> np.ndarray:
    """Which rollout answers each puzzle, int64 `[N]`.

    Args:
      select: see `SolveConfig`.
      solved: bool `[N, K]`, for "solved".
    """
    there = self.steps > 0
    if select == "residual":
      ranks = [-self.residual]
    elif select == "vote":
      ranks = [self.votes, self.mean_q]
    elif select == "first":
      early = np.where(self.halted, -self.steps, -np.inf)
      ranks = [early, self.q_halt]
    elif select == "solved":
      assert solved is not None, "answers that were checked"
      ranks = [solved & there, self.q_halt]
    else:
      ranks = [self.q_halt]
    return _best(there, *ranks)


def _best(*ranks: np.ndarray) -> np.ndarray:
  """The column that is first in all ranks, the former ones counting more."""
  best = np.ones(ranks[0].shape, bool)
  for rank in ranks:
    rank = np.where(best, rank.astype(np.float64), -np.inf)
    top = rank.max(-1, keepdims=True)
    best &= rank == top
  return best.argmax(-1)
