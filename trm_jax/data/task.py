"""The record of a task, through which the rest of the package uses it.

A task is one folder, registered by one line of `datasets`.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from trm_jax.data.text import A_LINE, Layout
from trm_jax.errors import UserError

BLANK = "<blank>"  # the name of puzzle id 0

_CHUNK = 4096  # answers judged together, to bound the memory


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a dataset, in host memory.

  Examples are pairs of a question and an answer. A *puzzle* is a set of
  examples that share one row of the puzzle-embedding table, and a *group* is
  a puzzle with its augmented copies, of which a pass over the data shows one.
  In Sudoku the three are the same; an ARC task is a group, its copies are
  puzzles, and its pairs of grids are examples.

  Attributes:
    inputs: uint8 [N, S], question tokens of each example.
    labels: uint8 [N, S], answer tokens; 0 marks a token without a label.
    puzzle_ids: int32 [Q], each puzzle's row of the puzzle-embedding table.
    first_puzzle: int32 [G + 1]; group g has puzzles `first_puzzle[g]` to
      `first_puzzle[g + 1] - 1`.
    first_example: int32 [Q], the first example of each puzzle. Copies that
      are made on the device share the examples of their original.
    num_examples: int32 [Q], examples of each puzzle, 1 or more.
    symmetries: uint8 [Q, K], how each puzzle differs from its group's
      original, as `Task.copies` takes it; None if there are no copies.
    is_viewed: whether examples are stored as their puzzle shows them;
      otherwise they are stored as originals, see `show`.
    names: the name of each group, or empty.
  """

  inputs: np.ndarray
  labels: np.ndarray
  puzzle_ids: np.ndarray
  first_puzzle: np.ndarray
  first_example: np.ndarray
  num_examples: np.ndarray
  symmetries: np.ndarray | None = None
  is_viewed: bool = False
  names: tuple[str, ...] = ()

  @classmethod
  def of_rows(cls, inputs: np.ndarray, labels: np.ndarray) -> "Split":
    """A split in which each row is a puzzle with id 0 and without copies."""
    count = len(inputs)
    return cls(
      inputs=inputs,
      labels=labels,
      puzzle_ids=np.zeros(count, np.int32),
      first_puzzle=np.arange(count + 1, dtype=np.int32),
      first_example=np.arange(count, dtype=np.int32),
      num_examples=np.ones(count, np.int32),
    )

  def __len__(self) -> int:
    """The number of groups, G."""
    return len(self.first_puzzle) - 1

  @property
  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """All examples of all puzzles: (example, puzzle), int64 [M] each."""
    counts = self.num_examples.astype(np.int64)
    puzzles = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(puzzles)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    return self.first_example[puzzles] + place, puzzles

  def digest(self) -> str:
    """A digest of all puzzles and copies; other names change nothing."""
    hashed = hashlib.blake2b(digest_size=16)
    for field in dataclasses.fields(self):
      array = getattr(self, field.name)
      if isinstance(array, np.ndarray):
        hashed.update(f"{field.name}{array.dtype}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()

  def take(self, groups: np.ndarray, copies: int = 0) -> "Split":
    """Selects groups; the examples are shared with this split.

    Args:
      groups: integers [N], numbers of groups.
      copies: keeps only the first `copies` puzzles of each; 0 keeps all.
    """
    first, last = self.first_puzzle[groups], self.first_puzzle[groups + 1]
    counts = np.minimum(last - first, copies) if copies else last - first
    ends = np.cumsum(counts)
    puzzles = np.repeat(first - (ends - counts), counts) + np.arange(
      ends[-1] if len(ends) else 0
    )
    return dataclasses.replace(
      self,
      puzzle_ids=self.puzzle_ids[puzzles],
      first_puzzle=np.concatenate([[0], ends]).astype(np.int32),
      first_example=self.first_example[puzzles],
      num_examples=self.num_examples[puzzles],
      symmetries=None if self.symmetries is None else self.symmetries[puzzles],
      names=tuple(self.names[g] for g in groups) if self.names else (),
    )


class Settings(Protocol):
  """The `data` section of a config: a frozen dataclass, one class per task.

  Attributes:
    train: the source of training puzzles; "" for no such split.
    test: the same for the test split.
    path: a folder in the reference's layout, used as it is; "" for none.
  """

  __dataclass_fields__: ClassVar[dict[str, Any]]
  train: str
  test: str
  path: str

  @property
  def task(self) -> "Task":
    """The task; equal settings give the same object."""
    ...

  @classmethod
  def few(
    cls, *, size: int | None, split: str, count: int, copies: int, source: str,
    seed: int, cache_dir: str,
  ) -> "Settings":  # fmt: skip
    """Settings of a few puzzles to look at, made quickly.

    Args:
      size: cells along one side; None for the default.
      split: "train" or "test", the split that has them.
      count: puzzles to generate, if they are generated.
      copies: augmented copies of each, if copies are stored.
      source: the source of puzzles that are not generated.
      seed: of the puzzles.
      cache_dir: where the dataset is kept.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Symmetry:
  """Random transformations that map a puzzle and its answer to another puzzle.

  Pure JAX functions of one puzzle; the caller vmaps them.

  Attributes:
    sample: `(key, inputs [S], labels [S]) -> symmetry`, any tree of arrays.
      If there is `undo` it depends on the key only, and inputs and labels
      may be None.
    apply: `(symmetry, tokens [S]) -> tokens [S]`, a question or an answer.
    undo: the inverse of `apply`, for tokens of any values; None for none.
    count: if symmetries are the numbers from 0 to count - 1, their count.
    describe: `symmetry -> str`, a caption that may have several lines.
    keys: `questions [N, S] -> uint64 [N]`, in numpy. Of these questions, those
      with equal keys are images of each other; some images may have other keys.
      None if there is no fast way to tell.
  """

  sample: Callable[..., Any]
  apply: Callable[..., jax.Array]
  undo: Callable[..., jax.Array] | None = None
  count: int | None = None
  describe: Callable[[np.ndarray], str] = str
  keys: Callable[[np.ndarray], np.ndarray] | None = None

  def augment(self, key: Any, *tokens: Any) -> tuple[Any, ...]:
    """A question and its answer, [S] each, under one random symmetry."""
    symmetry = self.sample(key, *tokens)
    return tuple(self.apply(symmetry, each) for each in tokens)


def _no_data(settings: Any, split: str, groups: Any = None) -> Any:
  del settings, split, groups
  raise UserError("the task has no datasets")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """How the splits of a task are made and loaded.

  Called through `datasets`, which also reads folders in the reference's layout.

  Attributes:
    load: `(settings, split, groups) -> Split`; `groups` are integers [N], or
      None for all. Raises a `UserError` if there is no such split.
    num_groups: `(settings, split) -> int`.
    prepare: `(settings, say) -> notes`; makes the dataset if it does not exist.
      `say` is called with a sentence before work that may take a minute; notes
      are sentences for users. None if nothing is kept on disk.
    identifiers: `settings -> names`, one per puzzle id.
    expected_size: `settings -> (rows, copies, puzzle ids)`, estimated without
      reading anything, to plan memory.
    read_rows: `(settings, path) -> csv_rows.Rows`, of a file of puzzles; None
      if sources are not such files.
    selects: settings that select puzzles of a source, and are reset when
      another source is tested.
  """

  load: Callable[[Any, str, np.ndarray | None], Split] = _no_data
  num_groups: Callable[[Any, str], int] = _no_data
  prepare: Callable[[Any, Callable[[str], None]], list[str]] | None = None
  identifiers: Callable[[Any], list[str]] = lambda settings: [BLANK]
  expected_size: Callable[[Any], tuple[int, int, int]] = lambda settings: (
    1024,
    1,
    1,
  )
  read_rows: Callable[[Any, str], Any] | None = None
  selects: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """A task. Hashable, so that it may be a static argument of `jit`.

  Attributes:
    name: as in a config's `data.task`.
    seq_len: tokens per puzzle, S.
    vocab_size: number of token values, V, including the padding token 0.
    parse: `str -> uint8 [S]`, a puzzle from text; raises a `UserError`.
    render: `tokens [S] -> str`, the inverse of `parse`, on one line: the rows
      of a board without separators, or those of a grid separated by `/`.
    draw: `(axes, puzzle, answer=None, label=None)`, onto matplotlib axes;
      with a label, cells where the answer differs from it are marked.
    dataset: how its splits are made.
    is_solution: `(inputs [..., S], answers [..., S]) -> bool [...]` in pure
      JAX, whether an answer solves its puzzle by the rules, without a label.
      None if there are no such rules.
    augmentation: random symmetries for training, and for inference if they
      have an inverse (`views`). None for none.
    copies: how the stored copies of a puzzle differ from their original: the
      symmetries are rows of `Split.symmetries`. None if there are no copies.
    parse_names: `names of puzzle ids -> (names of originals, symmetries)`,
      for folders in the reference's layout; None if ids have no names.
    form: the format of a puzzle's text, for messages.
    read: `(stream, task, name) -> iterator of Question | Fault`, puzzles from
      a file; None for lines of text or csv. See `questions`.
    check: `tokens [S] -> None`; raises a `UserError` for a question that the
      rules do not allow.
    layout: how text holds puzzles.
    in_rows: whether answers are written with a row per line.
    from_numbers: `integers of any shape -> str`, a puzzle given in Python as
      numbers, in the format of `read`. None if cells are not numbers.
    decode: `tokens [S] -> value`, an answer for Python and JSON.
    in_place: whether an answer is the question with cells filled in, so that
      one board shows both.
    style: `(character, given) -> str`, the rich style of a cell in the
      terminal; `given` is the question's character there.
    boxes: rows and columns of a box, between lines on a board in the terminal.
    best_metric: the score that selects the best checkpoint.
  """

  name: str
  seq_len: int
  vocab_size: int
  parse: Callable[[str], np.ndarray]
  render: Callable[[np.ndarray], str]
  draw: Callable[..., None]
  dataset: Dataset = Dataset()
  is_solution: Callable[..., jax.Array] | None = None
  augmentation: Symmetry | None = None
  copies: Symmetry | None = None
  parse_names: Callable[[list[str]], tuple[list[str], np.ndarray]] | None = None
  form: str = "a puzzle a line"
  read: Callable[..., Any] | None = None
  check: Callable[[np.ndarray], None] | None = None
  layout: Layout = A_LINE
  in_rows: bool = False
  from_numbers: Callable[[np.ndarray], str] | None = None
  decode: Callable[[np.ndarray], Any] = lambda tokens: tokens.tolist()
  in_place: bool = True
  style: Callable[[str, str], str] = lambda character, given: ""
  boxes: tuple[int, int] | None = None
  best_metric: str = "exact_accuracy"

  @property
  def views(self) -> Symmetry | None:
    """The symmetries under which rollouts may see a puzzle."""
    symmetry = self.augmentation
    return symmetry if symmetry and symmetry.undo else None

  def rows(self, tokens: np.ndarray) -> list[str]:
    """The rows of a board or grid, one character per cell."""
    side = math.isqrt(self.seq_len)
    if side * side != self.seq_len:
      side = self.seq_len  # a single row
    return [
      line[begin : begin + side]
      for line in self.render(tokens).split("/")
      for begin in range(0, len(line), side)
    ]


def show(
  data: Any, examples: Any, puzzles: Any, task: Task, put: Callable = tuple
) -> tuple[Any, Any]:
  """Questions and answers as their puzzles show them, uint8 [B, S] each.

  Args:
    data: a `Split`, or the `batches.Table` of one.
    examples: integers [B], rows of `data.inputs`.
    puzzles: integers [B], the puzzles (copies) that show them.
    task: their task.
    put: puts a tuple of arrays onto the devices.
  """
  tokens = put((data.inputs[examples], data.labels[examples]))
  if data.symmetries is None or data.is_viewed:
    return tokens
  return _apply(*put((data.symmetries[puzzles],)), tokens, task)


@functools.partial(jax.jit, static_argnames="task")
def _apply(symmetries, tokens, task):
  assert task.copies, "a task with copies"
  return jax.tree.map(
    lambda each: jax.vmap(task.copies.apply)(symmetries, each), tokens
  )


def judge(inputs: np.ndarray, answers: np.ndarray, task: Task) -> np.ndarray:
  """Whether answers solve their puzzles by the rules, without labels.

  Args:
    inputs: uint8 [N, S].
    answers: uint8 [N, ..., S].
    task: a task with rules.

  Returns:
    bool [N, ...].
  """
  shape = answers.shape[:-1]
  each = int(np.prod(shape[1:], dtype=int))
  flat = answers.reshape(-1, answers.shape[-1])
  results = np.zeros(len(flat), bool)
  size = min(_CHUNK, 1 << max(len(flat) - 1, 0).bit_length())
  for first in range(0, len(flat), size):
    rows = np.arange(first, first + size).clip(max=len(flat) - 1)
    found = _judge(inputs[rows // each], flat[rows], task)
    results[first : first + size] = np.asarray(found)[: len(flat) - first]
  return results.reshape(shape)


@functools.partial(jax.jit, static_argnames="task")
def _judge(inputs, answers, task):
  return task.is_solution(inputs, answers)
