"""Imports published PyTorch checkpoints as runs.

The reference saves only the state dict of its compiled model with averaged
weights: no config, optimizer or names of puzzles.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core.model import Params
from trm_jax.data import checks, datasets
from trm_jax.errors import UserError
from trm_jax.export import recognition, torch_archive
from trm_jax.export.reference import TABLE
from trm_jax.run import checkpoint, files, weights
from trm_jax.run.folder import RunFolder
from trm_jax.train import step as train
from trm_jax.train.program import build

_BLANK = "<blank>"

_MAX_NAME_BYTES = 2**28  # of a file of names; enough for some million puzzles

Arrays = dict[str, np.ndarray]


def read_arrays(path: pathlib.Path) -> Arrays:
  """Reads the learned arrays of a checkpoint, without running code in it.

  Args:
    path: `.safetensors`, or a file of `torch.save` with any other suffix.

  Returns:
    Plain name, see `recognition.plain_names` -> array.

  Raises:
    UserError: if the file is missing, damaged or of another kind, PyTorch is
      needed but missing, or an array has non-finite numbers.
  """
  if path.suffix == ".safetensors":
    with weights.opened(path) as file:
      named = {name: file.get_tensor(name) for name in list(file.keys())}
  else:
    named = torch_archive.read(path)
  plain = recognition.plain_names(named)
  arrays = {name: named[given] for name, given in plain.items()}
  for name, array in arrays.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise UserError(
        f"{path}: array {name!r} is of {array.dtype}; expected floating point"
      )
    weights.check_finite(path, name, array)
  return arrays


def read_names(path: pathlib.Path) -> list[str]:
  """Reads the distinct names of puzzle ids, `identifiers.json` of a dataset."""
  try:
    names = checks.parse_json(checks.read_bytes(path, _MAX_NAME_BYTES))
    if not isinstance(names, list) or not names:
      raise ValueError("not a list")
    if not all(isinstance(name, str) for name in names):
      raise ValueError("not all of it are names")
    if len(set(names)) < len(names):
      raise ValueError("two puzzle ids have the same name")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{path} cannot be read: {error}; expected a JSON list of the names of "
      "the puzzle ids, as identifiers.json in the reference's data folders"
    ) from error
  return names


def complete_config(
  config: Mapping[str, Any], arrays: Arrays, given: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
  """Adapts a config to the size of the arrays.

  Args:
    config: as plain values.
    arrays: result of `read_arrays`.
    given: fields of the model that the user set for these arrays.

  Returns:
    The config, and a sentence for each changed field.

  Raises:
    UserError: as `recognition.recognise`, or if the config is invalid.
  """
  model = config_lib.read(config).model
  shapes = {name: array.shape for name, array in arrays.items()}
  found = recognition.recognise(shapes, model, given)
  notes = [
    f"{name}: {getattr(model, name)!r} in the config, {value!r} in the file"
    for name, value in found.items()
  ]
  return _with_model(config, found), notes


def _with_model(
  config: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  return {**config, "model": {**config.get("model", {}), **changes}}


def names_of_data(
  experiment: Experiment, choice: str | None, say: Callable[[str], None]
) -> list[str] | None:
  """The name of each puzzle id of the data.

  Args:
    experiment: the config.
    choice: as for `arrange_table`.
    say: called with a sentence before work that may take a minute.

  Returns:
    The names. None if the dataset must be prepared first to know them, and
    `choice` does not need them.
  """
  data = experiment.data
  if not (data.path and os.path.isdir(os.path.expanduser(data.path))):
    if not experiment.task.copies:
      return [_BLANK]
    if choice != "drop":
      return None
    for note in datasets.prepare(data, say):
      say(f"note: {note}")
  return datasets.identifiers(data)


def arrange_table(
  arrays: Arrays,
  config: Mapping[str, Any],
  choice: str | None,
  names: list[str] | None,
  data_names: list[str] | None,
) -> tuple[Arrays, dict[str, Any], list[str]]:
  """Converts the puzzle table to the size that the run needs.

  Args:
    arrays: result of `read_arrays`.
    config: result of `complete_config`.
    choice: "keep" the table, replace it by the "mean" of its rows (one row, or
      one for each id of the data), or "drop" it for zeros (one row for each id
      of the data). None for a table that fits.
    names: the name of each puzzle id of the file, if known. Rows beyond the
      names are padding and must be zero.
    data_names: the name of each puzzle id of the data, if known.

  Returns:
    The arrays with the new table, the config with its size, and the name of
    each puzzle id of the run: `["<blank>"]` if all puzzles share one row.

  Raises:
    UserError: if the table does not fit, naming the choices.
  """
  if TABLE in arrays:
    table, run_names = _choose_rows(arrays[TABLE], choice, names, data_names)
  elif choice or names:
    flag = "--puzzle_table" if choice else "--identifiers"
    raise UserError(f"{flag}: the model has no puzzle table; leave it out")
  else:
    table, run_names = np.zeros((1, 0), np.float32), data_names or [_BLANK]
  experiment = config_lib.read(config)
  needed = experiment.with_puzzle_ids(len(run_names)).model.num_puzzle_ids
  rows = max(needed, _used(table))
  resized = np.zeros((rows, table.shape[1]), table.dtype)
  resized[: len(table)] = table[:rows]
  if TABLE in arrays:
    arrays = arrays | {TABLE: resized}
  changed = rows != experiment.model.num_puzzle_ids
  config = _with_model(config, {"num_puzzle_ids": rows} if changed else {})
  return arrays, config, run_names


def _choose_rows(
  table: np.ndarray,
  choice: str | None,
  names: list[str] | None,
  data_names: list[str] | None,
) -> tuple[np.ndarray, list[str]]:
  """The new table, and the name of each id in it."""
  rows, used = len(table), _used(table)
  if names and choice != "drop" and not used <= len(names) <= rows:
    raise UserError(
      f"--identifiers: {len(names):,} names, and the puzzle table has "
      f"{rows:,} rows; give the names of the dataset that it was trained on"
    )
  if choice == "drop":
    if data_names is None:
      raise UserError(
        "--puzzle_table=drop: it is not known how many ids the data has"
      )
    return np.zeros((len(data_names), table.shape[1]), table.dtype), data_names
  if choice == "mean":
    learned = table[1 : len(names) if names else rows]
    row = (learned if len(learned) else table).mean(0, dtype=np.float64)
    run_names = data_names or [_BLANK]
    return np.tile(row.astype(table.dtype), (len(run_names), 1)), run_names
  known = names
  if not known and data_names and used <= len(data_names) <= rows:
    known = data_names
  if choice == "keep":
    if not known and (data_names is None or len(data_names) > 1):
      raise UserError(
        f"--puzzle_table=keep: whose are its {rows:,} rows? Name them with "
        "--identifiers=FILE.json, of the dataset that it was trained on"
      )
    return table, known or [_BLANK]
  if not known and used <= 1:
    known = [_BLANK]
  if not known or (data_names and len(known) != len(data_names)):
    wanted = f"the data needs {len(data_names):,}" if data_names else (
      "it is not known whose they are"
    )  # fmt: skip
    raise UserError(
      f"the puzzle table has {rows:,} rows, and {wanted}: choose "
      "--puzzle_table=keep (all rows, whose names --identifiers=FILE.json "
      "tells), mean (one embedding for all puzzles) or drop (zeros, to be "
      "trained from scratch)"
    )
  return table, known


def _used(table: np.ndarray) -> int:
  """The number of rows up to the last nonzero one, at least 1."""
  return int(np.max(np.flatnonzero(table.any(axis=1)), initial=0)) + 1


def write_run(
  path: pathlib.Path,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  params: Params,
  names: list[str],
):
  """Makes a run's folder with one checkpoint, of step 0, atomically.

  The average starts as a copy of the weights; optimizer and slots are new.

  Args:
    path: the folder.
    config: as plain values.
    overrides: fields changed on the command line.
    params: the model.
    names: the name of each puzzle id.

  Raises:
    UserError: if the path exists, it cannot be written, or the devices do not
      fit the config.
  """
  check_new(path)
  program = build(config_lib.read(config))
  begin = jax.jit(
    lambda params: train.state_from_params(params, program.recipe),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, program.abstract),
  )
  state = begin(params)
  unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    folder = RunFolder(unfinished)
    folder.claim(config, overrides)
    folder.release()
    if len(names) > 1:
      files.write({folder.identifiers: files.to_json(names)})
    with checkpoint.Checkpoints(folder.checkpoints, keep=1) as checkpoints:
      checkpoints.save(0, state)
      checkpoints.wait()
    unfinished.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def check_new(path: pathlib.Path):
  """Refuses a path that exists, with a UserError."""
  if path.is_symlink() or path.exists():
    raise UserError(f"{path} exists already; name another folder")
