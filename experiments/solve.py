"""Solves puzzles from a file or from standard input.

    trm solve --workdir=RUN|FILE.safetensors [FILE|-]
        [--depth=16] [--confidence=0.8 | --fixed] [--breadth=K] [--several]
        [--select=RULE] [--cycle_noise=0.2] [--views] [--seed=0]
        [--checkpoint=best|last|STEP] [--puzzle_id=error|mean|blank]
        [--batch_size=256] [--memory=4GB] [--json | --show] [--gif=FILE.gif]

Puzzles are Sudokus (81 characters on a line, or 9 rows), mazes as text
separated by empty lines, csv with a column `question` or `puzzle`, JSON objects
with such a field, or the json of an ARC task; a file may be compressed. From a
pipe, they are answered as they arrive. Answers are written in the same order;
--several writes all answers of the rollouts, each below its fraction; --json an
object a line, with confidence, steps, alternatives and history.

A puzzle halts when its confidence (calibrated after `evaluate --calibrate`) is
above --confidence, or the task's rules say it is solved. Invalid puzzles are
reported with their line, and the exit status is then 1.

    echo "1..4....3..2...." | trm solve --workdir=RUN -
"""

from absl import flags

from trm_jax.cli import app, solve_flags
from trm_jax.solve.rules import SELECTS

_WORKDIR = flags.DEFINE_string("workdir", "", "A run, or exported weights.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_FIXED = flags.DEFINE_bool("fixed", False, "Never halt before --depth.")
_SEVERAL = flags.DEFINE_bool(
  "several", False, "Write all answers of 16 rollouts, or --breadth if more."
)
_MEMORY = flags.DEFINE_string(
  "memory", "", "Memory limit of a device, such as 4GB; lowers --batch_size."
)
_JSON = flags.DEFINE_bool("json", False, "Write one JSON object per line.")
_SHOW = flags.DEFINE_bool("show", False, "Draw each step in the terminal.")
_GIF = flags.DEFINE_string("gif", "", "Draw each step into this file.")
# Fields of `ReasonConfig`.
_FIELDS = {
  "max_recursion_depth": flags.DEFINE_integer(
    "depth", 16, "Supervision steps at most.", lower_bound=1
  ),
  "confidence_threshold": flags.DEFINE_float(
    "confidence", 0.8, "Halt above this probability that the answer is right."
  ),
  "breadth": flags.DEFINE_integer(
    "breadth", 1, "Rollouts of each puzzle.", lower_bound=1
  ),
  "select": flags.DEFINE_enum("select", "q", SELECTS, "The selection rule."),
  "cycle_noise": flags.DEFINE_float(
    "cycle_noise", 0.2, "Noise on rollouts but the first.", lower_bound=0.0
  ),
  "views": flags.DEFINE_bool("views", False, "Rollouts see random symmetries."),
  "batch_size": flags.DEFINE_integer(
    "batch_size", 256, "Rollouts at once.", lower_bound=1
  ),
  "puzzle_id": solve_flags.define_puzzle_id(),
  "seed": flags.DEFINE_integer("seed", 0, "Random seed.", lower_bound=0),
}


def main(argv: list[str]) -> int:
  """Solves the puzzles of a file or of standard input."""
  from trm_jax.cli import answers

  form = answers.Form(_SEVERAL.value, _JSON.value, _SHOW.value, _GIF.value)
  confidence = _FIELDS["confidence_threshold"].value
  answers.check(argv, _WORKDIR.value, confidence, form)
  config = {name: flag.value for name, flag in _FIELDS.items()}
  config["early_stopping"] = not _FIXED.value
  return answers.solve(
    _WORKDIR.value, _CHECKPOINT.value, argv[1] if argv[1:] else "-", config,
    form, _MEMORY.value,
  )  # fmt: skip


if __name__ == "__main__":
  app.run(main)
