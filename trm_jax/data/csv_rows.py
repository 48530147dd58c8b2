"""Reads csv files of puzzles: `source,question,answer,rating`, plain or .gz."""

import csv
import dataclasses
import gzip
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from trm_jax.errors import UserError

COLUMNS = ("source", "question", "answer", "rating")

_LONGEST_HEADER = 1000
_BLOCK = 65_536  # lines parsed together, to bound the memory

_RATING = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")
_ARRAYS = ("inputs", "labels", "ratings", "sources", "lines")


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a csv file that passed the checks.

  Attributes:
    path: the file.
    inputs: uint8 [N, L] tokens of the questions.
    labels: uint8 [N, L] tokens of the answers.
    ratings: int32 [N], rounded down.
    sources: str [N].
    lines: int64 [N], line numbers in the file.
    skipped: one message per row that was left out.
  """

  path: str
  inputs: np.ndarray
  labels: np.ndarray
  ratings: np.ndarray
  sources: np.ndarray
  lines: np.ndarray
  skipped: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.inputs)

  def take(self, index: np.ndarray) -> "Rows":
    """Selects rows by number or by mask."""
    return dataclasses.replace(
      self, **{name: getattr(self, name)[index] for name in _ARRAYS}
    )


@dataclasses.dataclass(frozen=True)
class CsvFormat:
  """How a task writes its grids, and which rows are bad.

  Attributes:
    length: characters in a grid, L.
    board: what a grid is, as in "a 9x9 board", for messages.
    alphabet: the token, 1 or more, of each character; ASCII only.
    cell: what a character may be, for messages.
    faults: `(inputs [N, L], labels [N, L]) -> (mask [N], describe) pairs`: for
      each kind of fault, the rows that have it, and `describe(row) -> message`.
      Only the first fault of a row is reported.
  """

  length: int
  board: str
  alphabet: Mapping[str, int]
  cell: str
  faults: Callable[
    [np.ndarray, np.ndarray], Iterable[tuple[np.ndarray, Callable[[int], str]]]
  ]


def read(path: str | os.PathLike, form: CsvFormat, skip_bad_rows: bool) -> Rows:
  """Reads and checks a csv file, plain or .gz.

  Every row must have four columns, grids of the right length and characters,
  a numeric rating, and no fault of the format. A bad row is skipped if
  `skip_bad_rows`; otherwise it is an error.
  """
  path = os.fspath(path)
  blocks, faults = [], []
  for texts, lines in _blocks(path):
    block, block_faults = _check(path, form, texts, lines)
    _refuse(block_faults, skip_bad_rows)
    blocks.append(block)
    faults += block_faults
  if not blocks:
    raise UserError(
      f"{path}: the file has no rows; expected lines of {','.join(COLUMNS)} "
      f"below the header."
    )
  rows = dataclasses.replace(
    blocks[0],
    skipped=tuple(faults),
    **{
      name: np.concatenate([getattr(block, name) for block in blocks])
      for name in _ARRAYS
    },
  )
  _refuse_empty(rows)
  return rows


def drop(rows: Rows, bad: np.ndarray, fault: str, skip_bad_rows: bool) -> Rows:
  """Drops bad rows, bool [N], for a fault found after reading."""
  faults = [f"{rows.path}, line {line}: {fault}" for line in rows.lines[bad]]
  _refuse(faults, skip_bad_rows)
  kept = rows.take(~bad)
  kept = dataclasses.replace(kept, skipped=rows.skipped + tuple(faults))
  _refuse_empty(kept)
  return kept


def _refuse(faults: Sequence[str], skip_bad_rows: bool):
  if faults and not skip_bad_rows:
    raise UserError(
      f"{faults[0]}. Mend the row, or leave out all bad rows with "
      f"--skip_bad_rows (skip_bad_rows=True)."
    )


def _refuse_empty(rows: Rows):
  if not len(rows):
    raise UserError(
      f"{rows.path}: every row is bad. The first: {rows.skipped[0]}"
    )


def split(line: str) -> list[str]:
  """The columns of one line; a quote cannot continue on the next line."""
  try:
    return next(csv.reader([line], strict=True), [])
  except csv.Error as error:
    raise UserError(f"not a row of a csv file ({error})") from error


def header_of(line: str) -> tuple[str, ...]:
  """The column names if the line is the header of a csv file."""
  return tuple(name.strip(' "').lower() for name in line.split(","))


def _blocks(path: str) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
  """Yields lines and their numbers, a block at a time."""
  opener = gzip.open if path.endswith(".gz") else open
  try:
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
      header = file.readline(_LONGEST_HEADER).rstrip("\r\n")
      if header_of(header) != COLUMNS:
        raise UserError(
          f"{path}, line 1: the header is {header[:80]!r}; expected "
          f"{','.join(COLUMNS)!r}. Add or rename the columns."
        )
      numbered = (
        (line, number)
        for number, line in enumerate(file, 2)
        if line.strip("\r\n")
      )
      while block := list(itertools.islice(numbered, _BLOCK)):
        lines, numbers = zip(*block, strict=True)
        yield lines, numbers
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
  path: str, form: CsvFormat, texts: Sequence[str], lines: Sequence[int]
) -> tuple[Rows, list[str]]:
  """Converts lines to arrays; returns the good rows and the faults."""
  records, read = [], []
  faults = {}  # index of the line -> message
  for index, text in enumerate(texts):
    try:
      records.append(_columns(text, form))
      read.append(index)
    except UserError as error:
      faults[index] = str(error)
  sources, questions, answers, ratings = (
    zip(*records, strict=True) if records else ((),) * 4
  )
  rows = Rows(
    path=path,
    inputs=_tokens(questions, form),
    labels=_tokens(answers, form),
    ratings=np.array([int(float(rating)) for rating in ratings], np.int32),
    sources=np.array(sources, object),
    lines=np.array(lines, np.int64)[read],
  )
  for column, grids, tokens in (
    ("question", questions, rows.inputs),
    ("answer", answers, rows.labels),
  ):
    for row in np.flatnonzero((tokens == 0).any(-1)):
      place = int((tokens[row] == 0).argmax())
      character = grids[row][place]
      faults.setdefault(
        read[row],
        f"{column}: character {place + 1} is {character!r}; expected "
        f"{form.cell}",
      )
  legal = np.array([index not in faults for index in read], bool)
  rows, read = rows.take(legal), np.array(read, int)[legal]
  good = np.ones(len(rows), bool)
  for mask, describe in form.faults(rows.inputs, rows.labels):
    for row in np.flatnonzero(mask & good):
      faults[int(read[row])] = describe(int(row))
    good &= ~mask
  return rows.take(good), [
    f"{path}, line {lines[index]}: {faults[index]}" for index in sorted(faults)
  ]


def _columns(text: str, form: CsvFormat) -> list[str]:
  """The columns of a line; raises a `UserError` if it is no row of puzzles."""
  columns = split(text)
  if len(columns) != len(COLUMNS):
    raise UserError(
      f"{len(columns)} columns; expected {len(COLUMNS)}: {','.join(COLUMNS)}"
    )
  _, question, answer, rating = columns
  for column, grid in (("question", question), ("answer", answer)):
    if len(grid) != form.length:
      raise UserError(
        f"{column}: {len(grid)} characters; expected {form.length}, as "
        f"{form.board} has"
      )
  # float() would also take "1_000", " 7", "nan" and what int32 cannot store.
  if not _RATING.fullmatch(rating):
    raise UserError(f"rating: {rating!r} is not a number; expected 0 or more")
  return columns


def _tokens(grids: Sequence[str], form: CsvFormat) -> np.ndarray:
  """Converts grids to tokens, 0 for characters not in the alphabet."""
  token_of_byte = np.zeros(256, np.uint8)
  for character, token in form.alphabet.items():
    token_of_byte[ord(character)] = token
  # Each character that is not ASCII becomes one '?', so lengths are kept.
  characters = "".join(grids).encode("ascii", errors="replace")
  codes = np.frombuffer(characters, np.uint8).reshape(-1, form.length)
  return token_of_byte[codes]
