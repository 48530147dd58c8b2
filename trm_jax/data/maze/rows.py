"""Mazes in files: which are bad, and answers by search."""

import numpy as np

from trm_jax.data.csv_rows import CsvFormat
from trm_jax.data.maze import grid, paths
from trm_jax.data.text import Layout


def csv_format(size: int) -> CsvFormat:
  """The format of mazes with a shortest path as answer."""
  return CsvFormat(
    length=size * size,
    board=f"a {size}x{size} maze",
    alphabet=grid.TOKENS,
    cell=grid.CELL,
    faults=_faults,
    answer=_answer,
    layout=Layout(side=size),
  )


def _answer(question: np.ndarray) -> np.ndarray:
  ends = np.bincount(question, minlength=grid.PATH + 1)
  if ends[grid.START] == ends[grid.GOAL] == 1:
    return paths.shortest_path(question)
  return question  # `_faults` names the fault


def _faults(inputs, labels):
  """Yields kinds of faults, see `csv_rows.CsvFormat.faults`."""
  for token in (grid.START, grid.GOAL):
    count = (inputs == token).sum(-1)
    name = grid.render(np.array([token]))
    yield (
      count != 1,
      lambda row, count=count, name=name: (
        f"question: {count[row]} cells {name!r}; expected exactly one"
      ),
    )
  yield (
    (inputs == grid.PATH).any(-1),
    lambda row: "question: it holds 'o', a path; expected the bare maze",
  )
  is_path = labels == grid.PATH
  changed = (inputs != labels) & ~((inputs == grid.FREE) & is_path)
  yield (
    changed.any(-1),
    lambda row: _describe(inputs[row], labels[row], changed[row]),
  )
  steps, marked = _count_steps(inputs, is_path)
  yield (
    steps == 0,
    lambda row: "question: there is no way from 'S' to 'G'; expected one",
  )
  yield (
    marked == 0,
    lambda row: "answer: its 'o' do not lead from 'S' to 'G'; expected a path",
  )
  count = is_path.sum(-1)
  yield (
    count != steps - 1,
    lambda row: (
      f"answer: {count[row]} cells 'o'; expected {steps[row] - 1}, as a "
      f"shortest path has"
    ),
  )


def _describe(question, answer, changed):
  """The message on the first cell that may not change."""
  cell = int(changed.argmax())
  was, now = grid.render(question[[cell]]), grid.render(answer[[cell]])
  return (
    f"answer: character {cell + 1} turns {was!r} into {now!r}; expected "
    f"nothing but free cells to change, into 'o'"
  )


def _count_steps(inputs, is_path):
  """Lengths of shortest paths in mazes and along labels; 0 for none."""
  steps = np.zeros((2, len(inputs)), np.int32)
  is_end = (inputs == grid.START) | (inputs == grid.GOAL)
  for row, maze in enumerate(inputs):
    goal = int((maze == grid.GOAL).argmax())
    marked = np.where(is_path[row] | is_end[row], maze, grid.WALL)
    for role, cells in enumerate((maze, marked)):
      steps[role, row] = max(0, paths.search(cells, grid.START)[0][goal])
  return steps
