"""How people write Sudokus as text: with lines, titles, spaces and remarks."""

import functools
import re

from trm_jax.data.text import Layout
from trm_jax.errors import UserError

BLANKS = ".0*_-xX"
_CELLS = frozenset(BLANKS + "123456789")
_RULERS = "-*_"  # blanks that also draw lines between rows
_LINES = frozenset("+=|~" + _RULERS + "".join(map(chr, range(0x2500, 0x2580))))
_BARS = str.maketrans("", "", " \t\xa0|!\u2502\u2503\u2551")
# Where the remark behind a puzzle begins.
_REMARK = " \t,;|#"


def layout(size: int) -> Layout:
  """The layout of boards of this size; see `text.Layout`."""
  return Layout(
    cells=functools.partial(_cells, size=size),
    side=size,
    comment="#",
    skipped=("[state", "[pencil", "[colour", "[color"),
    is_title=functools.partial(_is_title, size=size),
    blanks=BLANKS,
    rulers=_RULERS,
  )


def _cells(line: str, size: int) -> str | None:
  """The cells of a row or a board, see `Layout.cells`."""
  text = line.partition("#")[0].strip()
  if not text or text.lower() == "[puzzle]":
    return ""
  count = size * size
  cells = text.translate(_BARS)
  used = set(cells)
  if used <= _CELLS and not used <= set(_RULERS):
    return cells
  if used <= _LINES:
    may_be_blank = len(used) == 1 and used <= set(_RULERS)
    return cells if may_be_blank and len(cells) in (size, count) else None
  head, rest = text[:count], text[count:]
  if len(head) == count and set(head) <= _CELLS and rest[:1] in tuple(_REMARK):
    if _count_cells(rest) >= count:
      raise UserError(
        "two boards on a line; a csv file names its columns first, as in "
        "question,answer"
      )
    return head
  if len(cells) in (size, count) and 2 * _count_cells(cells) >= len(cells):
    return cells  # `parse` names the wrong character
  raise UserError(
    f"no Sudoku; expected {count} cells or a row of {size}: digits, with one "
    f"of {' '.join(BLANKS)} for a blank"
  )


def _count_cells(text: str) -> int:
  return sum(character in _CELLS for character in text)


def _is_title(line: str, size: int) -> bool:
  """Whether a line begins with a word, and holds fewer cells than a row."""
  text = line.translate(_BARS)
  found = _count_cells(text)
  is_word = re.match(r"\W*(?![xX]{2})[^\W\d_]{2}", text)
  return bool(is_word) and (found < size or 2 * found < len(text))
