"""Voting: the augmented copies of a puzzle answer together.

A *question* is a test input of a task, and each copy of the task that is asked
it casts a vote: its answer mapped back to the original, and how sure it is.
Answers are compared by key, a hash of 64 bits, so that devices and processes
need pass on no more than that; one example of each answer is kept.

Candidates are ranked as in the reference: by votes, then by mean sureness,
then by which came first.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.core.hashing import mix
from trm_jax.data.task import Split, Symmetry, Task

# Ranks that are scored; two attempts a question are what the competition asks.
KS = (1, 2, 5, 10, 100, 1000)

# Rows mapped back at a time: large enough to hide the calls' overhead.
_CHUNK = 2048


def fingerprints(tokens, xp):
  """Hashes token sequences, to the same bits on the host and on devices.

  Each half of the hash is `sum_i a_i * tokens_i` modulo 2**32, with fixed odd
  multipliers `a_i` without pattern, and then a one-to-one mix. Sequences that
  differ in one token never collide. Others, with tokens below 12, do so for
  at most one in 2**56 choices of the multipliers: of the 2**31 values that a
  multiplier can take in each half, no more than 2**3 make two given sums
  equal, for 2**3 is the highest power of two in a difference of tokens.

  Args:
    tokens: integers [..., S].
    xp: `numpy`, or `jax.numpy`, in which it can be traced.

  Returns:
    uint32 [..., 2].
  """
  tokens = xp.asarray(tokens).astype(xp.uint32)
  multipliers = _multipliers(tokens.shape[-1])
  sums = [
    (tokens * xp.broadcast_to(half, tokens.shape)).sum(-1, dtype=xp.uint32)
    for half in multipliers
  ]
  return mix(xp.stack(sums, axis=-1))


@functools.cache
def _multipliers(length):
  """Odd uint32 [2, length], the same in every process."""
  # Multiples of the golden ratio, mixed: a simple generator of random numbers.
  numbers = np.arange(1, 2 * length + 1, dtype=np.uint32)
  return (mix(numbers * np.uint32(0x9E3779B9)) | 1).reshape(2, length)


def as_keys(prints: np.ndarray) -> np.ndarray:
  """Joins the halves of fingerprints: uint32 [..., 2] to uint64 [...]."""
  halves = np.asarray(prints).astype(np.uint64)
  return halves[..., 0] << np.uint64(32) | halves[..., 1]


def confidences(q_halt: np.ndarray) -> np.ndarray:
  """The halting head's belief that an answer is right.

  Args:
    q_halt: float [...], its logits.

  Returns:
    float64 [...], their sigmoid, computed in float64: means of float32
    numbers would tie, or not, by chance.
  """
  with np.errstate(over="ignore"):  # exp(-q) is infinite, which gives 0
    return 1 / (1 + np.exp(-np.asarray(q_halt, np.float64)))


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """An answer that was given to a question.

  Attributes:
    key: its fingerprint.
    count: how many votes it has.
    q: their mean confidence.
    answer: uint8 [S], its tokens; None if votes came without answers.
  """

  key: int
  count: int
  q: float
  answer: np.ndarray | None


class Ballot:
  """Votes on any number of questions.

  A million votes take about a second, and less than a kilobyte for each
  answer that is unlike all others to its question.
  """

  def __init__(self):
    # Of each question, by key: votes, the sum of confidences, and the answer.
    # Python's dicts keep the order in which keys came first.
    self._votes: dict[int, dict[int, list]] = {}

  def add(
    self,
    questions: np.ndarray,
    keys: np.ndarray,
    q: np.ndarray,
    answers: np.ndarray | None = None,
  ):
    """Adds votes; in how many parts they come makes no difference.

    Args:
      questions: integers [M], the question that each vote answers.
      keys: uint64 [M], of the answers.
      q: float [M], how sure each is, as `confidences` gives it; a NaN counts
        as 0.
      answers: uint8 [M, S], tokens mapped back to the original; or None,
        where only scores are wanted.
    """
    q = np.nan_to_num(np.asarray(q, np.float64))
    votes = zip(questions.tolist(), keys.tolist(), q.tolist(), strict=True)
    for row, (question, key, sure) in enumerate(votes):
      candidates = self._votes.setdefault(question, {})
      if key in candidates:
        candidate = candidates[key]
        candidate[0] += 1
        candidate[1] += sure
      else:
        answer = None if answers is None else answers[row].tobytes()
        candidates[key] = [1, sure, answer]

  def ranking(self, question: int) -> list[Candidate]:
    """The answers given to a question, the best first."""
    return [
      Candidate(
        key=key,
        count=count,
        q=total / count,
        answer=None if answer is None else np.frombuffer(answer, np.uint8),
      )
      for key, (count, total, answer) in self._ranked(question)
    ]

  def place(self, question: int, key: int | None) -> float:
    """How many candidates rank before an answer; infinite if nobody gave it."""
    if key not in self._votes.get(question, {}):
      return math.inf
    return [other for other, _ in self._ranked(question)].index(key)

  def _ranked(self, question):
    return sorted(
      self._votes.get(question, {}).items(),
      key=lambda item: (item[1][0], item[1][1] / item[1][0]),
      reverse=True,
    )


@dataclasses.dataclass(frozen=True)
class Pair:
  """A test pair of a task.

  Attributes:
    task: the task's name.
    question: the number of its input; pairs of a task with the same input are
      one question.
    label: the key of its output, None if that is not known.
  """

  task: str
  question: int
  label: int | None


def pass_at_k(
  ballot: Ballot, pairs: Sequence[Pair], ks: Sequence[int] = KS
) -> dict[int, float]:
  """Scores a vote: are labels among the first k candidates?

  Args:
    ballot: the votes.
    pairs: all test pairs. A task of which no label is known is not scored. Of
      one with some labels, pairs without count as not solved, as they do in
      the reference: the score is then a lower bound.
    ks: how many candidates may be tried.

  Returns:
    For each k the mean over the scored tasks of the share of their pairs that
    are solved. Nothing if no label is known.
  """
  tasks = [
    members
    for members in _by_task(pairs).values()
    if any(pair.label is not None for pair in members)
  ]
  if not tasks:
    return {}
  shares = dict.fromkeys(ks, 0.0)
  for members in tasks:
    places = [ballot.place(pair.question, pair.label) for pair in members]
    for k in ks:
      shares[k] += sum(place < k for place in places) / len(members)
  return {k: share / len(tasks) for k, share in shares.items()}


def submission(
  ballot: Ballot, pairs: Sequence[Pair], task: Task, *, attempts: int = 2
) -> dict[str, list[dict[str, list[list[int]]]]]:
  """The best candidates, in the form that the Kaggle competition asks for.

  Args:
    ballot: the votes, given with answers.
    pairs: all test pairs.
    task: theirs.
    attempts: candidates a pair. Where there are fewer, the best is repeated;
      where there are none, the grid is `[[0]]`.

  Returns:
    For each task, for each of its pairs, "attempt_1", "attempt_2" ...: grids.
  """
  return {
    name: [
      _attempts(ballot.ranking(pair.question)[:attempts], attempts, task)
      for pair in members
    ]
    for name, members in _by_task(pairs).items()
  }


def _attempts(candidates, count, task):
  shown = [task.decode(c.answer) for c in candidates] or [[[0]]]
  shown += shown[:1] * (count - len(shown))
  return {f"attempt_{n}": grid for n, grid in enumerate(shown, 1)}


def _by_task(pairs):
  tasks: dict[str, list[Pair]] = {}
  for pair in pairs:
    tasks.setdefault(pair.task, []).append(pair)
  return tasks


def questions_of(split: Split, task: Task) -> tuple[np.ndarray, list[Pair]]:
  """Numbers the questions of a test split.

  Args:
    split: groups are tasks, puzzles are their copies with the original first,
      and examples are test pairs; a label that is all 0 is not known.
    task: theirs.

  Returns:
    int32 [M], which question each row of `split.rows` asks.
    The pairs of each group's first puzzle, in their order.
  """
  examples, puzzles = split.rows
  names = split.names or tuple(map(str, range(len(split))))
  groups = np.repeat(np.arange(len(split)), np.diff(split.first_puzzle))
  tasks = [names[group] for group in groups[puzzles].tolist()]
  shown_by = None
  if split.is_viewed and split.symmetries is not None:
    shown_by = split.symmetries[puzzles]
  keys = _keys(split.inputs, examples, shown_by, task.copies)
  numbers: dict[tuple[str, int], int] = {}
  questions = [
    numbers.setdefault(asked, len(numbers))
    for asked in zip(tasks, keys.tolist(), strict=True)
  ]
  # The rows of the originals are the pairs, in the same order.
  rows = np.flatnonzero(np.isin(puzzles, split.first_puzzle[:-1]))
  labels = _keys(
    split.labels,
    examples[rows],
    None if shown_by is None else shown_by[rows],
    task.copies,
  )
  is_known = np.any(split.labels[examples[rows]], axis=-1)
  pairs = [
    Pair(tasks[row], questions[row], label if known else None)
    for row, label, known in zip(
      rows.tolist(), labels.tolist(), is_known.tolist(), strict=True
    )
  ]
  return np.array(questions, np.int32), pairs


def _keys(tokens, examples, symmetries, copies):
  """The keys of examples, as their originals show them.

  Args:
    tokens: uint8 [N, S].
    examples: integers [M], rows of `tokens`.
    symmetries: uint8 [M, K], as which they are shown; None for originals.
    copies: `Task.copies`.

  Returns:
    uint64 [M].
  """
  if symmetries is None:  # then copies share few examples
    used, places = np.unique(examples, return_inverse=True)
    return as_keys(fingerprints(tokens[used], np))[places]
  keys = [
    undone(tokens[examples[part]], symmetries[part], copies)[1]
    for part in parts(len(examples))
  ]
  return np.concatenate([np.zeros(0, np.uint64), *keys])


def parts(count: int) -> list[slice]:
  """Cuts rows into parts of a size that suits `undone`."""
  return [slice(first, first + _CHUNK) for first in range(0, count, _CHUNK)]


def undone(
  tokens: np.ndarray, symmetries: np.ndarray, copies: Symmetry
) -> tuple[np.ndarray, np.ndarray]:
  """Maps what copies show back to their originals.

  Args:
    tokens: uint8 [M, S].
    symmetries: uint8 [M, K], of the copies.
    copies: `Task.copies`.

  Returns:
    uint8 [M, S], the tokens as the originals show them.
    uint64 [M], their keys.
  """
  originals, prints = jax.device_get(_undone(tokens, symmetries, copies))
  return originals, as_keys(prints)


@functools.partial(jax.jit, static_argnames="copies")
def _undone(tokens, symmetries, copies):
  originals = jax.vmap(copies.undo)(symmetries, tokens)
  return originals, fingerprints(originals, jnp)
