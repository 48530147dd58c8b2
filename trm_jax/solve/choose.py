"""Choosing among the rollouts of a puzzle, and what the others say."""

import dataclasses

import numpy as np

from trm_jax.solve import vote
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
    # Stopped rollouts agree with nobody.
    keys = vote.as_keys(vote.fingerprints(answers, np))  # [N, K]
    keys = np.where(there, keys, np.arange(breadth, dtype=np.uint64))
    # At the last mark, steps may be those of the depth and yet a rule's.
    early = steps < rollouts.marks[mark]
    last = rollouts.steps[:, :breadth, -1]
    return cls(
      answers=answers,
      q_halt=np.where(there, rollouts.q_halt[:, :breadth, mark], -np.inf),
      residual=np.where(there, rollouts.residual[:, :breadth, mark], np.inf),
      steps=steps,
      halted=rollouts.halted[:, :breadth] & (early | (last == steps)) & there,
      same=_first_equal(keys),
    )

  @property
  def votes(self) -> np.ndarray:
    """How many rollouts have each one's answer, float64 `[N, K]`."""
    return self._sums(np.ones(self.steps.shape))

  @property
  def mean_q(self) -> np.ndarray:
    """Mean sigmoid of q over the rollouts with each one's answer `[N, K]`."""
    q = vote.confidences(self.q_halt)
    return self._sums(q) / np.maximum(self.votes, 1)

  def _sums(self, values: np.ndarray) -> np.ndarray:
    """Sums over the rollouts with each one's answer, of those not stopped."""
    rows, breadth = self.same.shape
    places = self.same + breadth * np.arange(rows)[:, None]
    weights = np.where(self.steps > 0, values, 0).ravel()
    sums = np.bincount(places.ravel(), weights, minlength=rows * breadth)
    return sums[places]

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


def _first_equal(keys: np.ndarray) -> np.ndarray:
  """For each key the first column of its row with the same: int64 `[N, K]`."""
  order = np.argsort(keys, axis=-1, kind="stable")
  ranked = np.take_along_axis(keys, order, axis=-1)
  is_new = np.ones(keys.shape, bool)
  is_new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
  begins = np.maximum.accumulate(
    np.where(is_new, np.arange(keys.shape[1]), 0), axis=-1
  )
  first = np.empty_like(order)
  np.put_along_axis(
    first, order, np.take_along_axis(order, begins, axis=-1), axis=-1
  )
  return first


def _best(*ranks: np.ndarray) -> np.ndarray:
  """The column that is first in all ranks, the former ones counting more."""
  best = np.ones(ranks[0].shape, bool)
  for rank in ranks:
    rank = np.where(best, rank.astype(np.float64), -np.inf)
    top = rank.max(-1, keepdims=True)
    best &= rank == top
  return best.argmax(-1)
