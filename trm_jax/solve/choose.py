"""Selection rules: which rollout's answer is the answer to a puzzle."""

import dataclasses

import numpy as np

from trm_jax.solve import vote
from trm_jax.solve.solver import Rollouts


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """The answers of the first K rollouts of N puzzles at one depth."""

  answers: np.ndarray  # uint8 [N, K, S]
  q_halt: np.ndarray  # float32 [N, K]; -inf for pruned rollouts
  residual: np.ndarray  # float32 [N, K]; inf for pruned rollouts
  steps: np.ndarray  # int32 [N, K]; 0 for pruned rollouts
  halted: np.ndarray  # bool [N, K], halted by a rule by this depth
  votes: np.ndarray  # int64 [N, K], rollouts with the same answer
  mean_q: np.ndarray  # float64 [N, K], mean confidence of these rollouts

  @classmethod
  def of(cls, rollouts: Rollouts, mark: int, breadth: int) -> "Answers":
    """The first `breadth` rollouts at `rollouts.marks[mark]`."""
    answers = rollouts.answers[:, :breadth, mark]
    steps = rollouts.steps[:, :breadth, mark]
    running = steps > 0
    q_halt = np.where(running, rollouts.q_halt[:, :breadth, mark], -np.inf)
    # Pruned rollouts do not vote.
    questions = np.where(running, np.arange(len(steps))[:, None], -1)
    keys = vote.as_keys(vote.fingerprints(answers, np))
    found = vote.tally(
      questions.ravel(), keys.ravel(), vote.confidences(q_halt).ravel()
    )
    # A rule may halt a rollout at the depth of the last mark itself.
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
    """Index of the chosen rollout of each puzzle, int64 `[N]`.

    Args:
      select: a selection rule, see `SolveConfig`.
      solved: bool `[N, K]`, whether answers are solutions; for "solved".
    """
    best = np.ones(self.steps.shape, bool)
    for rank in (self.steps > 0, *RANKS[select](self, solved)):
      rank = np.where(best, np.asarray(rank, np.float64), -np.inf)
      best &= rank == rank.max(-1, keepdims=True)
    return best.argmax(-1)


# Selection rule -> ranks `[N, K]`: highest wins, later ranks break ties.
RANKS = {
  "q": lambda found, solved: [found.q_halt],
  "vote": lambda found, solved: [found.votes, found.mean_q],
  "residual": lambda found, solved: [-found.residual],
  "first": lambda found, solved: [
    np.where(found.halted, -found.steps, -np.inf),
    found.q_halt,
  ],
  "solved": lambda found, solved: [solved & (found.steps > 0), found.q_halt],
}
