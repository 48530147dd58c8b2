"""Text and tables on a console.

Text from outside, such as names of tasks, is printed as it is: markup, emoji
codes and control characters in it have no effect.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trm_jax.errors import printable

_LOG_WIDTH = 160  # a log has no width
_LEAST_TEXT = 20  # width to which columns of text may shrink
_WORDS = re.compile(r"± \S+|\S+")


class _Console(Console):
  def render_str(self, text: str, **options) -> Text:
    return super().render_str(printable(text), **options)


def make(stderr: bool = False, quiet: bool = False) -> Console:
  """A console for standard output, or standard error."""
  console = _Console(
    stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False
  )
  if not console.is_terminal:
    console.width = _LOG_WIDTH
  return console


def print_table(
  heads: Sequence[str],
  rows: Iterable[Sequence[str]],
  title: str = "",
  keys: int = 1,
  texts: Collection[int] = (0,),
  bold: Collection[int] = (),
  lines: bool = False,
  console: Console | None = None,
):
  """Prints a table whose numbers are never cut.

  Where the console is too narrow, columns wrap between words; then further
  columns move to another table below.

  Args:
    heads: of the columns.
    rows: a text per column.
    title: above the table.
    keys: the first columns, which all tables have.
    texts: indices of columns that are aligned at the left and wrap anywhere.
    bold: indices of bold rows.
    lines: whether to draw lines between rows.
    console: by default standard output.
  """
  console = console or make()
  border = 3
  heads, *rows = [[printable(text) for text in row] for row in (heads, *rows)]
  columns = list(zip(heads, *rows, strict=True))
  widths = [_width(column, str.splitlines) for column in columns]
  least = [_width(column, _WORDS.findall) for column in columns]
  for index in texts:
    least[index] = min(least[index], _LEAST_TEXT)
  shared = list(range(keys))
  tables: list[list[int]] = []  # the columns of each
  for index in range(keys, len(heads)):
    needed = [*(tables[-1] if tables else shared), index]
    total = 1 + sum(least[i] + border for i in needed)
    if tables and total <= console.width:
      tables[-1] = needed
    else:
      tables.append([*shared, index])
  for indices in tables or [shared]:
    room = console.width - 1 - sum(least[i] + border for i in indices)
    table = Table(title=title, show_lines=lines)
    cells = []
    for i in indices:
      grown = min(widths[i] - least[i], max(room, 0))
      room -= grown
      width = least[i] + grown
      justify = "left" if i in texts else "right"
      table.add_column(heads[i], justify=justify, width=width, overflow="fold")
      # A number and its standard error are on one line or on two.
      error = " ±" if width == widths[i] else "\n±"
      cells.append([row[i].replace(" ±", error) for row in rows])
    for number, row in enumerate(zip(*cells, strict=True)):
      table.add_row(*row, style="bold" if number in bold else None)
    if room < 0:  # the terminal wraps lines
      console.width -= room
    console.print(table)


def _width(texts: Iterable[str], split: Callable[[str], Sequence[str]]) -> int:
  return max((len(part) for text in texts for part in split(text)), default=1)
