"""Where the rows, columns and boxes of a Sudoku board lie."""

import functools

import numpy as np

from trm_jax.errors import UserError

# size -> rows and columns of a box.
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


def check_size(size: int) -> None:
  """Raises a `UserError` unless boards of this size exist."""
  if size not in BOXES:
    raise UserError(
      f"size: {size!r} is not a Sudoku size; choose one of {sorted(BOXES)}."
    )


@functools.cache
def units(size: int) -> np.ndarray:
  """Lists the groups of cells that must hold every digit once.

  Args:
    size: cells along one side of the board.

  Returns:
    int32 [3 * size, size] cell numbers: the rows, the columns, the boxes.
  """
  height, width = BOXES[size]
  rows = np.arange(size * size, dtype=np.int32).reshape(size, size)
  boxes = rows.reshape(size // height, height, size // width, width)
  boxes = boxes.swapaxes(1, 2).reshape(size, size)
  table = np.concatenate([rows, rows.T, boxes])
  table.setflags(write=False)  # it is shared by every caller
  return table
