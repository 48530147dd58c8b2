"""A toy task from outside the package: 3x3 Latin squares.

Each digit stands once in every row and column. CONTRIBUTING.md walks through
this file.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.data import datasets
from trm_jax.data.task import Dataset, Split, Symmetry, Task
from trm_jax.errors import UserError

# Tokens are the characters' places: 0 pads, 1 is a blank, digit d is d + 1.
CHARACTERS = "?.123"


# 1. The settings: the `data` section of a config.


@dataclasses.dataclass(frozen=True)
class LatinData:
  """Latin squares of 3x3; each split is generated from a seed of its own."""

  train: str = "generate"
  test: str = "generate"
  path: str = ""
  puzzles: int = 64
  blanks: int = 4

  @property
  def task(self) -> Task:
    return latin_task()


# 2. The data: numpy arrays of questions and answers.


def load(settings, split, groups=None) -> Split:
  random = np.random.default_rng(["train", "test"].index(split))
  cyclic = (np.arange(3)[:, None] + np.arange(3)) % 3 + 2
  labels = np.stack(
    [
      cyclic[random.permutation(3)][:, random.permutation(3)].reshape(-1)
      for _ in range(settings.puzzles)
    ]
  ).astype(np.uint8)
  order = random.permuted(np.tile(np.arange(9), (len(labels), 1)), axis=1)
  inputs = np.where(order < settings.blanks, 1, labels).astype(np.uint8)
  whole = Split.of_rows(inputs, labels)
  return whole if groups is None else whole.take(groups)


# 3. Text, both ways.


def parse(text):
  if len(text) != 9 or set(text) - set(CHARACTERS[1:]):
    raise UserError(f"{text!r}: expected 9 of the characters .123")
  return np.array([CHARACTERS.index(c) for c in text], np.uint8)


def render(tokens):
  return "".join(CHARACTERS[token] for token in tokens)


# 4. The rules, and the symmetries that keep them, in JAX.


def is_solution(inputs, answers):
  grid = answers.reshape(*answers.shape[:-1], 3, 3)
  lines = jnp.concatenate([grid, grid.swapaxes(-1, -2)], axis=-2)
  is_full = (lines.min(-1) == 2) & (lines.max(-1) == 4) & (lines.sum(-1) == 9)
  return is_full.all(-1) & ((inputs == 1) | (inputs == answers)).all(-1)


def relabel(symmetry, tokens):
  return symmetry[tokens].astype(tokens.dtype)


DIGITS = Symmetry(  # a new name for each digit
  sample=lambda key, inputs, labels: jnp.concatenate(
    [jnp.arange(2), jax.random.permutation(key, 3) + 2]
  ),
  apply=relabel,
  undo=lambda symmetry, tokens: relabel(jnp.argsort(symmetry), tokens),
)


def draw(axes, puzzle, answer=None, label=None):
  axes.imshow((puzzle if answer is None else answer).reshape(3, 3))


# 5. The record of all this, and the line that adds it.


@functools.cache
def latin_task() -> Task:
  return Task(
    name="latin",
    seq_len=9,
    vocab_size=len(CHARACTERS),
    parse=parse,
    render=render,
    draw=draw,
    dataset=Dataset(load, lambda settings, split: settings.puzzles),
    is_solution=is_solution,
    augmentation=DIGITS,
    form="a Latin square a line",
  )


datasets.register("latin", LatinData)
