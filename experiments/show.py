"""Draws puzzles, their solutions and augmented copies, and a model's answers.

    trm show --task=sudoku|maze|arc --out=FILE.png
        [--data=SOURCE] [--size=N] [--copies=K]
    trm show --workdir=DIR --out=FILE.png|FILE.gif
        [--data=SOURCE] [--depth=N] [--checkpoint=best|last|STEP]
        [--puzzle_id=error|mean|blank] [--copies=K]

Both take [--puzzles=N | --name=TASK,TASK] [--split=train|test] [--seed=N]
[--skip_bad_rows]. A source is a file of puzzles (csv, JSON lines, text), an ARC
folder or challenges file, or a folder in the reference's layout. Without one,
Sudokus and mazes are generated.

With --workdir, draws the test puzzles of a run and the model's answers. Wrong
cells are marked, and a bar is the probability of halting. A GIF has a frame for
each supervision step; cells that have just changed are framed.
"""

import dataclasses
from typing import Any

from absl import flags

from trm_jax.cli import app

flags.DEFINE_string("out", "", "The PNG or GIF to write.")
flags.DEFINE_string("task", None, "The task: sudoku, maze or arc.")
flags.DEFINE_string("workdir", "", "Folder of a run.")
flags.DEFINE_string("data", "", "Source of the puzzles.")
flags.DEFINE_integer(
  "size", None, "Cells along one side; 9 in Sudoku, else 30.", lower_bound=1
)
flags.DEFINE_enum("split", "test", ["train", "test"], "The split to draw.")
flags.DEFINE_integer(
  "puzzles", 3, "Puzzles to draw.", lower_bound=1, upper_bound=100
)
flags.DEFINE_list("name", [], "ARC: names of the tasks to draw.")
flags.DEFINE_integer(
  "copies", 0, "Augmented copies of each puzzle.", lower_bound=0, upper_bound=20
)
flags.DEFINE_integer(
  "seed", 0, "Seed of the choice of puzzles and copies.", lower_bound=0,
  upper_bound=2**31 - 1,
)  # fmt: skip
flags.DEFINE_integer(
  "depth", None, "Supervision steps; as in the run's evaluation by default.",
  lower_bound=1, upper_bound=256,
)  # fmt: skip
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
flags.DEFINE_enum(
  "puzzle_id", "error", ["error", "mean", "blank"],
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
app.define_skip_bad_rows()


def main(argv: list[str]) -> int:
  """Draws what the flags request."""
  from trm_jax.cli import show

  app.no_arguments(argv)
  names = [field.name for field in dataclasses.fields(show.ShowRequest)]
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  show.draw(show.ShowRequest(**values))
  return 0


if __name__ == "__main__":
  app.run(main)
