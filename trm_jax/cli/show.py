"""The program `show`: chooses puzzles, adds a model's answers, draws them."""

import dataclasses
import difflib
import os
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

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

_FRAME_SECONDS = 0.7


@dataclasses.dataclass(frozen=True)
class ShowRequest:
  """What to draw: the flags of `experiments/show.py`.

  Raises:
    UserError: for flags that do not go together.
  """

  out: str
  task: str | None = None
  workdir: str = ""
  data: str = ""
  size: int | None = None
  split: str = "test"
  puzzles: int = 3
  name: Sequence[str] = ()
  copies: int = 0
  seed: int = 0
  depth: int | None = None
  checkpoint: str = "best"
  puzzle_id: str = "error"
  skip_bad_rows: bool = False

  def __post_init__(self):
    if pathlib.Path(self.out).suffix not in (".png", ".gif"):
      raise UserError(f"--out={self.out}: the name must end in .png or .gif")
    model_flags = {"depth": None, "checkpoint": "best", "puzzle_id": "error"}
    given = [n for n, unset in model_flags.items() if getattr(self, n) != unset]
    if self.is_film:
      given.append("out")
    if given and not self.workdir:
      flag = f"--{given[0]}={getattr(self, given[0])}"
      raise UserError(f"{flag}: needs a model; name a run with --workdir")
    names = ", ".join(datasets.TASKS)
    if not self.task and not self.workdir:
      raise UserError(f"--task is missing: one of {names}; or --workdir")
    if self.task and self.task not in datasets.TASKS:
      raise UserError(f"--task={self.task}: must be one of {names}")
    generates = hasattr(datasets.TASKS.get(self.task or ""), "num_test")
    if self.task and not (self.workdir or self.data or generates):
      raise UserError(
        f"--data is missing: puzzles of {self.task} are not generated; name a "
        "folder of tasks, a file ..._challenges.json, or a folder in the "
        "reference's layout"
      )
    if self.size and self.workdir:
      raise UserError(f"--size={self.size}: the run knows it; leave it out")

  @property
  def is_film(self) -> bool:
    """Whether to draw one frame per supervision step."""
    return self.out.endswith(".gif")


def draw(request: ShowRequest):
  """Draws a picture or film, and writes it."""
  out = pathlib.Path(request.out)
  folder = RunFolder(request.workdir) if request.workdir else None
  experiment = _read(folder, request) if folder else None
  with tempfile.TemporaryDirectory() as scratch:
    data = experiment.data if experiment else _new_data(request, scratch)
    data = held_out.choose_data(data, request.data, request.skip_bad_rows)
    split = _choose(data, request)
    scenes = scenes_lib.scenes_of(
      split, data.task, examples=_load_examples(data, request.split),
      copies=request.copies, seed=request.seed,
    )  # fmt: skip
  frames, title = [scenes], ""
  if folder and experiment:
    experiment = dataclasses.replace(experiment, data=data)
    frames, title = _answer(scenes, split, folder, experiment, request)
  figures = (
    pictures.panels(frame, data.task, title, len(frames)) for frame in frames
  )
  if request.is_film:
    pictures.save_gif(figures, out, _FRAME_SECONDS)
  else:
    pictures.save_png(next(figures), out)
  print(f"wrote {out}")


def _read(folder: RunFolder, request: ShowRequest) -> Experiment:
  """The experiment of a run; checks its task."""
  experiment = config_lib.read(folder.read_config())
  task = experiment.task.name
  if request.task not in (None, task):
    raise UserError(
      f"--task={request.task}: the run in {folder.path} is of {task}; leave "
      "--task out, or choose another --workdir"
    )
  return experiment


def _new_data(request: ShowRequest, scratch: str) -> Settings:
  """Data without a run: generated puzzles, or the ARC source."""
  return datasets.TASKS[str(request.task)].few(
    size=request.size, split=request.split, count=request.puzzles,
    copies=request.copies, source=request.data, seed=request.seed,
    cache_dir=scratch,
  )  # fmt: skip


def _choose(data: Settings, request: ShowRequest) -> Split:
  """The puzzles to draw; those without a name are named by their index."""
  path = os.path.expanduser(request.data)
  if request.name and not data.task.parse_names:
    raise UserError("--name: only ARC tasks have names; choose by --seed")
  if data.task.dataset.read_rows and os.path.isfile(path):
    return _choose_rows(data, path, request)
  # A run's data may take long to prepare; other data is small.
  say = app.say if request.workdir else lambda message: None
  for note in datasets.prepare(data, say):
    app.say(f"note: {note}")
  if request.name:
    split = datasets.load(data, request.split)
    return split.take(_places(split.names, request))
  count = datasets.num_groups(data, request.split)
  groups = held_out.choose_groups(count, request.puzzles, request.seed)
  split = datasets.load(data, request.split, groups)
  places = tuple(f"{request.split} puzzle {group}" for group in groups)
  return dataclasses.replace(split, names=split.names or places)


def _choose_rows(data: Settings, path: str, request: ShowRequest) -> Split:
  """Rows of a file; a dataset would first check all for unique solutions."""
  if request.split == "train":
    raise UserError("--split=train: a file is no run's training data")
  assert data.task.dataset.read_rows
  rows = data.task.dataset.read_rows(data, path)
  if rows.bad:
    app.say(f"note: {rows.bad:,} bad rows of {path} were left out")
  groups = held_out.choose_groups(len(rows), request.puzzles, request.seed)
  rows = rows.take(groups)
  lines = tuple(f"line {line}" for line in rows.lines)
  split = Split.of_rows(rows.inputs, rows.labels)
  return dataclasses.replace(split, names=lines)


def _places(names: Sequence[str], request: ShowRequest) -> np.ndarray:
  """The indices of the tasks of `--name` in a split."""
  for name in request.name:
    if name not in names:
      similar = difflib.get_close_matches(name, names, cutoff=0)
      raise UserError(
        f"--name={name}: the {request.split} split has no task of this name; "
        f"similar are {', '.join(similar) or 'none'}"
      )
  return np.array([names.index(name) for name in request.name])


def _load_examples(data: Settings, split: str) -> Split | None:
  """The training pairs of ARC tasks, if known."""
  if not data.task.copies or split == "train":
    return None
  if data.path and not datasets.has_split(data, "train"):
    return None
  return datasets.load(data, "train")


def _answer(
  scenes: Sequence[Scene],
  split: Split,
  folder: RunFolder,
  experiment: Experiment,
  request: ShowRequest,
) -> tuple[list[list[Scene]], str]:
  """Scenes with a model's answers for each frame, and a title.

  A film has a frame for each step, a picture one for the last step.
  """
  known = folder.read_identifiers()
  names = datasets.identifiers(experiment.data)
  originals = split.take(np.arange(len(split)), copies=1)
  originals = datasets.match_ids(originals, names, known, request.puzzle_id)
  step, params = held_out.restore(
    folder, experiment, request.checkpoint, request.puzzle_id
  )
  questions = jnp.asarray(scenes_lib.questions(scenes))
  counts = [len(scene.asked) for scene in scenes]
  ids = jnp.asarray(np.repeat(originals.puzzle_ids, counts))
  puzzles = Puzzles.of(questions, questions, ids)
  depth = request.depth or experiment.eval.depth
  if not experiment.model.is_recursive:
    depth = 1
  answers, q_halt = jax.device_get(
    evaluate.refine(params, puzzles, depth, experiment.model)
  )
  first = 0 if request.is_film else depth - 1
  frames = scenes_lib.with_answers(
    scenes, experiment.task, answers[first:], q_halt[first:], first + 1
  )
  return frames, report.title(experiment, step)
