"""Reads ARC tasks: one JSON file per task, or a competition's challenges."""

import dataclasses
import os
import pathlib

import numpy as np

from trm_jax.data.arc import grids
from trm_jax.data.arc.grids import MAX_SIZE
from trm_jax.data.checks import read_json, shorten
from trm_jax.errors import UserError

WANTED = (
  "A source is a folder with one json file a task (data/training and "
  "data/evaluation of github.com/fchollet/ARC-AGI or "
  "github.com/arcprize/ARC-AGI-2, corpus of "
  "github.com/victorvikram/ConceptARC), or a file ..._challenges.json of the "
  "Kaggle competitions, beside its ..._solutions.json."
)

# The ends of the names of a file of challenges and of its solutions.
CHALLENGES = "challenges.json"
SOLUTIONS = "solutions.json"

# An input and its output, uint8 [height, width] with colours 0 to 9. The
# output of a test pair may be unknown.
Pair = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True, eq=False)
class ArcTask:
  """One task.

  Attributes:
    name: unique in its source.
    train: solved pairs that define the task, 1 or more.
    test: pairs whose output is to be predicted.
    source: the file that the task was read from.
  """

  name: str
  train: tuple[Pair, ...]
  test: tuple[Pair, ...]
  source: str


def source_files(source: str) -> list[str]:
  """The files of a source, in order; see `task.ArcData`.

  A file of challenges is followed by its solutions, if they exist.
  """
  path = os.path.expanduser(source)
  if os.path.isdir(path):
    return _task_files(path)
  if not os.path.isfile(path) or not path.endswith(CHALLENGES):
    found = "is not named so" if os.path.isfile(path) else "is not there"
    raise UserError(
      f"{path}: expected a folder with one json file a task, or a file whose "
      f"name ends in {CHALLENGES}; it {found}. {WANTED}"
    )
  solutions = path.removesuffix(CHALLENGES) + SOLUTIONS
  return [path, solutions] if os.path.isfile(solutions) else [path]


def _task_files(folder: str) -> list[str]:
  found = pathlib.Path(folder).rglob("*.json")
  files = sorted(str(file) for file in found if file.name[0] != ".")
  if not files:
    raise UserError(
      f"{folder}: the folder holds no json file; expected one a task. Check "
      f"the path."
    )
  for file in files:
    if file.endswith((CHALLENGES, SOLUTIONS)):
      raise UserError(
        f"{folder}: expected one json file a task, but the folder holds "
        f"{file}. To use challenges, give the path of their file instead."
      )
  return files


def read(source: str) -> list[ArcTask]:
  """Reads and checks the tasks of a source, sorted by name."""
  files = source_files(source)
  if files[0].endswith(CHALLENGES):
    tasks = read_tasks(*files)
  else:
    tasks = [
      _task(pathlib.Path(file).stem, read_json(file, "an ARC task"), file)
      for file in files
    ]
  return sorted(tasks, key=lambda task: task.name)


def read_tasks(path: str, solutions_path: str = "") -> list[ArcTask]:
  """Reads a file of tasks by name, and optionally one of their solutions."""
  tasks = _read_object(path)
  if not tasks:
    raise UserError(f"{path}: holds no task; expected one or more.")
  found = [_task(name, tasks[name], path) for name in tasks]
  if not solutions_path:
    return found
  solutions = _read_object(solutions_path)
  return [_solved(task, solutions, solutions_path) for task in found]


def _read_object(path: str) -> dict:
  content = read_json(path, "ARC tasks")
  if not isinstance(content, dict):
    raise UserError(
      f"{path}: holds {shorten(content)}; expected an object whose keys are "
      f"the names of tasks."
    )
  return content


def _solved(task: ArcTask, solutions: dict, path: str) -> ArcTask:
  """Adds the outputs of the test pairs from a file of solutions."""
  where = f"{path}: task {task.name!r}"
  outputs = solutions.get(task.name)
  if not isinstance(outputs, list) or len(outputs) != len(task.test):
    found = "is not there" if outputs is None else f"has {shorten(outputs)}"
    raise UserError(
      f"{where}: {found}; expected a list of {len(task.test)} grids, one for "
      f"each test pair in {task.source}. Do the two files belong together?"
    )
  pairs = tuple(
    (question, _grid(grid, f"{where}, solution {number}"))
    for number, ((question, _), grid) in enumerate(
      zip(task.test, outputs, strict=True), 1
    )
  )
  return dataclasses.replace(task, test=pairs)


def _task(name: str, content, path: str) -> ArcTask:
  where = f"{path}: task {shorten(name)}"
  # Copies are named after it, see `names.copy_names`.
  is_reserved = name == "<blank>" or "|||" in name
  if is_reserved or not name.strip() or not name.isprintable():
    raise UserError(
      f"{where}: not a name for a task; expected printable characters, not "
      f"'<blank>' and without '|||'. Rename it."
    )
  if not isinstance(content, dict):
    raise UserError(
      f"{where}: {shorten(content)}; expected an object with 'train' and "
      f"'test'."
    )
  pairs = {}
  for part, kind in (("train", "training"), ("test", "test")):
    entries = content.get(part)
    if not isinstance(entries, list) or not entries:
      raise UserError(
        f"{where}: {part!r} is {shorten(entries)}; expected a list of one or "
        f"more pairs."
      )
    pairs[part] = tuple(
      _pair(entry, f"{where}, {kind} pair {number}", part == "test")
      for number, entry in enumerate(entries, 1)
    )
  return ArcTask(name, pairs["train"], pairs["test"], path)


def _pair(entry, where: str, may_lack_output: bool) -> Pair:
  if not isinstance(entry, dict):
    raise UserError(
      f"{where}: {shorten(entry)}; expected an object with 'input' and "
      f"'output'."
    )
  question = _grid(entry.get("input"), f"{where}, input")
  if may_lack_output and "output" not in entry:
    return question, None
  return question, _grid(entry.get("output"), f"{where}, output")


def _grid(rows, where: str) -> np.ndarray:
  """Checks a grid, and returns it as uint8 [height, width]."""
  try:
    grid = grids.as_grid(rows)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  height, width = grid.shape
  if max(height, width) > MAX_SIZE:
    raise UserError(
      f"{where}: the grid is {height}x{width}; expected {MAX_SIZE}x{MAX_SIZE} "
      f"at most."
    )
  return grid
