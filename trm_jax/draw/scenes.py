"""Collects what to draw of a puzzle: examples, copies and a model's answers."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from trm_jax.core import hashing
from trm_jax.data.task import Split, Task, judge, show
from trm_jax.solve import vote

_MOST_EXAMPLES = 3  # per puzzle; more would be too small side by side


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """A question and its answer.

  Attributes:
    question: integers [S], tokens.
    label: integers [S], the right answer; all 0 if unknown.
    title: a caption; may have several lines.
  """

  question: np.ndarray
  label: np.ndarray
  title: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Guess:
  """A model's answer to a question.

  Attributes:
    answer: integers [S], tokens.
    halting: the halting probability, which predicts that it is right.
    is_solution: whether it solves the puzzle by the rules of the task.
    before: integers [S], an earlier answer, to frame cells that changed; None
      for no frames.
    title: a caption.
  """

  answer: np.ndarray
  halting: float
  is_solution: bool = False
  before: np.ndarray | None = None
  title: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """Everything to draw of one puzzle.

  Attributes:
    asked: the questions, one or more.
    guesses: a model's answer to each, or empty.
    shown: in ARC, the solved examples that define the task.
    copies: augmented copies.
    name: the puzzle's name.
  """

  asked: Sequence[Example]
  guesses: Sequence[Guess] = ()
  shown: Sequence[Example] = ()
  copies: Sequence[Example] = ()
  name: str = ""


def scenes_of(
  split: Split,
  task: Task,
  *,
  examples: Split | None = None,
  copies: int = 0,
  seed: int = 0,
) -> list[Scene]:
  """Collects the questions, examples and copies of each group of a split.

  Args:
    split: the puzzles.
    task: their task.
    examples: a split whose groups of the same names are the examples.
    copies: copies to show of each puzzle: those of the split, or otherwise
      random ones of `Task.augmentation`.
    seed: of the random copies.

  Returns:
    One scene per group.
  """
  examples_at = {}
  if examples is not None:
    firsts = examples.first_puzzle[: len(examples.names)].tolist()
    examples_at = dict(zip(examples.names, firsts, strict=True))
  scenes = []
  for group in range(len(split)):
    first, end = split.first_puzzle[group : group + 2].tolist()
    asked = _examples(split, first, task, "question")
    if split.symmetries is not None:
      others = range(first + 1, min(first + 1 + copies, end))
      copied = [_copy(split, puzzle, task) for puzzle in others]
    else:
      copied = _augmented(asked[0], task, copies, seed)
    name = split.names[group] if split.names else ""
    shown = []
    if examples is not None and name in examples_at:
      shown = _examples(examples, examples_at[name], task, "example")
    scenes.append(Scene(asked, (), shown, copied, name))
  return scenes


def with_answers(
  scenes: Sequence[Scene],
  task: Task,
  answers: np.ndarray,
  q_halt: np.ndarray,
  first_step: int = 1,
) -> list[list[Scene]]:
  """Adds a model's answers, from `evaluate.refine`.

  Args:
    scenes: the puzzles.
    task: their task.
    answers: integers [D, B, S], after each supervision step, to the questions
      of all scenes in order.
    q_halt: float [D, B], halting logits.
    first_step: the number of the first of these steps.

  Returns:
    The scenes after each of the D steps.
  """
  solved = np.zeros(q_halt.shape, bool)
  if task.is_solution:
    solved = judge(questions(scenes), answers.swapaxes(0, 1), task).T
  halting = vote.confidences(q_halt)
  frames = []
  for step in range(len(answers)):
    rows = itertools.count()
    frames.append([
      dataclasses.replace(
        scene,
        guesses=[
          Guess(
            answer=answers[step, row],
            halting=float(halting[step, row]),
            is_solution=bool(solved[step, row]),
            before=answers[step - 1, row] if step else None,
            title=f"depth {first_step + step}",
          )
          for row in itertools.islice(rows, len(scene.asked))
        ],
      )
      for scene in scenes
    ])  # fmt: skip
  return frames


def questions(scenes: Sequence[Scene]) -> np.ndarray:
  """All questions of the scenes, integers [B, S]."""
  return np.stack([asked.question for scene in scenes for asked in scene.asked])


def verdict(example: Example, guess: Guess, task: Task) -> str:
  """Describes in a few words how right an answer is; "" without a label."""
  if not np.any(example.label):
    return ""
  # Compared as text, as padding does not matter.
  found, right = task.render(guess.answer), task.render(example.label)
  if found == right:
    return "right"
  if guess.is_solution:
    return "another solution"
  (height, width), (rows, columns) = (
    extent(task.rows(tokens)) for tokens in (guess.answer, example.label)
  )
  if (height, width) != (rows, columns):
    return f"{height}x{width}, not {rows}x{columns}"
  wrong = sum(ours != theirs for ours, theirs in zip(found, right, strict=True))
  return f"{wrong} cell{'s'[: wrong - 1]} wrong"


def extent(rows: Sequence[str]) -> tuple[int, int]:
  """Height and width of a grid from `Task.rows`."""
  return len(rows), len(rows[0]) if rows else 0


def _examples(
  split: Split, puzzle: int, task: Task, word: str
) -> list[Example]:
  """The first examples of a puzzle, as it shows them."""
  first, count = split.first_example[puzzle], split.num_examples[puzzle]
  places = np.arange(first, first + min(count, _MOST_EXAMPLES))
  shown = show(split, places, np.full(len(places), puzzle), task)
  move = np.asarray if split.symmetries is None else _at_origin
  return [
    Example(
      move(question),
      move(label),
      f"{word} {number} of {count}" if count > 1 else word,
    )
    for number, (question, label) in enumerate(
      zip(*map(np.asarray, shown), strict=True), 1
    )
  ]


def _at_origin(tokens: np.ndarray) -> np.ndarray:
  """Moves the grid on a canvas to its top left."""
  side = math.isqrt(len(tokens))
  canvas = tokens.reshape(side, side)
  row, column = (canvas.any(axis).argmax() for axis in (1, 0))
  return np.roll(canvas, (-row, -column), (0, 1)).reshape(-1)


def _copy(split: Split, puzzle: int, task: Task) -> Example:
  assert task.copies and split.symmetries is not None, "a task with copies"
  example = _examples(split, puzzle, task, "")[0]
  title = task.copies.describe(split.symmetries[puzzle])
  return dataclasses.replace(example, title=title)


def _augmented(
  example: Example, task: Task, count: int, seed: int
) -> list[Example]:
  if not task.augmentation or not count:
    return []
  keys = jax.random.split(hashing.base_key(seed), count)
  copies = _augment(keys, example.question, example.label, task)
  return [
    Example(question, label, f"copy {number + 1}")
    for number, (question, label) in enumerate(
      zip(*jax.device_get(copies), strict=True)
    )
  ]


@functools.partial(jax.jit, static_argnames="task")
def _augment(keys, question, label, task):
  augment = jax.vmap(task.augmentation.augment, in_axes=(0, None, None))
  return augment(keys, question, label)
