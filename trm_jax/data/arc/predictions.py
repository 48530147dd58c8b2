"""Reads recorded predictions, and the tasks to score them on."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from trm_jax.data import folder as folder_lib
from trm_jax.data import npz
from trm_jax.data.arc import files, grids
from trm_jax.data.arc import names as names_lib
from trm_jax.errors import UserError

# name -> (kind of numbers, rank) of the arrays of a file.
_ARRAYS = {
  "inputs": (np.integer, 2),
  "preds": (np.integer, 2),
  "q_halt_logits": (np.floating, 1),
  "puzzle_identifiers": (np.integer, 1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """A model's answers to copies of puzzles.

  Attributes:
    inputs: uint8 [M, S], tokens of the questions; invalid ones are 0.
    answers: uint8 [M, S], likewise.
    q_halt: float [M], logits of the halting head.
    puzzle_ids: integers [M], 1 or more.
  """

  inputs: np.ndarray
  answers: np.ndarray
  q_halt: np.ndarray
  puzzle_ids: np.ndarray


def read(path: str | os.PathLike, num_ids: int) -> Predictions:
  """Reads predictions in the format of the reference's evaluator.

  Args:
    path: an `.npz` file with `inputs` and `preds`, integers [M, S];
      `q_halt_logits`, floats [M]; and `puzzle_identifiers`, integers [M].
      Rows with identifier 0 are left out.
    num_ids: number of puzzle ids, including the blank one.
  """
  arrays = npz.read(path, _ARRAYS)
  shape = arrays["inputs"].shape
  for name, (kind, rank) in _ARRAYS.items():
    array = arrays[name]
    if not np.issubdtype(array.dtype, kind):
      wanted = "integers" if kind is np.integer else "floating-point numbers"
      raise UserError(
        f"{path}: {name} has dtype {array.dtype}; expected {wanted}."
      )
    if array.ndim != rank or array.shape != shape[:rank]:
      wanted = "[M, S]" if rank == 2 else "[M]"
      raise UserError(
        f"{path}: {name} has shape {list(array.shape)} and inputs have "
        f"{list(shape)}; expected {wanted} and [M, S]."
      )
  if not shape[1] or math.isqrt(shape[1]) ** 2 != shape[1]:
    raise UserError(
      f"{path}: inputs have {shape[1]} tokens a row; expected a square canvas, "
      "as 900 = 30 x 30 in the reference."
    )
  ids, q_halt = arrays["puzzle_identifiers"], arrays["q_halt_logits"]
  unknown = np.flatnonzero((ids < 0) | (ids >= num_ids))
  if len(unknown):
    raise UserError(
      f"{path}: puzzle_identifiers[{unknown[0]}] is {ids[unknown[0]]}; "
      f"expected 0 to {num_ids - 1}, for identifiers.json has {num_ids} names."
    )
  is_kept = ids != 0
  nans = np.flatnonzero(np.isnan(q_halt) & is_kept)
  if len(nans):
    raise UserError(
      f"{path}: q_halt_logits[{nans[0]}] is NaN; expected numbers, by which "
      "answers can be ranked."
    )
  return Predictions(
    inputs=_as_tokens(arrays["inputs"][is_kept]),
    answers=_as_tokens(arrays["preds"][is_kept]),
    q_halt=q_halt[is_kept],
    puzzle_ids=ids[is_kept],
  )


def _as_tokens(numbers):
  is_token = (numbers >= 0) & (numbers < grids.FIRST_COLOUR + grids.NUM_COLOURS)
  return np.where(is_token, numbers, grids.PAD).astype(np.uint8)


def find_tasks(path: str | os.PathLike) -> pathlib.Path:
  """Finds the file with the tasks: `path` itself, or a file in that folder.

  In a folder it is test_puzzles.json, as in the reference's layout, or the only
  file whose name ends in challenges.json.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  if not path.is_dir():
    raise UserError(f"{path}: no such file or folder; check the path.")
  if (path / "test_puzzles.json").exists():
    return path / "test_puzzles.json"
  found = sorted(path.glob(f"[!.]*{files.CHALLENGES}"))
  if len(found) == 1:
    return found[0]
  if not found:
    raise UserError(
      f"{path}: expected test_puzzles.json, or a file whose name ends in "
      f"{files.CHALLENGES}; neither is there. Check the path."
    )
  raise UserError(
    f"{path}: holds {', '.join(file.name for file in found)}; give the path "
    "of the one to score."
  )


def read_pairs(path: pathlib.Path) -> dict[str, tuple[files.Pair, ...]]:
  """Reads each task's test pairs from a file found by `find_tasks`."""
  is_source = path.name.endswith(files.CHALLENGES)
  read_file = files.read if is_source else files.read_file
  return {task.name: task.test for task in read_file(str(path))}


def read_identifiers(*folders: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """The task of each puzzle id, and its symmetry, uint8 [N, 11].

  Both are read from the first identifiers.json in these folders.
  """
  places = [folder / "identifiers.json" for folder in dict.fromkeys(folders)]
  path = next((place for place in places if place.exists()), None)
  if path is None:
    raise UserError(
      f"{' or '.join(map(str, places))}: not there; expected the names of "
      "the puzzles that the model was trained on. Copy the file."
    )
  try:
    return names_lib.parse_names(folder_lib.read_names(path))
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
