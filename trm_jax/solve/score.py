"""Scores of rollouts: depth x breadth in one pass, and halting replayed.

The first k rollouts of a puzzle at an earlier mark are what a smaller breadth
and depth would have given, so one run with the largest of both gives the whole
grid. In the same way a run at fixed depth that keeps every step tells what any
halting rule would have done.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_jax.data.task import Split, Task, judge
from trm_jax.solve import vote
from trm_jax.solve.choose import Ballots
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Rollouts

Record = dict[str, Any]


def grid(
  rollouts: Rollouts,
  inputs: np.ndarray,
  labels: np.ndarray,
  task: Task,
  breadths: Sequence[int],
  selects: Sequence[str],
) -> list[Record]:
  """Scores every depth, breadth and way of choosing.

  Args:
    rollouts: those of the largest breadth, not pruned.
    inputs: uint8 `[N, S]`.
    labels: uint8 `[N, S]`, 0 where there is nothing to compare with.
    task: their task.
    breadths: how many rollouts to choose from.
    selects: ways of choosing, as in `SolveConfig`.

  Returns:
    A record for each, with `oracle_accuracy` the share of puzzles that any of
    the rollouts gets right.
  """
  labelled = np.any(labels, axis=-1)
  right = is_right(rollouts.answers, labels)
  valid = np.zeros(right.shape, bool)
  if task.is_solution:
    valid = judge(inputs, rollouts.answers, task)
  rows, records = np.arange(len(inputs)), []
  for mark, depth in enumerate(rollouts.marks):
    for breadth in breadths:
      ballots = Ballots.of(rollouts, mark, breadth)
      steps = float(ballots.steps.sum()) / max(len(rows), 1)
      for select in selects:
        chosen = ballots.choose(select, valid[:, :breadth, mark])
        record: Record = {
          "depth": depth,
          "breadth": breadth,
          "select": select,
          "puzzles": len(rows),
        }
        if labelled.any():
          there = right[:, :breadth, mark] & (ballots.steps > 0)
          picked = np.take_along_axis(there, chosen[:, None], axis=1)
          record |= share("exact_accuracy", picked[labelled])
          record |= share("oracle_accuracy", np.any(there, axis=1)[labelled])
        if task.is_solution:
          record |= share("valid_rate", valid[rows, chosen, mark])
        records.append(
          record
          | {
            "mean_steps": steps / breadth,
            "flops_per_puzzle": steps * rollouts.flops_per_step,
          }
        )
  return records


def vote_grid(
  rollouts: Rollouts,
  split: Split,
  task: Task,
  breadths: Sequence[int],
) -> tuple[list[Record], vote.Ballot]:
  """Scores every depth and breadth where copies of puzzles vote, as in ARC.

  All rollouts of all copies have one vote each.

  Args:
    rollouts: of the rows of the split, not pruned.
    split: puzzles with copies.
    task: their task.
    breadths: ascending, how many rollouts of each copy vote.

  Returns:
    A record for each, with `pass@k`. And the ballot of the last depth and the
    largest breadth, with its answers.
  """
  assert task.copies, "a task with copies"
  assert split.symmetries is not None, "copies differ by a symmetry"
  questions, pairs = vote.questions_of(split, task)
  symmetries = split.symmetries[split.rows[1]]
  records, ballot = [], vote.Ballot()
  for mark, depth in enumerate(rollouts.marks):
    ballot = vote.Ballot()  # to which each breadth adds its share
    for fewer, breadth in zip((0, *breadths[:-1]), breadths, strict=True):
      for k in range(fewer, breadth):
        answers, q = rollouts.answers[:, k, mark], rollouts.q_halt[:, k, mark]
        for part in vote.parts(len(answers)):
          originals, keys = vote.undone(
            answers[part], symmetries[part], task.copies
          )
          ballot.add(
            questions[part], keys, vote.confidences(q[part]), originals
          )
      steps = float(rollouts.steps[:, :breadth, mark].sum())
      steps /= max(len(questions), 1)
      passes = vote.pass_at_k(ballot, pairs)
      records.append(
        {
          "depth": depth,
          "breadth": breadth,
          "select": "vote",
          "puzzles": len(questions),
        }
        | {f"pass@{k}": share for k, share in passes.items()}
        | {
          "mean_steps": steps / breadth,
          "flops_per_puzzle": steps * rollouts.flops_per_step,
        }
      )
  return records, ballot


def is_right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether answers are the labels: `[N, K, M, S]`, `[N, S]` to `[N, K, M]`.

  Tokens without a label count for nothing, as in `losses.score`.
  """
  labels = labels[:, None, None]
  return np.all((answers == labels) | (labels == 0), axis=-1)


def halting_steps(
  rollouts: Rollouts,
  settings: SolveConfig,
  solved: np.ndarray | None = None,
) -> np.ndarray:
  """When rollouts at fixed depth would have halted under a rule.

  Args:
    rollouts: with every depth from 1 among their marks.
    settings: the rule.
    solved: bool `[N, K, M]`, whether answers are solutions; for "solved".

  Returns:
    Supervision steps, int64 `[N, K]`.
  """
  depth = len(rollouts.marks)
  if rollouts.marks != tuple(range(1, depth + 1)):
    raise ValueError(f"marks={rollouts.marks}: every depth must be kept")
  stops = np.zeros(rollouts.steps.shape, bool)
  stops[:, :, -1] = True
  if "q" in settings.halt:
    stops |= rollouts.q_halt > np.float32(settings.threshold)
  if "residual" in settings.halt:
    stops |= rollouts.residual < np.float32(settings.tolerance)
  if "unchanged" in settings.halt:
    answers = rollouts.answers
    same = (answers[:, :, 1:] == answers[:, :, :-1]).all(-1)
    stood = np.zeros(stops.shape, int)
    for step in range(1, depth):
      stood[:, :, step] = (stood[:, :, step - 1] + 1) * same[:, :, step - 1]
    stops |= stood >= settings.patience
  if "solved" in settings.halt:
    assert solved is not None, "answers that were checked"
    stops |= solved
  return stops.argmax(-1) + 1


def share(name: str, values: np.ndarray) -> Record:
  """The mean of yes and no, and its standard error."""
  mean = float(np.mean(values))
  error = math.sqrt(mean * (1 - mean) / max(len(values), 1))
  return {name: mean, f"{name}_se": error}
