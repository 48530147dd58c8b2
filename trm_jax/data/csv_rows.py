"""Arrays of puzzles from a file, for datasets.

The file is csv with columns question and answer, JSON lines, or boards as text,
see `text`. Puzzles without an answer are solved by search.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from trm_jax.data import checks, entries, lines, text
from trm_jax.data.entries import Entry, Fault, Faults
from trm_jax.data.text import Layout
from trm_jax.errors import UserError

# Entries checked together, and their characters, to bound the memory.
_BLOCK, _BLOCK_SIZE = 65_536, 2**26
_MOST_SEARCHED = 20_000  # puzzles without an answer

_RATING = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")
_ARRAYS = ("inputs", "labels", "ratings", "sources", "lines")


@dataclasses.dataclass(frozen=True)
class Rows:
  """The puzzles of a file that passed the checks.

  Attributes:
    path: the file.
    inputs: uint8 [N, L] tokens of the questions.
    labels: uint8 [N, L] tokens of the answers.
    ratings: int32 [N], rounded down.
    sources: str [N].
    lines: int64 [N], line numbers in the file.
    bad: puzzles that were left out.
    skipped: messages on the first of them.
    searched: puzzles whose answer was not in the file.
  """

  path: str
  inputs: np.ndarray
  labels: np.ndarray
  ratings: np.ndarray
  sources: np.ndarray
  lines: np.ndarray
  bad: int = 0
  skipped: tuple[str, ...] = ()
  searched: int = 0

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
    answer: `question [L] -> answer [L]`, for questions without one; raises a
      `UserError` if there is none or several.
    layout: how text holds boards.
  """

  length: int
  board: str
  alphabet: Mapping[str, int]
  cell: str
  faults: Callable[
    [np.ndarray, np.ndarray], Iterable[tuple[np.ndarray, Callable[[int], str]]]
  ]
  answer: Callable[[np.ndarray], np.ndarray]
  layout: Layout


def read(path: str | os.PathLike, form: CsvFormat, skip_bad_rows: bool) -> Rows:
  """Reads and checks a file of puzzles, which may be compressed.

  Every puzzle must have grids of the right length and characters, a numeric
  rating if there is one, and no fault of the format. A bad one is skipped if
  `skip_bad_rows`; otherwise it is an error.
  """
  path = os.fspath(path)
  blocks: list[Rows] = []
  faults, good, searched = Faults(path, entries.WANTED), 0, 0
  with lines.open_file(path, entries.WANTED) as file:
    numbered = lines.read(file, path, entries.WANTED)
    found = text.read(numbered, form.layout, form.length, path)
    for block, bad in _blocks(found):
      rows, more, count = _check(path, form, block, _MOST_SEARCHED - searched)
      searched += rows.searched
      good += len(rows)
      first = sorted([*bad[: entries.SHOWN], *more], key=lambda one: one.line)
      faults.add(first, len(bad) + count, good)
      blocks.append(rows)
      if not skip_bad_rows and faults.count:
        break
  if not blocks:
    raise UserError(f"{path}: the file has no rows; expected {entries.WANTED}.")
  rows = dataclasses.replace(
    blocks[0],
    bad=faults.count,
    skipped=_messages(path, faults.first),
    searched=searched,
    **{
      name: np.concatenate([getattr(block, name) for block in blocks])
      for name in _ARRAYS
    },
  )
  hint = entries.resemblance(faults.first[0].text) if faults.count else ""
  _refuse(rows, rows.skipped, skip_bad_rows, hint)
  return rows


def drop(rows: Rows, bad: np.ndarray, fault: str, skip_bad_rows: bool) -> Rows:
  """Drops bad rows, bool [N], for a fault found after reading."""
  first = [Fault(int(n), "", fault) for n in rows.lines[bad][: entries.SHOWN]]
  messages = _messages(rows.path, first)
  kept = dataclasses.replace(
    rows.take(~bad),
    bad=rows.bad + int(bad.sum()),
    skipped=(rows.skipped + messages)[: entries.SHOWN],
  )
  _refuse(kept, messages, skip_bad_rows)
  return kept


def _messages(path: str, faults: Iterable[Fault]) -> tuple[str, ...]:
  return tuple(f"{path}, line {one.line}: {one.message}" for one in faults)


def _refuse(
  rows: Rows, faults: Sequence[str], skip_bad_rows: bool, hint: str = ""
):
  if rows.bad and not len(rows):
    alike = entries.alike(rows.skipped)
    raise UserError(
      f"{rows.path}: every row is bad{', for one reason' * alike}; expected "
      f"{entries.WANTED}{hint and '; ' + hint}. The first: {rows.skipped[0]}"
    )
  if faults and not skip_bad_rows:
    raise UserError(
      f"{faults[0]}. Mend the row, or leave out all bad rows with "
      f"--skip_bad_rows (skip_bad_rows=True)."
    )


def _blocks(
  found: Iterator[Entry | Fault],
) -> Iterator[tuple[list[Entry], list[Fault]]]:
  """Yields entries and faults, a block at a time."""
  block, bad, size = [], [], 0
  for item in found:
    if isinstance(item, Fault):
      bad.append(item)
    else:
      block.append(item)
      size += len(item.question) + len(item.answer or "") + len(item.source)
    if len(block) + len(bad) == _BLOCK or size > _BLOCK_SIZE:
      yield block, bad
      block, bad, size = [], [], 0
  if block or bad:
    yield block, bad


def _check(
  path: str, form: CsvFormat, block: Sequence[Entry], most_searched: int
) -> tuple[Rows, list[Fault], int]:
  """Converts entries to arrays.

  Returns the good rows, the first faults and the number of faults.
  """
  faults: dict[int, Callable[[], str]] = {}  # index in the block -> message
  grids: dict[str, list[str]] = {"question": [], "answer": []}
  read, unanswered = [], []
  for index, entry in enumerate(block):
    question = entry.question.replace("\n", "")
    answer = (entry.answer or "").replace("\n", "")
    fault = _fault(entry, question, answer, form)
    if fault:
      faults[index] = fault
      continue
    if not answer:
      unanswered.append(len(read))
      answer = question
    grids["question"].append(question)
    grids["answer"].append(answer)
    read.append(index)
  rows = Rows(
    path=path,
    inputs=_tokens(grids["question"], form),
    labels=_tokens(grids["answer"], form),
    ratings=np.array([int(float(block[i].rating)) for i in read], np.int32),
    sources=np.array([block[i].source for i in read], object),
    lines=np.array([block[i].line for i in read], np.int64),
  )
  for column, tokens in (("question", rows.inputs), ("answer", rows.labels)):
    for row in np.flatnonzero((tokens == 0).any(-1)):
      faults.setdefault(
        read[row],
        lambda row=row, column=column, tokens=tokens: _bad_cell(
          column, grids[column][row], tokens[row], form
        ),
      )
  searched = 0
  for row in unanswered:
    if read[row] in faults:
      continue
    searched += 1
    if searched > most_searched:
      raise UserError(
        f"{path}: more than {_MOST_SEARCHED:,} puzzles have no answer, too "
        f"many to search for; expected {entries.WANTED}."
      )
    try:
      rows.labels[row] = form.answer(rows.inputs[row])
    except UserError as error:
      faults[read[row]] = lambda error=error: f"question: {error}"
  legal = np.array([index not in faults for index in read], bool)
  rows, read = rows.take(legal), np.array(read, int)[legal]
  good = np.ones(len(rows), bool)
  for mask, describe in form.faults(rows.inputs, rows.labels):
    for row in np.flatnonzero(mask & good):
      faults[int(read[row])] = lambda row=row, say=describe: say(int(row))
    good &= ~mask
  first = [
    Fault(block[index].line, "", faults[index]())
    for index in sorted(faults)[: entries.SHOWN]
  ]
  rows = dataclasses.replace(rows.take(good), searched=searched)
  return rows, first, len(faults)


def _fault(
  entry: Entry, question: str, answer: str, form: CsvFormat
) -> Callable[[], str] | None:
  """The message on an entry that is no row of arrays."""
  for column, grid in (("question", question), ("answer", answer)):
    if len(grid) != form.length and (grid or column == "question"):
      return lambda: (
        f"{column}: {len(grid)} characters; expected {form.length}, as "
        f"{form.board} has"
      )
  # float() would also take "1_000", " 7", "nan" and what int32 cannot store.
  if not _RATING.fullmatch(entry.rating):
    return lambda: (
      f"rating: {checks.shorten(entry.rating)} is not a number; expected 0 or "
      "more"
    )
  return None


def _bad_cell(
  column: str, grid: str, tokens: np.ndarray, form: CsvFormat
) -> str:
  place = int((tokens == 0).argmax())
  return (
    f"{column}: character {place + 1} is {grid[place]!r}; expected {form.cell}"
  )


def _tokens(grids: Sequence[str], form: CsvFormat) -> np.ndarray:
  """Converts grids to tokens, 0 for characters not in the alphabet."""
  token_of_byte = np.zeros(256, np.uint8)
  for character, token in form.alphabet.items():
    token_of_byte[ord(character)] = token
  # Each character that is not ASCII becomes one '?', so lengths are kept.
  characters = "".join(grids).encode("ascii", errors="replace")
  codes = np.frombuffer(characters, np.uint8).reshape(-1, form.length)
  return token_of_byte[codes]
