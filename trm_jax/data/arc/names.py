"""Names of ARC tasks and of their copies, as in the reference.

A copy is named by its task, the number of its symmetry of the square, and the
image of each colour: `007bbfb7|||t3|||0213456798`. The identity has the name of
its task.
"""

import re
from collections.abc import Sequence

import numpy as np

from trm_jax.data.arc import grids
from trm_jax.errors import UserError

_SEPARATOR = "|||"
_SUFFIX = "|||t0|||0123456789"
_COPY = re.compile(r"\|\|\|t[0-7]\|\|\|[0-9]{10}")

# The places of a symmetry's 11 numbers in a suffix.
_DIGITS = np.array([i for i, letter in enumerate(_SUFFIX) if letter.isdigit()])


def copy_names(tasks: Sequence[str], symmetries: np.ndarray) -> list[str]:
  """Names copies, uint8 [N, 11], of N tasks; fast enough for a million."""
  letters = np.tile(np.frombuffer(_SUFFIX.encode(), np.uint8), (len(tasks), 1))
  letters[:, _DIGITS] += symmetries - grids.IDENTITY
  text = letters.tobytes().decode()
  is_copy = (symmetries != grids.IDENTITY).any(-1).tolist()
  length = len(_SUFFIX)
  return [
    task + text[n * length : (n + 1) * length] if is_copy[n] else task
    for n, task in enumerate(tasks)
  ]


def parse_names(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
  """The inverse of `copy_names`: task names, and uint8 [N, 11]."""
  length = len(_SUFFIX)
  is_copy = [_SEPARATOR in name for name in names]
  tasks = [
    name[:-length] if copied else name
    for name, copied in zip(names, is_copy, strict=True)
  ]
  suffixes = [
    name[-length:] if copied else _SUFFIX
    for name, copied in zip(names, is_copy, strict=True)
  ]
  for name, task, suffix in zip(names, tasks, suffixes, strict=True):
    if not task or _SEPARATOR in task or not _COPY.fullmatch(suffix):
      raise _malformed(name)
  letters = np.frombuffer("".join(suffixes).encode(), np.uint8)
  symmetries = letters.reshape(-1, length)[:, _DIGITS] - np.uint8(ord("0"))
  is_permuted = (np.sort(symmetries[:, 1:]) == grids.IDENTITY[1:]).all(-1)
  if not is_permuted.all():
    raise _malformed(names[is_permuted.argmin()])
  return tasks, symmetries


def _malformed(name):
  return UserError(
    f"{name!r} is not the name of an ARC task or of a copy of one; expected "
    f"NAME, or NAME{_SUFFIX} with a number from 0 to 7 after the t and then "
    "the ten colours in any order."
  )
