"""Voting among the rollouts or the augmented copies of a puzzle.

Votes are counted per *question*: a puzzle, or in ARC a test input of a task. A
vote is an answer, mapped back to the original, and a confidence. Answers are
compared by key, a 64-bit hash. As in the reference, candidates are ranked by
votes, then by mean confidence, then by which came first.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.core.hashing import mix
from trm_jax.data.task import Split, Task

# k of pass@k; the competition allows two attempts.
KS = (1, 2, 5, 10, 100, 1000)

_CHUNK = 2048  # rows mapped back at a time


def fingerprints(tokens, xp):
  """Hashes tokens [..., S] to uint32 [..., 2], equally in numpy and jax.numpy.

  Each half is `sum_i a_i * tokens_i` modulo 2**32 with fixed odd multipliers,
  then a one-to-one mix. Sequences that differ in one token never collide;
  others, with tokens below 12, collide for at most one in 2**56 choices of the
  multipliers. `xp` is `numpy` or `jax.numpy`.
  """
  tokens = xp.asarray(tokens).astype(xp.uint32)
  sums = [
    (tokens * xp.broadcast_to(half, tokens.shape)).sum(-1, dtype=xp.uint32)
    for half in _multipliers(tokens.shape[-1])
  ]
  return mix(xp.stack(sums, axis=-1))


@functools.cache
def _multipliers(length):
  """Odd uint32 [2, length]: mixed multiples of the golden ratio."""
  numbers = np.arange(1, 2 * length + 1, dtype=np.uint32)
  return (mix(numbers * np.uint32(0x9E3779B9)) | 1).reshape(2, length)


def as_keys(prints: np.ndarray) -> np.ndarray:
  """Joins the halves of fingerprints: uint32 [..., 2] to uint64 [...]."""
  halves = np.asarray(prints).astype(np.uint64)
  return halves[..., 0] << np.uint64(32) | halves[..., 1]


def confidences(q_halt: np.ndarray) -> np.ndarray:
  """Sigmoids of halting logits, float64: float32 means could tie by chance."""
  with np.errstate(over="ignore"):  # exp(-q) is infinite, which gives 0
    return 1 / (1 + np.exp(-np.asarray(q_halt, np.float64)))


class Tally(NamedTuple):
  """Counts of M votes for C different answers."""

  candidate: np.ndarray  # int64 [M], index of each vote's answer
  first: np.ndarray  # int64 [C], index of each answer's first vote
  count: np.ndarray  # int64 [C], votes
  q: np.ndarray  # float64 [C], mean confidence


def tally(questions: np.ndarray, keys: np.ndarray, q: np.ndarray) -> Tally:
  """Counts votes, given as in `Ballot.add`."""
  order = np.lexsort((keys, questions))  # stable: the first vote comes first
  is_new = np.ones(len(order), bool)
  is_new[1:] = (np.diff(questions[order]) != 0) | (np.diff(keys[order]) != 0)
  candidate = np.empty_like(order)
  candidate[order] = np.cumsum(is_new) - 1
  first = order[is_new]
  count = np.bincount(candidate, minlength=len(first))
  total = np.bincount(candidate, q, minlength=len(first))
  return Tally(candidate, first, count, total / np.maximum(count, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """An answer to a question."""

  key: int
  count: int  # votes
  q: float  # mean confidence
  answer: np.ndarray | None  # uint8 [S]; None if votes came without answers


class Ballot:
  """Votes on any number of questions."""

  def __init__(self):
    self._votes = [(np.zeros(0, int), np.zeros(0, np.uint64), np.zeros(0))]
    self._answers: dict[tuple[int, int], np.ndarray] = {}
    self._rankings: dict[int, list[Candidate]] | None = None

  def add(
    self,
    questions: np.ndarray,
    keys: np.ndarray,
    q: np.ndarray,
    answers: np.ndarray | None = None,
  ):
    """Adds votes.

    Args:
      questions: integers [M], the question of each vote.
      keys: uint64 [M], the keys of the answers.
      q: float [M], confidences; NaN counts as 0.
      answers: uint8 [M, S], tokens mapped back to the original, of which one
        per key is kept; None if only scores are needed.
    """
    q = np.nan_to_num(np.asarray(q, np.float64))
    self._votes.append((questions, keys, q))
    self._rankings = None
    if answers is not None:
      for row in tally(questions, keys, q).first.tolist():
        place = int(questions[row]), int(keys[row])
        if place not in self._answers:
          self._answers[place] = np.asarray(answers[row], np.uint8).copy()

  def ranking(self, question: int) -> list[Candidate]:
    """The answers to a question, the best first."""
    if self._rankings is None:
      self._rankings = self._rank()
    return self._rankings.get(question, [])

  def place(self, question: int, key: int | None) -> float:
    """The rank of an answer from 0; infinite if it has no vote."""
    keys = [candidate.key for candidate in self.ranking(question)]
    return keys.index(key) if key in keys else math.inf

  def _rank(self) -> dict[int, list[Candidate]]:
    questions, keys, q = map(np.concatenate, zip(*self._votes, strict=True))
    found = tally(questions, keys, q)
    rankings = collections.defaultdict(list)
    for i in np.lexsort((found.first, -found.q, -found.count)).tolist():
      question, key = int(questions[found.first[i]]), int(keys[found.first[i]])
      answer = self._answers.get((question, key))
      rankings[question].append(
        Candidate(key, int(found.count[i]), float(found.q[i]), answer)
      )
    return dict(rankings)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A test pair of a task; pairs with the same input are one question."""

  task: str
  question: int
  label: int | None  # the key of the output, None if unknown


def pass_at_k(
  ballot: Ballot, pairs: Sequence[Pair], ks: Sequence[int] = KS
) -> dict[int, float]:
  """The score of a vote: are labels among the first k candidates?

  Args:
    ballot: the votes.
    pairs: all test pairs. A task without any label is not scored. In one with
      some labels, pairs without a label count as not solved, as in the
      reference.
    ks: numbers of candidates.

  Returns:
    For each k, the mean over the scored tasks of the fraction of their pairs
    that are solved. Empty if there is no label.
  """
  tasks = [
    members
    for members in _by_task(pairs).values()
    if any(pair.label is not None for pair in members)
  ]
  if not tasks:
    return {}
  solved = dict.fromkeys(ks, 0.0)
  for members in tasks:
    places = [ballot.place(pair.question, pair.label) for pair in members]
    for k in ks:
      solved[k] += sum(place < k for place in places) / len(members)
  return {k: fraction / len(tasks) for k, fraction in solved.items()}


def submission(
  ballot: Ballot, pairs: Sequence[Pair], task: Task, *, attempts: int = 2
) -> dict[str, list[dict[str, list[list[int]]]]]:
  """The best candidates in the format of the Kaggle competition.

  Returns:
    For each task, for each of its pairs, grids "attempt_1", "attempt_2" ...
    Missing candidates are the best one, or `[[0]]` if there is none.
  """

  def grids_of(pair: Pair) -> dict[str, list[list[int]]]:
    best = ballot.ranking(pair.question)[:attempts]
    shown = [task.decode(np.asarray(one.answer)) for one in best] or [[[0]]]
    shown += shown[:1] * (attempts - len(shown))
    return {f"attempt_{n}": grid for n, grid in enumerate(shown, 1)}

  return {
    name: [grids_of(pair) for pair in members]
    for name, members in _by_task(pairs).items()
  }


def _by_task(pairs):
  tasks: dict[str, list[Pair]] = {}
  for pair in pairs:
    tasks.setdefault(pair.task, []).append(pair)
  return tasks


def questions_of(split: Split, task: Task) -> tuple[np.ndarray, list[Pair]]:
  """Numbers the questions of a test split.

  Groups of the split are tasks, puzzles are their copies with the original
  first, and examples are test pairs; a label of zeros is unknown.

  Returns:
    int32 [M], the question of each row of `split.rows`.
    The pairs of each group's first puzzle, in order.
  """
  examples, puzzles = split.rows
  names = split.names or tuple(map(str, range(len(split))))
  groups = np.repeat(np.arange(len(split)), np.diff(split.first_puzzle))
  tasks = [names[group] for group in groups[puzzles].tolist()]
  symmetries = None
  if split.is_viewed and split.symmetries is not None:
    symmetries = split.symmetries[puzzles]
  keys = _keys(split.inputs, examples, symmetries, task)
  numbers: dict[tuple[str, int], int] = {}
  questions = [
    numbers.setdefault(place, len(numbers))
    for place in zip(tasks, keys.tolist(), strict=True)
  ]
  # The rows of the originals are the pairs, in the same order.
  rows = np.flatnonzero(np.isin(puzzles, split.first_puzzle[:-1]))
  labels = _keys(
    split.labels, examples[rows],
    None if symmetries is None else symmetries[rows], task,
  )  # fmt: skip
  is_known = np.any(split.labels[examples[rows]], axis=-1)
  pairs = [
    Pair(tasks[row], questions[row], label if known else None)
    for row, label, known in zip(
      rows.tolist(), labels.tolist(), is_known.tolist(), strict=True
    )
  ]
  return np.array(questions, np.int32), pairs


def _keys(tokens, examples, symmetries, task):
  """The keys of rows of `tokens`, mapped back to their originals."""
  if symmetries is None:  # hash each example once
    used, places = np.unique(examples, return_inverse=True)
    return as_keys(fingerprints(tokens[used], np))[places]
  return unviewed(tokens[examples], symmetries, task)[1]


def originals(tokens: jax.Array, symmetries: jax.Array, task: Task):
  """Maps tokens `[M, S]` of copies back to their originals; to be traced."""
  assert task.copies and task.copies.undo, "a task with copies"
  return jax.vmap(task.copies.undo)(symmetries, tokens)


def unviewed(
  tokens: np.ndarray, symmetries: np.ndarray, task: Task
) -> tuple[np.ndarray, np.ndarray]:
  """Maps tokens of copies, uint8 [M, S], back; returns them and their keys."""
  shown, prints = np.zeros_like(tokens), np.zeros((len(tokens), 2), np.uint32)
  for first in range(0, len(tokens), _CHUNK):
    part = slice(first, first + _CHUNK)
    shown[part], prints[part] = jax.device_get(
      _unviewed(tokens[part], symmetries[part], task)
    )
  return shown, as_keys(prints)


@functools.partial(jax.jit, static_argnames="task")
def _unviewed(tokens, symmetries, task):
  found = originals(tokens, symmetries, task)
  return found, fingerprints(found, jnp)
