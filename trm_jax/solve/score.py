"""Scores of rollouts: depth x breadth in one pass, and halting replayed.

The first k rollouts of a puzzle at an earlier mark are what a smaller breadth
and depth would have given, so one run with the largest of both gives the whole
grid. In the same way a run at fixed depth that keeps every step tells what any
halting rule would have done.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_jax.data.task import Split, Task, judge
from trm_jax.solve import vote
from trm_jax.solve.choose import Answers
from trm_jax.solve.evaluate import passes, standard_error
from trm_jax.solve.rules import RULES, SolveConfig, Values
from trm_jax.solve.solver import Rollouts

Record = dict[str, Any]

# Answers that are checked by a task's rules at a time.
_CHUNK = 4096


def grid(
  rollouts: Rollouts,
  inputs: np.ndarray,
  labels: np.ndarray,
  task: Task,
  breadths: Sequence[int],
  selects: Sequence[str],
) -> list[Record]:
  """Scores every depth, breadth and selection rule.

  Args:
    rollouts: those of the largest breadth, not pruned.
    inputs: uint8 `[N, S]`.
    labels: uint8 `[N, S]`, 0 where there is nothing to compare with.
    task: their task.
    breadths: how many rollouts to choose from.
    selects: selection rules.

  Returns:
    A record for each, with `oracle_accuracy` the fraction of puzzles that any
    of the rollouts gets right.
  """
  labelled = np.any(labels, axis=-1)
  right = is_right(rollouts.answers, labels)
  valid = np.zeros(right.shape, bool)
  if task.is_solution:
    valid = judge(inputs, rollouts.answers, task)
  rows, records = np.arange(len(inputs)), []
  for mark, depth in enumerate(rollouts.marks):
    for breadth in breadths:
      found = Answers.of(rollouts, mark, breadth)
      there = right[:, :breadth, mark] & (found.steps > 0)
      for select in selects:
        chosen = found.choose(select, valid[:, :breadth, mark])
        scores: Record = {}
        if labelled.any():
          scores |= fraction("exact_accuracy", there[rows, chosen][labelled])
          scores |= fraction("oracle_accuracy", np.any(there, 1)[labelled])
        if task.is_solution:
          scores |= fraction("valid_rate", valid[rows, chosen, mark])
        where = depth, breadth, select
        records.append(_record(rollouts, where, found.steps, scores))
  return records


def vote_grid(
  rollouts: Rollouts, split: Split, task: Task, breadths: Sequence[int]
) -> tuple[list[Record], vote.Ballot]:
  """Scores every depth and breadth where copies of puzzles vote, as in ARC.

  All rollouts of all copies have one vote each. `breadths` must be ascending.

  Returns:
    A record for each, with `pass@k`. And the ballot of the last depth and the
    largest breadth, with its answers.
  """
  assert split.symmetries is not None, "copies differ by a symmetry"
  questions, pairs = vote.questions_of(split, task)
  symmetries = split.symmetries[split.rows[1]]
  records, ballot = [], vote.Ballot()
  for mark, depth in enumerate(rollouts.marks):
    ballot = vote.Ballot()  # to which each breadth adds its votes
    for fewer, breadth in zip((0, *breadths[:-1]), breadths, strict=True):
      for k in range(fewer, breadth):
        originals, keys = vote.unviewed(
          rollouts.answers[:, k, mark], symmetries, task
        )
        q = vote.confidences(rollouts.q_halt[:, k, mark])
        ballot.add(questions, keys, q, originals)
      where = depth, breadth, "vote"
      steps = rollouts.steps[:, :breadth, mark]
      scores = passes(ballot, pairs)
      records.append(_record(rollouts, where, steps, scores))
  return records, ballot


def _record(rollouts: Rollouts, where, steps: np.ndarray, scores) -> Record:
  depth, breadth, select = where
  mean = float(steps.sum()) / max(len(steps), 1)
  return {
    "depth": depth,
    "breadth": breadth,
    "select": select,
    "puzzles": len(steps),
    **scores,
    "mean_steps": mean / breadth,
    "flops_per_puzzle": mean * rollouts.flops_per_step,
  }


def throughput(rollouts: Rollouts) -> Record:
  """How fast it went, over all rollouts."""
  count, breadth = rollouts.halted.shape
  return {
    "seconds": rollouts.seconds,
    "puzzles_per_second": count / rollouts.seconds,
    "rollouts_per_second": count * breadth / rollouts.seconds,
    "flops_per_puzzle": rollouts.flops_per_puzzle,
  }


def halting_values(
  rollouts: Rollouts, solved: np.ndarray | None = None
) -> Values:
  """What halting rules look at after each step, `[N, K, M]`.

  Args:
    rollouts: at fixed depth, with every depth from 1 among their marks.
    solved: bool `[N, K, M]`, whether answers are solutions; for "solved".
  """
  depth = len(rollouts.marks)
  if rollouts.marks != tuple(range(1, depth + 1)):
    raise ValueError(f"marks={rollouts.marks}: every depth must be kept")
  answers, shape = rollouts.answers, rollouts.steps.shape
  unchanged = np.zeros(shape, int)
  for k in range(1, depth):
    same = (answers[:, :, k] == answers[:, :, k - 1]).all(-1)
    unchanged[:, :, k] = (unchanged[:, :, k - 1] + 1) * same
  return Values(
    margin=rollouts.q_halt,
    residual=rollouts.residual,
    unchanged=unchanged,
    solved=np.zeros(shape, bool) if solved is None else solved,
  )


def halting_steps(values: Values, settings: SolveConfig) -> np.ndarray:
  """When rollouts would have halted by the rules, in steps, int64 `[N, K]`."""
  stops = np.zeros(values.margin.shape, bool)
  stops[:, :, -1] = True
  for rule in RULES:
    limit = np.dtype(rule.dtype).type(settings.limit(rule))
    stops |= rule.halts(values, limit)
  return stops.argmax(-1) + 1


def replay(
  rollouts: Rollouts,
  inputs: np.ndarray,
  labels: np.ndarray,
  task: Task,
  depth: int,
) -> list[Record]:
  """What every halting rule would have given, at each limit in `tried`.

  Args:
    rollouts: at the fixed depth, with every step among their marks.
    inputs: uint8 `[N, S]`.
    labels: uint8 `[N, S]`.
    task: their task.
    depth: the fixed depth.

  Returns:
    A record for the fixed depth, and one for each limit of each rule, with
    the `SolveConfig` as `rule`.
  """
  right = is_right(rollouts.answers, labels)
  checked = None
  if task.is_solution:
    checked = judge(inputs, rollouts.answers, task)
  values = halting_values(rollouts, checked)
  fixed = SolveConfig(depth=depth)
  settings = [fixed] + [
    dataclasses.replace(
      fixed, halt=(rule.name,), **({rule.field: limit} if rule.field else {})
    )
    for rule in RULES
    if rule.name != "solved" or task.is_solution
    for limit in rule.tried
  ]
  rows, records = np.arange(len(inputs)), []
  for one in settings:
    steps = halting_steps(values, one)[:, 0]
    then = right[rows, 0, steps - 1][labels.any(-1)]
    records.append(halting_record(one, then, steps, rollouts.flops_per_step))
  return records


def halting_record(
  settings: SolveConfig, right: np.ndarray, steps: np.ndarray, step_flops: float
) -> Record:
  """What halting gave: right answers, bool `[N]`, after steps `[N]`."""
  mean = float(steps.mean())
  return {
    "rule": settings,
    "halt": settings.halting_label,
    **fraction("exact_accuracy", right),
    "mean_steps": mean,
    "flops_per_puzzle": mean * step_flops,
  }


def cheapest(records: Sequence[Record], within: float) -> list[Record]:
  """Of each rule the cheapest limit that costs little, but one notch on.

  A limit that is just good enough here is as likely as not to halt other
  puzzles too early.

  Args:
    records: as `replay` gives them.
    within: points of accuracy that may be lost.
  """
  fixed, *others = records
  chosen = []
  for rule in RULES:
    found = [record for record in others if record["rule"].halt == (rule.name,)]
    lost = [fixed["exact_accuracy"] - r["exact_accuracy"] for r in found]
    bad = [i for i, x in enumerate(lost) if 100 * x > within + 1e-9]
    first = max(bad, default=-1) + 1
    if first < len(found):
      chosen.append(found[min(first + 1, len(found) - 1)])
  return chosen


def is_right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether answers are the labels: `[N, K, M, S]`, `[N, S]` to `[N, K, M]`.

  Tokens without a label count for nothing, as in `losses.score`.
  """
  labels = labels[:, None, None]
  return np.all((answers == labels) | (labels == 0), axis=-1)


def fraction(name: str, values: np.ndarray) -> Record:
  """The mean of yes and no, and its standard error."""
  mean = float(np.mean(values))
  return {name: mean, f"{name}_se": standard_error(mean, len(values))}
