"""Draws puzzles, answers, augmented copies, and what a model makes of them.

    trm show --task=sudoku|maze|arc --out=FILE.png
        [--data=SOURCE] [--size=N] [--copies=K]
    trm show --workdir=DIR --out=FILE.png|FILE.gif
        [--data=SOURCE] [--depth=N] [--checkpoint=best|last|STEP]
        [--puzzle_id=error|mean|blank] [--copies=K]

Both take [--puzzles=N | --name=TASK,TASK] [--split=train|test] [--seed=N]
[--skip_bad_rows]. Sources are csv files, ARC folders and challenges, and
folders in the reference's layout; without one, Sudoku and mazes are generated.

Of a run, its test puzzles are drawn beside the model's answers. Wrong cells
are marked, and a bar shows the probability of halting. A GIF has the answer
after each supervision step; cells that have just changed are framed.
"""

import dataclasses
from typing import Any

from absl import flags

from trm_jax.cli import app

flags.DEFINE_string("out", "", "The PNG or GIF to write.")
flags.DEFINE_enum("task", None, ["sudoku", "maze", "arc"], "The task.")
flags.DEFINE_string("workdir", "", "Folder of a run.")
flags.DEFINE_string("data", "", "Where to take puzzles from.")
flags.DEFINE_integer(
  "size", None, "Cells along one side; 9 in Sudoku, else 30.", lower_bound=1
)
flags.DEFINE_enum("split", "test", ["train", "test"], "Which split.")
flags.DEFINE_integer(
  "puzzles", 3, "Puzzles to draw.", lower_bound=1, upper_bound=100
)
flags.DEFINE_list("name", [], "ARC: draw the tasks of these names.")
flags.DEFINE_integer(
  "copies", 0, "Augmented copies of each puzzle.", lower_bound=0, upper_bound=20
)
flags.DEFINE_integer(
  "seed", 0, "Of the choice of puzzles, and of copies.", lower_bound=0
)
flags.DEFINE_integer(
  "depth", None, "Supervision steps. As in the run's evaluation by default.",
  lower_bound=1, upper_bound=256,
)  # fmt: skip
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
flags.DEFINE_enum(
  "puzzle_id", "error", ["error", "mean", "blank"],
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
app.define_skip_bad_rows()


def main(argv: list[str]) -> int:
  """Draws what the flags say."""
  from trm_jax.cli import show

  app.no_arguments(argv)
  names = [field.name for field in dataclasses.fields(show.Request)]
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  show.draw(show.Request(**values))
  return 0


if __name__ == "__main__":
  app.run(main)
