"""Puzzles made up on the spot, where shapes alone matter."""

import dataclasses

import numpy as np

from trm_jax.data.task import Split, Task


def split(task: Task, rows: int = 1024, copies: int = 1000) -> Split:
  """Random tokens of the task's shape, which are no puzzles.

  Args:
    task: the task.
    rows: examples.
    copies: of each example, in tasks whose puzzles are copies.
  """
  random = np.random.default_rng(0)
  shape = (2, rows, task.seq_len)
  inputs, labels = random.integers(1, task.vocab_size, shape, np.uint8)
  drawn = Split.of_rows(inputs, labels)
  if not task.view:
    return drawn
  colours = np.argsort(random.random((rows * copies, 9)), axis=1) + 1
  square = random.integers(0, 8, (rows * copies, 1))
  return dataclasses.replace(
    drawn,
    puzzle_ids=np.zeros(rows * copies, np.int32),
    first_puzzle=np.arange(rows + 1, dtype=np.int32) * copies,
    first_example=np.repeat(np.arange(rows, dtype=np.int32), copies),
    num_examples=np.ones(rows * copies, np.int32),
    symmetries=np.hstack([square, 0 * square, colours]).astype(np.uint8),
  )
