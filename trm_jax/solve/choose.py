"""Choosing among the rollouts of a puzzle."""

import dataclasses

import numpy as np

from trm_jax.solve import vote
from trm_jax.solve.solver import Rollouts


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """The answers of the first K rollouts of N puzzles at one depth."""

  answers: np.ndarray  # uint8 [N, K, S]
  q_halt: np.ndarray  # float32 [N, K]; -inf for rollouts that were stopped
  residual: np.ndarray  # float32 [N, K]; inf for those
  steps: np.ndarray  # int32 [N, K]; 0 for those
  halted: np.ndarray  # bool [N, K], whether a rule had halted them by then
  votes: np.ndarray  # int64 [N, K], rollouts that have each one's answer
  mean_q: np.ndarray  # float64 [N, K], their mean confidence

  @classmethod
  def of(cls, rollouts: Rollouts, mark: int, breadth: int) -> "Answers":
    """At the mark of that index, of so many rollouts."""
    answers = rollouts.answers[:, :breadth, mark]
    steps = rollouts.steps[:, :breadth, mark]
    running = steps > 0
    q_halt = np.where(running, rollouts.q_halt[:, :breadth, mark], -np.inf)
    # Stopped rollouts have no vote on any puzzle.
    questions = np.where(running, np.arange(len(steps))[:, None], -1)
    keys = vote.as_keys(vote.fingerprints(answers, np))
    found = vote.tally(
      questions.ravel(), keys.ravel(), vote.confidences(q_halt).ravel()
    )
    # At the last mark, steps may be those of the depth and yet a rule's.
    early = steps < rollouts.marks[mark]
    last = rollouts.steps[:, :breadth, -1]
    return cls(
      answers=answers,
      q_halt=q_halt,
      residual=np.where(running, rollouts.residual[:, :breadth, mark], np.inf),
      steps=steps,
      halted=(
        rollouts.halted[:, :breadth] & (early | (last == steps)) & running
      ),
      votes=running * found.count[found.candidate].reshape(steps.shape),
      mean_q=found.q[found.candidate].reshape(steps.shape),
    )

  def choose(self, select: str, solved: np.ndarray | None = None) -> np.ndarray:
    """Which rollout answers each puzzle, int64 `[N]`.

    Args:
      select: a selection rule, see `SolveConfig`.
      solved: bool `[N, K]`, for "solved".
    """
    running = self.steps > 0
    ranks = [running, *RANKS[select](self, solved)]
    best = np.ones(running.shape, bool)
    for rank in ranks:
      rank = np.where(best, np.asarray(rank, np.float64), -np.inf)
      best &= rank == rank.max(-1, keepdims=True)
    return best.argmax(-1)


def _soonest(found: Answers) -> np.ndarray:
  return np.where(found.halted, -found.steps, -np.inf)


# Selection rule -> ranks `[N, K]`; the highest answers, later ranks break ties.
RANKS = {
  "q": lambda found, solved: [found.q_halt],
  "vote": lambda found, solved: [found.votes, found.mean_q],
  "residual": lambda found, solved: [-found.residual],
  "first": lambda found, solved: [_soonest(found), found.q_halt],
  "solved": lambda found, solved: [solved & (found.steps > 0), found.q_halt],
}
