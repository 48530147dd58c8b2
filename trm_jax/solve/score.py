"""Scores of rollouts: depth x breadth from one run, and replayed halting.

The first k rollouts at an earlier mark equal a run of smaller breadth and
depth, so one run with the largest of both gives the whole grid. A run at fixed
depth with every step kept gives the scores of any halting rule.
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


def grid(
  rollouts: Rollouts,
  inputs: np.ndarray,
  labels: np.ndarray,
  task: Task,
  breadths: Sequence[int],
  selects: Sequence[str],
) -> list[Record]:
  """Scores every depth, breadth and selection rule, a record for each.

  `rollouts` are not pruned and of the largest breadth, `inputs` and `labels`
  (0 for no label) uint8 `[N, S]`. `oracle_accuracy` is the fraction of puzzles
  that any rollout gets right.
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
      hits = right[:, :breadth, mark] & (found.steps > 0)
      for select in selects:
        chosen = found.choose(select, valid[:, :breadth, mark])
        scores: Record = {}
        if labelled.any():
          scores |= fraction("exact_accuracy", hits[rows, chosen][labelled])
          scores |= fraction("oracle_accuracy", np.any(hits, 1)[labelled])
        if task.is_solution:
          scores |= fraction("valid_rate", valid[rows, chosen, mark])
        where = depth, breadth, select
        records.append(_record(rollouts, where, found.steps, scores))
  return records


def vote_grid(
  rollouts: Rollouts, split: Split, task: Task, breadths: Sequence[int]
) -> tuple[list[Record], vote.Ballot]:
  """Scores every depth and breadth if copies of puzzles vote, as in ARC.

  Every rollout of every copy has one vote. `breadths` must be ascending.
  Returns a record for each, with `pass@k`, and the ballot of the last.
  """
  assert split.symmetries is not None, "copies differ by a symmetry"
  questions, pairs = vote.questions_of(split, task)
  symmetries = split.symmetries[split.rows[1]]
  records, ballot = [], vote.Ballot()
  for mark, depth in enumerate(rollouts.marks):
    ballot = vote.Ballot()  # each breadth adds its votes
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
  """Seconds and speed of a run."""
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
  """Inputs `[N, K, M]` of the halting rules after each step.

  `rollouts` have fixed depth and a mark at every depth from 1; `solved` is
  bool `[N, K, M]`, whether answers are solutions.
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
  """Steps after which rollouts would halt by the rules, int64 `[N, K]`."""
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
  """Scores every halting rule at each limit in `tried`, without running it.

  `rollouts` have the fixed `depth` and a mark at every step. The first record
  is of the fixed depth; `rule` is the record's `SolveConfig`.
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
    hits = right[rows, 0, steps - 1][labels.any(-1)]
    records.append(halting_record(one, hits, steps, rollouts.flops_per_step))
  return records


def halting_record(
  settings: SolveConfig, right: np.ndarray, steps: np.ndarray, step_flops: float
) -> Record:
  """The record of right answers, bool `[N]`, after steps `[N]`."""
  mean = float(steps.mean())
  return {
    "rule": settings,
    "halt": settings.halting_label,
    **fraction("exact_accuracy", right),
    "mean_steps": mean,
    "flops_per_puzzle": mean * step_flops,
  }


def cheapest(records: Sequence[Record], within: float) -> list[Record]:
  """For each rule, the limit one stricter than the cheapest that is accurate.

  The cheapest itself may well halt other puzzles too early. `records` are from
  `replay`; accurate is to lose at most `within` percentage points.
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
  """Whether answers `[N, K, M, S]` equal the labels `[N, S]` that are not 0."""
  labels = labels[:, None, None]
  return np.all((answers == labels) | (labels == 0), axis=-1)


def fraction(name: str, values: np.ndarray) -> Record:
  """The mean of booleans and its standard error."""
  mean = float(np.mean(values))
  return {name: mean, f"{name}_se": standard_error(mean, len(values))}
