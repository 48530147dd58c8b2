"""Checking answers by the rules of their task, many at a time."""

import functools

import jax
import numpy as np

from trm_jax.data.task import Task

_CHUNK = 4096


def solved(inputs: np.ndarray, answers: np.ndarray, task: Task) -> np.ndarray:
  """Whether answers solve their puzzles, judged by rules and not by labels.

  Args:
    inputs: uint8 `[N, S]`.
    answers: uint8 `[N, ..., S]`.
    task: a task with rules.

  Returns:
    bool `[N, ...]`.
  """
  shape = answers.shape[:-1]
  each = int(np.prod(shape[1:], dtype=int))
  flat = answers.reshape(-1, answers.shape[-1])
  results = np.zeros(len(flat), bool)
  size = min(_CHUNK, 1 << max(len(flat) - 1, 0).bit_length())
  for first in range(0, len(flat), size):
    rows = np.arange(first, first + size).clip(max=len(flat) - 1)
    found = _solved(inputs[rows // each], flat[rows], task)
    results[first : first + size] = np.asarray(found)[: len(flat) - first]
  return results.reshape(shape)


@functools.partial(jax.jit, static_argnames="task")
def _solved(inputs, answers, task):
  return task.is_solution(inputs, answers)
