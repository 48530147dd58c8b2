"""Draws puzzles, answers, augmented copies, and what a model makes of them.

    python -m experiments.show --task=sudoku|maze|arc --out=FILE.png
        [--data=SOURCE] [--size=N] [--copies=K]
    python -m experiments.show --workdir=DIR --out=FILE.png|FILE.gif
        [--data=SOURCE] [--depth=N] [--checkpoint=best|last|STEP]
        [--puzzle_id=error|mean|blank] [--copies=K]

Both take [--puzzles=N | --name=TASK,TASK] [--split=train|test] [--seed=N]
[--skip_bad_rows]. Sources are csv files, ARC folders and challenges, and
folders in the reference's layout; without one, Sudoku and mazes are made up.

Of a run, its test puzzles are drawn beside the model's answers. Wrong cells
are marked, and a bar shows the probability of halting. A GIF has the answer
after each supervision step; cells that have just changed are framed.
"""

import dataclasses
import difflib
import os
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from trm_jax import config as config_lib
from trm_jax.cli import app, report
from trm_jax.config import Experiment
from trm_jax.core.halting import Puzzles
from trm_jax.data import datasets
from trm_jax.data.task import Settings, Split
from trm_jax.draw import pictures
from trm_jax.draw import scenes as scenes_lib
from trm_jax.draw.scenes import Scene
from trm_jax.errors import UserError
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate, held_out

_OUT = flags.DEFINE_string("out", "", "The PNG or GIF to write.")
_TASK = flags.DEFINE_enum("task", None, list(datasets.TASKS), "The family.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of a run.")
_DATA = flags.DEFINE_string("data", "", "Where to take puzzles from.")
_SIZE = flags.DEFINE_integer(
  "size", None, "Cells along one side; 9 in Sudoku, else 30.", lower_bound=1
)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "test"], "Which split.")
_PUZZLES = flags.DEFINE_integer(
  "puzzles", 3, "Puzzles to draw.", lower_bound=1, upper_bound=100
)
_NAME = flags.DEFINE_list("name", [], "ARC: draw the tasks of these names.")
_COPIES = flags.DEFINE_integer(
  "copies", 0, "Augmented copies of each puzzle.", lower_bound=0, upper_bound=20
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the choice of puzzles, and of copies.", lower_bound=0
)
_DEPTH = flags.DEFINE_integer(
  "depth", None, "Supervision steps. As in the run's evaluation by default.",
  lower_bound=1, upper_bound=256,
)  # fmt: skip
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_PUZZLE_ID = flags.DEFINE_enum(
  "puzzle_id", "error", datasets.UNSEEN,
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
_SKIP_BAD_ROWS = app.define_skip_bad_rows()

_SECONDS = 0.7  # of a frame
_OF_RUNS = ("depth", "checkpoint", "puzzle_id")  # flags that need a model


def main(argv: list[str]) -> int:
  """Draws what the flags say."""
  app.no_arguments(argv)
  _check_flags()
  out = pathlib.Path(_OUT.value)
  folder = RunFolder(_WORKDIR.value) if _WORKDIR.value else None
  experiment = _read(folder) if folder else None
  with tempfile.TemporaryDirectory() as scratch:
    data = experiment.data if experiment else _fresh_data(scratch)
    data = held_out.choose_data(data, _DATA.value, _SKIP_BAD_ROWS.value)
    split = _choose(data)
    scenes = scenes_lib.scenes_of(
      split, data.task, examples=_load_examples(data),
      copies=_COPIES.value, seed=_SEED.value,
    )  # fmt: skip
  frames, title = [scenes], ""
  if folder and experiment:
    experiment = dataclasses.replace(experiment, data=data)
    frames, title = _answer(scenes, split, folder, experiment)
  figures = (
    pictures.panels(frame, data.task, title, len(frames)) for frame in frames
  )
  if out.suffix == ".gif":
    pictures.save_gif(figures, out, _SECONDS)
  else:
    pictures.save_png(next(figures), out)
  print(f"wrote {out}")
  return 0


def _check_flags():
  """Refuses flags that do not go together."""
  suffix = pathlib.Path(_OUT.value).suffix
  if suffix not in (".png", ".gif"):
    raise UserError(f"--out={_OUT.value}: the name must end in .png or .gif")
  given = [name for name in _OF_RUNS if flags.FLAGS[name].present]
  if suffix == ".gif":
    given.append("out")
  if given and not _WORKDIR.value:
    flag = f"--{given[0]}={flags.FLAGS[given[0]].value}"
    raise UserError(f"{flag}: needs a model; name a run with --workdir")
  if not _TASK.value and not _WORKDIR.value:
    names = ", ".join(datasets.TASKS)
    raise UserError(f"--task is missing: one of {names}; or --workdir")
  if _SIZE.value and _WORKDIR.value:
    raise UserError(f"--size={_SIZE.value}: the run knows it; leave it out")


def _read(folder: RunFolder) -> Experiment:
  """The experiment of a run, of the task that was asked for."""
  experiment = config_lib.read(folder.read_config())
  task = experiment.task.name
  if _TASK.value not in (None, task):
    raise UserError(
      f"--task={_TASK.value}: the run in {folder.path} is of {task}; leave "
      "--task out, or choose another --workdir"
    )
  return experiment


def _fresh_data(scratch: str) -> Settings:
  """Data without a run: some puzzles made up, or the ARC source."""
  return datasets.TASKS[str(_TASK.value)].few(
    size=_SIZE.value, split=_SPLIT.value, count=_PUZZLES.value,
    copies=_COPIES.value, source=_DATA.value, seed=_SEED.value,
    cache_dir=scratch,
  )  # fmt: skip


def _choose(data: Settings) -> Split:
  """The puzzles to draw; those without a name are called by their place."""
  path = os.path.expanduser(_DATA.value)
  if _NAME.value and not data.task.parse_names:
    raise UserError("--name: only ARC tasks have names; choose by --seed")
  if data.task.dataset.read_rows and os.path.isfile(path):
    return _choose_rows(data, path)
  # What a run keeps may take a while to make; other data is small.
  say = app.say if _WORKDIR.value else lambda message: None
  for note in datasets.prepare(data, say):
    app.say(f"note: {note}")
  if _NAME.value:
    split = datasets.load(data, _SPLIT.value)
    return split.take(_places(split.names))
  count = datasets.num_groups(data, _SPLIT.value)
  groups = held_out.choose_groups(count, _PUZZLES.value, _SEED.value)
  split = datasets.load(data, _SPLIT.value, groups)
  places = tuple(f"{_SPLIT.value} puzzle {group}" for group in groups)
  return dataclasses.replace(split, names=split.names or places)


def _choose_rows(data: Settings, path: str) -> Split:
  """Rows of a file; a dataset would search all for second solutions first."""
  if _SPLIT.value == "train":
    raise UserError("--split=train: a file is no run's training data")
  assert data.task.dataset.read_rows
  rows = data.task.dataset.read_rows(data, path)
  if rows.skipped:
    app.say(f"note: {len(rows.skipped):,} bad rows of {path} were left out")
  groups = held_out.choose_groups(len(rows), _PUZZLES.value, _SEED.value)
  rows = rows.take(groups)
  lines = tuple(f"line {line}" for line in rows.lines)
  split = Split.of_rows(rows.inputs, rows.labels)
  return dataclasses.replace(split, names=lines)


def _places(names: Sequence[str]) -> np.ndarray:
  """Where the tasks of `--name` are among all of a split."""
  for name in _NAME.value:
    if name not in names:
      similar = difflib.get_close_matches(name, names, cutoff=0)
      raise UserError(
        f"--name={name}: the {_SPLIT.value} split has no task of this name; "
        f"similar are {', '.join(similar) or 'none'}"
      )
  return np.array([names.index(name) for name in _NAME.value])


def _load_examples(data: Settings) -> Split | None:
  """The pairs that show what an ARC task asks for, where they are known."""
  if not data.task.copies or _SPLIT.value == "train":
    return None
  if data.path and not datasets.has_split(data, "train"):
    return None
  return datasets.load(data, "train")


def _answer(
  scenes: Sequence[Scene],
  split: Split,
  folder: RunFolder,
  experiment: Experiment,
) -> tuple[list[list[Scene]], str]:
  """Adds a model's answers: for a film after each step, else after the last.

  Returns:
    The scenes of each frame, and what answers.
  """
  known = folder.read_identifiers()
  names = datasets.identifiers(experiment.data)
  originals = split.take(np.arange(len(split)), copies=1)
  originals = datasets.match_ids(originals, names, known, _PUZZLE_ID.value)
  step, params = held_out.restore(
    folder, experiment, _CHECKPOINT.value, _PUZZLE_ID.value
  )
  asked = [pair.question for scene in scenes for pair in scene.asked]
  questions = jnp.asarray(np.stack(asked))
  counts = [len(scene.asked) for scene in scenes]
  ids = jnp.asarray(np.repeat(originals.puzzle_ids, counts))
  puzzles = Puzzles.of(questions, questions, ids)
  depth = _DEPTH.value or experiment.eval.depth
  if not experiment.model.is_recursive:
    depth = 1  # there is nothing to refine
  answers, q_halt = jax.device_get(
    evaluate.refine(params, puzzles, depth, experiment.model)
  )
  first = 0 if _OUT.value.endswith(".gif") else depth - 1
  frames = scenes_lib.with_answers(
    scenes, experiment.task, answers[first:], q_halt[first:], first + 1
  )
  return frames, report.title(experiment, step)


if __name__ == "__main__":
  app.run(main)
