"""Reads Sudoku csv files: `source,question,answer,rating`, plain or .gz."""

import csv
import dataclasses
import gzip
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.uniqueness import has_second_solution
from trm_jax.errors import UserError

COLUMNS = ("source", "question", "answer", "rating")

# Above so many rows, `read_csv` does not look for second solutions unless
# asked: the hardest 9x9 puzzles cost some 2.5 ms each.
UNIQUE_ROWS = 20_000

_BLOCK = 65_536  # lines parsed together: bounds the memory of a huge file

# byte -> token, 0 where the byte is neither a digit nor a blank.
_TOKEN_OF_BYTE = np.zeros(256, np.uint8)
for _character, _token in board.TOKENS.items():
  _TOKEN_OF_BYTE[ord(_character)] = _token


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a csv file that passed the checks.

  Attributes:
    path: the file.
    size: cells along one side of the board.
    inputs: uint8 [N, L] tokens of the questions.
    labels: uint8 [N, L] tokens of the answers.
    ratings: int32 [N].
    sources: str [N].
    lines: int64 [N], line numbers in the file.
    unique: whether every row is known to have one solution only.
    skipped: why rows were left out, one text a row.
  """

  path: str
  size: int
  inputs: np.ndarray
  labels: np.ndarray
  ratings: np.ndarray
  sources: np.ndarray
  lines: np.ndarray
  unique: bool = False
  skipped: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.inputs)

  def take(self, index: np.ndarray) -> "Rows":
    """Selects rows by number or by mask."""
    columns = ("inputs", "labels", "ratings", "sources", "lines")
    return dataclasses.replace(
      self, **{name: getattr(self, name)[index] for name in columns}
    )


def read_csv(
  path: str | os.PathLike,
  size: int,
  skip_bad_rows: bool = False,
  check_unique: bool | None = None,
) -> Rows:
  """Reads and checks a csv file.

  Every row must have four columns, grids of the right length and characters,
  a whole number as rating, and an answer that is a legal completed grid and
  keeps the givens.

  Args:
    path: the file; `.gz` at the end of its name means that it is compressed.
    size: cells along one side of the board.
    skip_bad_rows: whether to leave bad rows out instead of refusing the file.
    check_unique: whether to refuse puzzles with a second solution, too. None
      checks files of up to `UNIQUE_ROWS` rows, which takes seconds for a
      thousand hard puzzles and close to a minute for the most; larger files
      are then taken at their word.

  Returns:
    The rows, and the reasons for those that were skipped.

  Raises:
    UserError: the file cannot be read, is empty or has a bad row.
  """
  path = os.fspath(path)
  blocks, faults = [], []
  for records, lines in _blocks(path):
    block, block_faults = _check(path, size, records, lines)
    if block_faults and not skip_bad_rows:
      raise UserError(_refusal(block_faults[0]))
    blocks.append(block)
    faults += block_faults
  if not blocks:
    raise UserError(
      f"{path}: the file has no rows; expected lines of {','.join(COLUMNS)} "
      f"below the header."
    )
  rows = _concatenate(blocks)
  rows = dataclasses.replace(rows, skipped=tuple(faults))
  if check_unique or (check_unique is None and len(rows) <= UNIQUE_ROWS):
    rows = drop_ambiguous(rows, skip_bad_rows)
  if not len(rows):
    raise UserError(f"{path}: every row is bad. The first: {rows.skipped[0]}")
  return rows


def drop_ambiguous(rows: Rows, skip_bad_rows: bool) -> Rows:
  """Searches every puzzle for a second solution.

  Args:
    rows: rows whose answers are known to be solutions.
    skip_bad_rows: whether to leave such rows out instead of refusing them.

  Returns:
    The rows with one solution; what was left out is added to `skipped`.

  Raises:
    UserError: a puzzle has a second solution, and rows may not be skipped.
  """
  ambiguous = has_second_solution(rows.inputs, rows.labels, size=rows.size)
  faults = [
    f"{rows.path}, line {line}: question: the puzzle has more than one "
    f"solution; expected exactly one"
    for line in rows.lines[ambiguous]
  ]
  if faults and not skip_bad_rows:
    raise UserError(_refusal(faults[0]))
  kept = rows.take(~ambiguous)
  skipped = rows.skipped + tuple(faults)
  return dataclasses.replace(kept, unique=True, skipped=skipped)


def _refusal(fault: str) -> str:
  return (
    f"{fault}. Mend the row, or leave out all bad rows with --skip_bad_rows "
    f"(skip_bad_rows=True)."
  )


def _blocks(path: str) -> Iterator[tuple[Sequence[list[str]], Sequence[int]]]:
  """Yields records and their line numbers, a block at a time."""
  opener = gzip.open if path.endswith(".gz") else open
  try:
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
      reader = csv.reader(file)
      header = next(reader, [])
      if tuple(name.strip().lower() for name in header) != COLUMNS:
        raise UserError(
          f"{path}, line 1: the header is {','.join(header)[:80]!r}; expected "
          f"{','.join(COLUMNS)!r}. Add or rename the columns."
        )
      numbered = ((row, reader.line_num) for row in reader if row)
      while block := list(itertools.islice(numbered, _BLOCK)):
        records, lines = zip(*block, strict=True)
        yield records, lines
  except csv.Error as error:
    raise UserError(
      f"{path}, line {reader.line_num}: {error}; expected a csv file."
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path}: not UTF-8 text ({error}); expected a csv file. A gzip file "
      f"must have a name that ends in .gz."
    ) from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(
      f"{path}: not a whole gzip file ({error}); download it again, or drop "
      f".gz from its name if it is plain text."
    ) from error
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); expected a csv file with "
      f"the columns {','.join(COLUMNS)}. Check the path."
    ) from error


def _check(
  path: str, size: int, records: Sequence, lines: Sequence[int]
) -> tuple[Rows, list[str]]:
  """Turns records into arrays; returns the good rows and the faults."""
  length = size * size
  faults = {}  # index of the record -> what is wrong with it, first fault wins
  for index, record in enumerate(records):
    fault = _fault_in_text(record, size)
    if fault:
      faults[index] = fault
  good = [index for index in range(len(records)) if index not in faults]
  rows = Rows(
    path=path,
    size=size,
    inputs=_tokens([records[index][1] for index in good], length),
    labels=_tokens([records[index][2] for index in good], length),
    ratings=np.array([int(records[index][3]) for index in good], np.int32),
    sources=np.array([records[index][0] for index in good], object),
    lines=np.array([lines[index] for index in good], np.int64),
  )

  def note(mask, describe):
    for row in np.flatnonzero(mask):
      faults.setdefault(good[row], describe(row))

  for column, tokens in (("question", rows.inputs), ("answer", rows.labels)):
    illegal = (tokens == board.PAD) | (tokens > size + 1)
    place = illegal.argmax(-1)
    note(
      illegal.any(-1),
      lambda row, column=column, place=place: (
        f"{column}: character {place[row] + 1} is "
        f"{records[good[row]][COLUMNS.index(column)][place[row]]!r}; expected "
        f"a digit from 1 to {size}, or '.' or '0' for a blank"
      ),
    )
  given = rows.inputs > board.BLANK
  note(
    (given & (rows.inputs != rows.labels)).any(-1),
    lambda row: (
      f"answer: {board.render(rows.labels[row])} contradicts a given of the "
      f"question; expected the givens to be kept"
    ),
  )
  note(
    ~board.solves(rows.inputs, rows.labels, size=size),
    lambda row: (
      f"answer: {board.render(rows.labels[row])} is not a legal completed "
      f"grid; expected every digit once in each row, column and box"
    ),
  )
  kept = np.array([index not in faults for index in good], bool)
  texts = [
    f"{path}, line {lines[index]}: {faults[index]}" for index in sorted(faults)
  ]
  return rows.take(kept), texts


def _fault_in_text(record: Sequence[str], size: int) -> str | None:
  if len(record) != len(COLUMNS):
    return (
      f"{len(record)} columns; expected {len(COLUMNS)}: {','.join(COLUMNS)}"
    )
  _, question, answer, rating = record
  for column, grid in (("question", question), ("answer", answer)):
    if len(grid) != size * size:
      return (
        f"{column}: {len(grid)} characters; expected {size * size}, as a "
        f"{size}x{size} board has"
      )
  # int() would also take "1_000", " 7" and numbers beyond the stored int32.
  if not (rating.isdecimal() and len(rating) < 10):
    return f"rating: {rating!r} is not a whole number; expected 0 or more"
  return None


def _tokens(grids: list[str], length: int) -> np.ndarray:
  # Whatever is not ASCII becomes one '?', and so keeps its place.
  characters = "".join(grids).encode("ascii", errors="replace")
  codes = np.frombuffer(characters, np.uint8).reshape(-1, length)
  return _TOKEN_OF_BYTE[codes]


def _concatenate(blocks: list[Rows]) -> Rows:
  columns = ("inputs", "labels", "ratings", "sources", "lines")
  return dataclasses.replace(
    blocks[0],
    **{
      name: np.concatenate([getattr(block, name) for block in blocks])
      for name in columns
    },
  )
