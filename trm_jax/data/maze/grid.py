"""The maze grid: tokens, rules and drawing.

Tokens are those of the reference: 0 pads, and `# SGo` (wall, free cell, start,
goal, path) are 1 to 5. Cells are numbered in row-major order; a step leads to
the cell above, below, to the left or to the right.
"""

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.errors import UserError

WALL = 1
FREE = 2
START = 3
GOAL = 4
PATH = 5
_CHARACTERS = {WALL: "#", FREE: " ", START: "S", GOAL: "G", PATH: "o"}
# Other programs write '.' for a free cell and 'E' for the goal.
TOKENS = {c: token for token, c in _CHARACTERS.items()} | {".": FREE, "E": GOAL}

# What a character may be, for messages.
CELL = (
  "'#' (wall), ' ' or '.' (free cell), 'S' (start), 'G' or 'E' (goal) or 'o' "
  "(path)"
)

# These colours also differ in grey.
_COLORS = {
  WALL: "#303030",
  FREE: "#ffffff",
  START: "#7fc97f",
  GOAL: "#e08fb0",
  PATH: "#f0b254",
}
_NO_CELL_COLOR = "#8080c0"
_STYLES = {
  "#": "#303030 on #303030",
  " ": "#303030 on #ffffff",
  "S": "bold #000000 on #7fc97f",
  "G": "bold #000000 on #e08fb0",
  "o": "#000000 on #f0b254",
}


def parse(text: str, *, size: int) -> np.ndarray:
  """Reads a maze from one line of text, or from one line per row."""
  lines = text.replace("\r\n", "\n").strip("\n").split("\n")
  cells = "".join(lines)
  if [len(line) for line in lines] not in ([size * size], [size] * size):
    raise UserError(
      f"a {size}x{size} maze is one line of {size * size} characters, or "
      f"{size} lines of {size}, but there are {len(lines)} lines and "
      f"{len(cells)} characters. Spaces are free cells and must all be there, "
      f"those at the end of a line as well."
    )
  for cell, character in enumerate(cells):
    if character not in TOKENS:
      raise UserError(
        f"row {cell // size + 1}, column {cell % size + 1} of the maze is "
        f"{character!r}; expected {CELL}."
      )
  tokens = np.array([TOKENS[character] for character in cells], np.uint8)
  for end in (START, GOAL):
    count = int((tokens == end).sum())
    if count != 1:
      raise UserError(
        f"the maze has {count} cells {_CHARACTERS[end]!r}; expected one."
      )
  return tokens


def render(tokens: np.ndarray) -> str:
  """Writes a maze [L] on one line; `?` is an invalid token."""
  return "".join(_CHARACTERS.get(int(token), "?") for token in tokens)


def is_valid(inputs: jax.Array, answers: jax.Array, *, size: int) -> jax.Array:
  """Whether answers mark any shortest path from start to goal.

  No label is used, as most mazes have many shortest paths. The answer must keep
  all cells except for free cells that become path. A maze without exactly one
  start and one goal, or with an unreachable goal, has no valid answer.
  Inputs and answers are integers [..., L]; the result is bool [...].
  """
  inputs, answers = jnp.asarray(inputs), jnp.asarray(answers)
  is_free, is_path = inputs == FREE, answers == PATH
  is_start, is_goal = inputs == START, inputs == GOAL
  is_kept = ((inputs == answers) | (is_free & is_path)).all(-1)
  is_maze = (is_start.sum(-1) == 1) & (is_goal.sum(-1) == 1)
  # The marked cells connect start and goal in the fewest steps, and no others
  # are marked. Without any path, steps - 1 is -1, which no count equals.
  steps = _distance(is_free, is_start, is_goal, size)
  marked = _distance(is_free & is_path, is_start, is_goal, size)
  is_shortest = (marked == steps) & (is_path.sum(-1) == steps - 1)
  return is_kept & is_maze & is_shortest


def _distance(is_open, is_start, is_goal, size):
  """Steps from start to goal, int32 [...]; 0 if there is no path."""
  # Breadth-first search. The frontier of a maze becomes empty when its goal is
  # reached or no new cell can be.
  shape = (*is_open.shape[:-1], size, size)
  start, goal = is_start.reshape(shape), is_goal.reshape(shape)
  unseen = is_open.reshape(shape) | goal

  def spread(state):
    frontier, unseen, steps, count = state
    frontier = _neighbours(frontier) & unseen
    arrived = (frontier & goal).any((-2, -1))
    steps = jnp.where(arrived, count, steps)
    unseen &= ~frontier
    frontier &= ~arrived[..., None, None]
    return frontier, unseen, steps, count + 1

  steps = jnp.zeros(shape[:-2], jnp.int32)
  state = (start, unseen, steps, jnp.int32(1))
  return jax.lax.while_loop(lambda s: s[0].any(), spread, state)[2]


def _neighbours(cells):
  """The cells one step away from bool cells [..., size, size]."""
  padded = jnp.pad(cells, [(0, 0)] * (cells.ndim - 2) + [(1, 1), (1, 1)])
  return (
    padded[..., :-2, 1:-1]
    | padded[..., 2:, 1:-1]
    | padded[..., 1:-1, :-2]
    | padded[..., 1:-1, 2:]
  )


def style(character: str, given: str) -> str:
  """The rich style of a cell; a wall is a solid block."""
  del given
  return _STYLES.get(character, "#000000 on #8080c0")


def draw(axes, puzzle, answer=None, label=None) -> None:
  """Draws a maze or an answer onto matplotlib axes; see `Task.draw`.

  Walls are dark, free cells white, the path orange, start and goal are letters,
  and wrong cells are crossed.
  """
  from matplotlib import colors  # slow to import

  shown = np.asarray(puzzle if answer is None else answer)
  size = round(len(shown) ** 0.5)
  image = np.array(
    [colors.to_rgb(_COLORS.get(int(token), _NO_CELL_COLOR)) for token in shown]
  )
  axes.imshow(image.reshape(size, size, 3), extent=(0, size, size, 0))
  # The size of a cell in points on a picture of some 3 inches.
  points = min(200 / size, 14)
  for cell in np.flatnonzero((shown == START) | (shown == GOAL)):
    row, column = divmod(int(cell), size)
    axes.text(
      column + 0.5, row + 0.5, render(shown[[cell]]), fontsize=points * 0.9,
      fontweight="bold", ha="center", va="center_baseline",
    )  # fmt: skip
  if label is not None:
    wrong = np.flatnonzero(shown != np.asarray(label))
    columns, rows = wrong % size + 0.5, wrong // size + 0.5
    # A light edge keeps the cross visible on a dark cell.
    for color, width in (("white", points * 0.35), ("tab:red", points * 0.15)):
      axes.plot(columns, rows, "x", ms=points * 0.6, mew=width, color=color)
  axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
