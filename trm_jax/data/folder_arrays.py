"""The arrays of a split in the folder layout; see `folder`."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from trm_jax.data import checks
from trm_jax.data.task import Split
from trm_jax.errors import UserError

ARRAYS = (
  "inputs",
  "labels",
  "puzzle_indices",
  "group_indices",
  "puzzle_identifiers",
)
_CHUNK = 1 << 22  # tokens checked or written at a time


@dataclasses.dataclass(frozen=True)
class Header:
  """The checked content of a dataset.json."""

  path: pathlib.Path
  seq_len: int
  vocab_size: int
  num_puzzle_identifiers: int
  least_label: int
  set: str

  @property
  def files(self) -> dict[str, pathlib.Path]:
    """The file of each array."""
    return {
      name: self.path.parent / f"{self.set}__{name}.npy" for name in ARRAYS
    }


def file_names(name: str) -> str:
  """The files of a set, for messages."""
  return ", ".join(f"{name}__{array}.npy" for array in ARRAYS)


def chunks(count: int, width: int) -> Iterator[slice]:
  """Cuts `count` rows of `width` tokens into slices of bounded size."""
  step = max(1, _CHUNK // width)
  for begin in range(0, count, step):
    yield slice(begin, min(begin + step, count))


def read(header: Header) -> Split:
  """Opens and checks the arrays of a split, the small ones first."""
  files = header.files
  missing = [file.name for file in files.values() if not os.path.exists(file)]
  if missing:
    raise UserError(
      f"{header.path.parent}: {', '.join(missing)} missing; the set "
      f"{header.set!r} needs {file_names(header.set)}"
    )
  arrays = {}
  for name, file in files.items():
    arrays[name] = _open(file)
    rank = 2 if name in ("inputs", "labels") else 1
    if name != "labels" and arrays[name].ndim != rank:
      raise UserError(
        f"{file}: shape {arrays[name].shape}; expected an array of rank {rank}"
      )
  inputs, labels = arrays["inputs"], arrays["labels"]
  if inputs.shape[1] != header.seq_len:
    raise UserError(
      f"{files['inputs']}: {inputs.shape[1]} tokens a puzzle; expected "
      f"{header.seq_len}, which is seq_len in {header.path}"
    )
  if labels.shape != inputs.shape:
    raise UserError(
      f"{files['labels']}: shape {labels.shape}; expected {inputs.shape}, that "
      f"of {files['inputs'].name}"
    )
  first_example = _bounds(
    files["puzzle_indices"],
    arrays["puzzle_indices"],
    len(inputs),
    f"the examples in {files['inputs'].name}",
  )
  num_puzzles = len(first_example) - 1
  first_puzzle = _bounds(
    files["group_indices"],
    arrays["group_indices"],
    num_puzzles,
    f"the puzzles in {files['puzzle_indices'].name}",
  )
  file, ids = files["puzzle_identifiers"], arrays["puzzle_identifiers"]
  if len(ids) != num_puzzles:
    raise UserError(
      f"{file}: {len(ids)} numbers; expected {num_puzzles}, one for each puzzle"
    )
  bad = np.flatnonzero((ids < 0) | (ids >= header.num_puzzle_identifiers))
  if len(bad):
    raise UserError(
      f"{file}: puzzle {bad[0]} has {ids[bad[0]]}; expected 0 to "
      f"{header.num_puzzle_identifiers - 1}, below num_puzzle_identifiers in "
      "dataset.json"
    )
  return Split(
    inputs=_tokens(files["inputs"], inputs, 0, header),
    labels=_tokens(files["labels"], labels, header.least_label, header),
    puzzle_ids=np.asarray(ids, np.int32),
    first_puzzle=first_puzzle,
    first_example=first_example[:-1],
    num_examples=np.diff(first_example),
    is_viewed=True,
  )


def _open(path: pathlib.Path) -> np.ndarray:
  """Memory-maps an array of whole numbers."""
  try:
    checks.require_file(path)
    # Checks the file's size against its header, and refuses Python objects.
    array = np.lib.format.open_memmap(path, mode="r")
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); check the file"
    ) from error
  except Exception as error:  # a damaged header fails in a dozen ways
    raise UserError(
      f"{path}: not a whole .npy file of numbers ({error}); copy it again, or "
      f"build the folder again"
    ) from error
  if array.dtype.kind not in "iu":
    raise UserError(
      f"{path}: holds {array.dtype}; expected uint8, int32 or int64"
    )
  return array


def _bounds(path, array, end: int, what: str) -> np.ndarray:
  """Checks indices, and returns them as int32."""
  bounds = np.array(array)
  if len(bounds) < 2:
    raise UserError(
      f"{path}: {len(bounds)} numbers; expected a 0, and where each of {what} "
      f"ends"
    )
  if bounds[0] != 0:
    raise UserError(f"{path}: starts with {bounds[0]}; expected 0")
  stuck = np.flatnonzero(bounds[1:] <= bounds[:-1])
  if len(stuck):
    place = stuck[0] + 1
    raise UserError(
      f"{path}: number {place} is {bounds[place]}, after {bounds[place - 1]}; "
      f"expected numbers that increase"
    )
  if bounds[-1] != end:
    raise UserError(
      f"{path}: ends with {bounds[-1]}; expected {end}, the number of {what}"
    )
  return bounds.astype(np.int32)


def _tokens(path, array, least: int, header: Header) -> np.ndarray:
  """Checks all tokens; returns them as uint8, mapped if stored so."""
  is_bytes = array.dtype == np.uint8
  tokens = array if is_bytes else np.empty(array.shape, np.uint8)
  most = header.vocab_size - 1
  rule = "vocab_size and ignore_label_id" if least else "vocab_size"
  for rows in chunks(*array.shape):
    chunk = array[rows]
    if chunk.min() < least or chunk.max() > most:
      row, column = np.argwhere((chunk < least) | (chunk > most))[0]
      raise UserError(
        f"{path}: token {column} of example {rows.start + row} is "
        f"{chunk[row, column]}; expected {least} to {most}, by {rule} in "
        f"{header.path}"
      )
    if not is_bytes:
      tokens[rows] = chunk
  return tokens
