"""Random tokens in place of puzzles, where only shapes matter."""

import dataclasses

import jax
import numpy as np

from trm_jax.core import hashing
from trm_jax.data.task import Split, Task


def split(task: Task, rows: int = 1024, copies: int = 1000) -> Split:
  """Makes examples of the task's shape.

  If the task's puzzles have copies, there are `copies` of each example.
  """
  random = np.random.default_rng(0)
  shape = (2, rows, task.seq_len)
  inputs, labels = random.integers(1, task.vocab_size, shape, np.uint8)
  drawn = Split.of_rows(inputs, labels)
  if not task.copies:
    return drawn
  keys = jax.random.split(hashing.base_key(0), rows * copies)
  sample = jax.jit(jax.vmap(task.copies.sample, (0, None, None)))
  return dataclasses.replace(
    drawn,
    puzzle_ids=np.zeros(rows * copies, np.int32),
    first_puzzle=np.arange(rows + 1, dtype=np.int32) * copies,
    first_example=np.repeat(np.arange(rows, dtype=np.int32), copies),
    num_examples=np.ones(rows * copies, np.int32),
    symmetries=np.asarray(sample(keys, inputs[0], labels[0])),
  )
