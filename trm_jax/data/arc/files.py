"""Reads ARC tasks: one JSON file per task, or a competition's challenges."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from trm_jax.data.arc import grids
from trm_jax.data.arc.grids import MAX_SIZE
from trm_jax.data.checks import read_json, shorten
from trm_jax.errors import UserError

WANTED = (
  "A source is a folder with one json file a task (data/training and "
  "data/evaluation of github.com/fchollet/ARC-AGI or "
  "github.com/arcprize/ARC-AGI-2, corpus of "
  "github.com/victorvikram/ConceptARC), a json file of one or more tasks, or a "
  "file ..._challenges.json of the Kaggle competitions, beside its "
  "..._solutions.json."
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
  if not os.path.isfile(path):
    raise UserError(
      f"{path}: expected a folder with one json file a task, or a json file of "
      f"tasks; it is not there. {WANTED}"
    )
  solutions = path.removesuffix(CHALLENGES) + SOLUTIONS
  has_solutions = path.endswith(CHALLENGES) and os.path.isfile(solutions)
  return [path, solutions] if has_solutions else [path]


def _task_files(folder: str) -> list[str]:
  """The json files below a folder and its links, without hidden ones."""

  def refuse(error: OSError):
    raise UserError(
      f"{error.filename}: cannot be read ({error.strerror}); give yourself "
      "access, or another source"
    ) from error

  files, seen = [], set()
  for place, folders, names in os.walk(
    folder, onerror=refuse, followlinks=True
  ):
    status = os.stat(place)
    identity = status.st_dev, status.st_ino
    if identity in seen:  # reached by two links, or by one to a parent
      folders.clear()
      continue
    seen.add(identity)
    folders[:] = sorted(name for name in folders if name[0] != ".")
    files += [
      os.path.join(place, name)
      for name in names
      if name.endswith(".json") and name[0] != "."
    ]
  files.sort()
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
  path, *others = files = source_files(source)
  if others and others[0].endswith(SOLUTIONS):
    solutions = read_json(others[0], "the solutions of ARC tasks")
    tasks = [_solved(task, solutions, others[0]) for task in read_file(path)]
  else:
    tasks = [task for file in files for task in read_file(file)]
  return sorted(tasks, key=lambda task: task.name)


def read_file(path: str) -> list[ArcTask]:
  """Reads and checks the tasks of a file, without solutions, in its order."""
  content = read_json(path, "ARC tasks")
  tasks = by_name(content, pathlib.Path(path).stem, path)
  if not tasks:
    raise UserError(f"{path}: holds no task; expected one or more.")
  return [_task(name, task, path) for name, task in tasks.items()]


def by_name(content: Any, stem: str, path: str) -> dict[str, Any]:
  """The unchecked tasks of a file by name.

  A file holds a task, a list of tasks, or an object of tasks by name. The first
  two are named by their "id", or else by the file's stem and their number.
  """
  if isinstance(content, dict) and not {"train", "test"} & content.keys():
    return content
  tasks = content if isinstance(content, list) else [content]
  found: dict[str, Any] = {}
  for number, task in enumerate(tasks, 1):
    if not isinstance(task, dict):
      raise UserError(
        f"{path}: holds {shorten(content)}; expected the json of an ARC task, "
        "of a list of tasks, or of an object of tasks by name."
      )
    unnamed = stem if task is content else f"{stem}_{number}"
    name = unnamed if task.get("id") is None else str(task["id"])
    if name in found:
      raise UserError(f"{path}: two tasks have the id {shorten(name)}.")
    found[name] = task
  return found


def _solved(task: ArcTask, solutions: Any, path: str) -> ArcTask:
  """Adds the outputs of the test pairs from a file of solutions."""
  if not isinstance(solutions, dict):
    raise UserError(
      f"{path}: holds {shorten(solutions)}; expected an object whose keys are "
      f"the names of tasks."
    )
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
  if may_lack_output and entry.get("output") is None:
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
