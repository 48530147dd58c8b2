"""What a study has measured: one file a cell, read back, merged, tabulated.

A *setting* is a model with its training recipe, without a seed; a *cell* is a
setting trained with one seed.
"""

import contextlib
import csv
import dataclasses
import json
import math
import numbers
import pathlib
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.run.folder import differences, write_json

Record = dict[str, Any]

# Families as a reader knows them, in the order in which they are shown.


@dataclasses.dataclass(frozen=True)
class Cell:
  """A trained and evaluated model.

  Attributes:
    setting: digest of all that was trained but the seed, 12 hex digits.
    seed: the seed.
    family: model family, one of `family.FAMILIES`.
    fields: what tells settings apart, name -> value, as in
      {"width": 64, "layers": 2, "cycles": 3, "latent_steps": 6}.
    comparable: the sections `data` and `eval` of the config: only cells in
      which they are equal may be shown side by side.
    weights: trained weights, without the puzzle table.
    steps: optimizer steps made.
    batch_size: puzzles an optimizer step.
    training_flops: spent in all, over the batch.
    seconds: of training, wall clock, shared by the seeds trained together.
    hardware: what it was trained on, in words.
    diverged_at: the step at which a value was no longer finite, or None.
    learning: one record an evaluation during training, with `step`,
      `training_flops`, `depth` and the scores at that depth.
    depths: one record for every test depth from 1 on, as
      `evaluate.evaluate` returns; empty if it diverged.
  """

  setting: str
  seed: int
  family: str
  fields: dict[str, Any]
  comparable: dict[str, Any]
  weights: int
  steps: int
  batch_size: int
  training_flops: float
  seconds: float
  hardware: str
  diverged_at: int | None
  learning: list[Record]
  depths: list[Record]


def save_cell(folder: pathlib.Path, cell: Cell):
  """Writes a cell to `<setting>-seed<seed>.json`, whole or not at all.

  Args:
    folder: made if it is not there.
    cell: replaces what the folder holds of the same setting and seed.

  Raises:
    ValueError: if it holds what `load_cells` would refuse, a NaN say.
    UserError: if it cannot be written.
  """
  record = json.loads(json.dumps(dataclasses.asdict(cell)))  # as read back
  try:
    _parse(record)
  except ValueError as error:
    raise ValueError(f"{_file_name(cell)} cannot be kept: {error}") from None
  write_json(folder / _file_name(cell), record)


def load_cells(folder: pathlib.Path) -> list[Cell]:
  """Reads all cells of a folder, in the order of their file names.

  Args:
    folder: with one `.json` file a cell; other names are not looked at.

  Returns:
    The cells; none if there is no such folder.

  Raises:
    UserError: for a file that is not a cell as `save_cell` writes it, with
      the field that is wrong.
  """
  try:
    paths = sorted(p for p in folder.iterdir() if p.suffix == ".json")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(
      f"{folder}: cannot read this folder of cells ({error.strerror}); choose "
      "another --workdir"
    ) from error
  return [_load(path) for path in paths]


def _load(path: pathlib.Path) -> Cell:
  try:
    cell = _parse(json.loads(path.read_text()))
  except OSError as error:
    raise UserError(
      f"cannot read {path}: {error.strerror}; a folder of cells holds one "
      "JSON file a cell"
    ) from error
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{path} is damaged: {error}. Put back a copy of it; or delete it, and "
      "the command that made it trains this cell again"
    ) from error
  if path.name != _file_name(cell):
    raise UserError(
      f"{path} holds setting {cell.setting!r} and seed {cell.seed}: rename it "
      f"to {_file_name(cell)}, or delete it"
    )
  return cell


def merge(groups: Mapping[str, Sequence[Cell]]) -> list[Cell]:
  """Joins the cells of several folders.

  Args:
    groups: name of a folder -> its cells.

  Returns:
    Each cell once: of two with the same setting and seed the one with more
    test depths, or else the first. They are ordered by family, weights,
    training FLOPs of the setting, and seed.

  Raises:
    UserError: if there is no cell, or one has other data or was evaluated
      otherwise than the first, with the fields in which they differ.
  """
  found = [(name, cell) for name, cells in groups.items() for cell in cells]
  if not found:
    where = ", ".join(groups) or "no folder was given"
    raise UserError(
      f"there is nothing to report yet: no cell is finished ({where}); train "
      "the grid first, or name the --workdir of one that is"
    )
  first_name, first = found[0]
  kept: dict[tuple[str, int], Cell] = {}
  for name, cell in found:
    differing = differences(cell.comparable, first.comparable)
    if differing:
      raise UserError(
        f"{name}: {_file_name(cell)} cannot stand beside {first_name}: "
        f"{_file_name(first)}, for their data or evaluation differ; merge "
        "only folders in which these are the same. In "
        f"{first_name} (there) and {name} (here) they are\n  "
        + "\n  ".join(differing)
      )
    other = kept.setdefault((cell.setting, cell.seed), cell)
    if len(cell.depths) > len(other.depths):
      kept[cell.setting, cell.seed] = cell
  # A seed that diverged spent less than its setting does.
  spent: dict[str, float] = {}
  for cell in kept.values():
    spent[cell.setting] = max(spent.get(cell.setting, 0.0), cell.training_flops)
  families = list(FAMILIES)
  return sorted(
    kept.values(),
    key=lambda cell: (
      families.index(cell.family), cell.weights, spent[cell.setting],
      cell.setting, cell.seed,
    ),
  )  # fmt: skip


class Labelled(Protocol):
  """What a setting is told apart by; see `Cell`."""

  @property
  def setting(self) -> str: ...  # noqa: D102 - as in Cell

  @property
  def family(self) -> str: ...  # noqa: D102

  @property
  def fields(self) -> dict[str, Any]: ...  # noqa: D102


def labels(cells: Sequence[Labelled]) -> dict[str, str]:
  """A short name for each setting, no two alike.

  Args:
    cells: cells, or settings.

  Returns:
    setting -> the name of its family, and those fields in which the settings
    of the family differ; the digest too where that leaves two alike.
  """
  settings = {cell.setting: cell for cell in cells}
  values: dict[tuple[str, str], set[str]] = {}
  members: dict[str, int] = {}
  for cell in settings.values():
    members[cell.family] = members.get(cell.family, 0) + 1
    for name, value in cell.fields.items():
      values.setdefault((cell.family, name), set()).add(_plain(value))
  # A field that some settings lack varies as well.
  present = [(c.family, name) for c in settings.values() for name in c.fields]
  varying = {
    key
    for key, seen in values.items()
    if len(seen) > 1 or present.count(key) < members[key[0]]
  }
  names = {
    setting: ", ".join(
      [FAMILIES[cell.family].title]
      + [
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in cell.fields.items()
        if (cell.family, name) in varying
      ]
    )
    for setting, cell in settings.items()
  }
  alike = list(names.values())
  return {
    setting: f"{name} ({setting})" if alike.count(name) > 1 else name
    for setting, name in names.items()
  }


def records_at(cell: Cell, depths: Iterable[int]) -> list[Record]:
  """The scores of a cell at chosen test depths.

  Args:
    cell: the cell.
    depths: those wanted; others that it has are left out.

  Returns:
    Its records at these depths, the smallest first. A model with one depth
    only has nothing to choose: it is shown at that.

  Raises:
    UserError: for a depth that is not a whole number of at least 1.
  """
  wanted = set(depths)
  for depth in wanted:
    if not isinstance(depth, numbers.Integral) or depth < 1:
      raise UserError(
        f"test depth {depth!r} is not a whole number of at least 1; mend the "
        "list of test depths"
      )
  if len(cell.depths) == 1:
    return list(cell.depths)
  return [record for record in cell.depths if record["depth"] in wanted]


# Columns of the table before and after the fields of the settings.
_BEFORE = ("setting", "label", "family", "seed", "status")
_AFTER = (
  "weights", "steps", "training_flops", "seconds", "depth", "flops_per_puzzle"
)  # fmt: skip


def write_csv(path: pathlib.Path, cells: Sequence[Cell], depths: Iterable[int]):
  """Writes a table with one row a model, seed and test depth.

  A cell without scores at these depths, as one that diverged, has one row in
  which they are empty. A field with the name of another column is called
  `fields.<name>`.

  Args:
    path: the file, written whole or not at all.
    cells: the rows, in this order.
    depths: test depths, as `records_at` takes them.

  Raises:
    UserError: if it cannot be written, or a depth is impossible.
  """
  depths = list(depths)
  label_of = labels(cells)
  fields: dict[str, None] = {}  # ordered sets
  scores: dict[str, None] = {}
  rows = []
  for cell in cells:
    base = {_column(name): _plain(value) for name, value in cell.fields.items()}
    fields |= dict.fromkeys(base)
    base |= {
      "setting": cell.setting,
      "label": label_of[cell.setting],
      "family": cell.family,
      "seed": cell.seed,
      "status": "finished" if cell.diverged_at is None else "diverged",
      "weights": cell.weights,
      "steps": cell.steps,
      "training_flops": cell.training_flops,
      "seconds": cell.seconds,
    }
    for record in records_at(cell, depths) or [{}]:
      scores |= dict.fromkeys(record)
      rows.append(record | base)
  columns = dict.fromkeys([*_BEFORE, *fields, *_AFTER, *scores])
  unfinished = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("w", newline="", encoding="utf-8") as file:
      writer = csv.DictWriter(file, list(columns), lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)
    unfinished.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      unfinished.unlink()
    raise UserError(f"cannot write {path}: {error.strerror}") from error


def _column(field: str) -> str:
  return f"fields.{field}" if field in (*_BEFORE, *_AFTER) else field


def _plain(value: Any) -> str:
  """A field's value as text: strings bare, all else as in JSON."""
  return value if isinstance(value, str) else json.dumps(value)


def _file_name(cell: Cell) -> str:
  return f"{cell.setting}-seed{cell.seed}.json"


# What a value must be: its test, and the words for it.
_Kind = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  """Whether it is a number that a float can hold; a NaN is not."""
  is_real = isinstance(value, int | float) and not isinstance(value, bool)
  return is_real and abs(value) <= sys.float_info.max


_TEXT: _Kind = (lambda v: isinstance(v, str), "a text")
_OBJECT: _Kind = (lambda v: isinstance(v, dict), "an object")
_RECORDS: _Kind = (
  lambda v: isinstance(v, list) and all(isinstance(r, dict) for r in v),
  "a list of objects",
)
_COUNT: _Kind = (
  lambda v: _is_whole(v) and v >= 0, "a whole number of at least 0"
)  # fmt: skip
_SIZE: _Kind = (
  lambda v: _is_whole(v) and v >= 1, "a whole number of at least 1"
)  # fmt: skip
_NUMBER: _Kind = (_is_number, "a finite number")
_AMOUNT: _Kind = (
  lambda v: _is_number(v) and v >= 0, "a finite number of at least 0"
)  # fmt: skip
_POSITIVE: _Kind = (
  lambda v: _is_number(v) and v > 0, "a finite number above 0"
)  # fmt: skip
_SHARE: _Kind = (
  lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"
)  # fmt: skip

_FIELDS: dict[str, _Kind] = {
  "setting": (
    lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{12}", v)),
    "12 hex digits",
  ),
  "seed": _COUNT,
  "family": (
    lambda v: isinstance(v, str) and v in FAMILIES,
    "a known family of models",
  ),
  "fields": _OBJECT,
  "comparable": _OBJECT,
  "weights": _SIZE,
  "steps": _COUNT,
  "batch_size": _SIZE,
  "training_flops": _AMOUNT,
  "seconds": _AMOUNT,
  "hardware": _TEXT,
  "diverged_at": (
    lambda v: v is None or _COUNT[0](v),
    "null or a whole number of at least 0",
  ),
  "learning": _RECORDS,
  "depths": _RECORDS,
}
_SCORES = {"depth": _SIZE, "puzzles": _SIZE, "exact_accuracy": _SHARE}
_LEARNING = _SCORES | {"step": _COUNT, "training_flops": _AMOUNT}
_DEPTHS = _SCORES | {"flops_per_puzzle": _POSITIVE}
_HALTING = {"halted_exact_accuracy": _SHARE, "mean_steps": _POSITIVE}


def _parse(value: Any) -> Cell:
  """Makes a cell of what JSON gave.

  Raises:
    ValueError: if it is not one, with the name of what is wrong.
  """
  if not isinstance(value, dict):
    raise ValueError("it is not an object of fields")
  _check("", value, _FIELDS)
  extra = sorted(value.keys() - _FIELDS.keys())
  if extra:
    raise ValueError(f"{extra[0]} is not a field of a cell")
  _check_finite("fields", value["fields"])
  _check_finite("comparable", value["comparable"])
  can_halt = len(value["depths"]) > 1  # with one depth there is no choice
  for name, kinds in (
    ("learning", _LEARNING),
    ("depths", _DEPTHS | _HALTING if can_halt else _DEPTHS),
  ):
    for i, record in enumerate(value[name]):
      scores = dict.fromkeys(record, _NUMBER)
      _check(f"{name}[{i}].", record, scores | kinds)
  found = [record["depth"] for record in value["depths"]]
  if found != list(range(1, len(found) + 1)):
    raise ValueError(f"depths has {reprlib.repr(found)}, not all from 1 on")
  if (value["diverged_at"] is None) != bool(found):
    raise ValueError(
      f"diverged_at is {value['diverged_at']} and depths has {len(found)} "
      "records: a cell that diverged has none, all others have some"
    )
  # JSON knows no difference between 1e9 and a whole number.
  fields: dict[str, Any] = value | {
    name: float(value[name]) for name in ("training_flops", "seconds")
  }
  return Cell(**fields)


def _check(place: str, record: Mapping[str, Any], kinds: Mapping[str, _Kind]):
  for name, (is_right, words) in kinds.items():
    if name not in record:
      raise ValueError(f"{place}{name} is missing")
    if not is_right(record[name]):
      raise ValueError(
        f"{place}{name} is {reprlib.repr(record[name])}, not {words}"
      )


def _check_finite(place: str, value: Any):
  """Refuses numbers that JSON does not have, wherever they hide."""
  if isinstance(value, dict):
    for name, inner in value.items():
      _check_finite(f"{place}.{name}", inner)
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      _check_finite(f"{place}[{i}]", inner)
  elif isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{place} is {value}, not a finite number")
