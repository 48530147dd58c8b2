"""Published PyTorch checkpoints, and the runs that they become.

What the reference saves is the state dict of its compiled model within its
loss head, so that names begin with `_orig_mod.model.`, and of its averaged
weights. There is nothing else in the file: no config, no optimizer, no names
of puzzles.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import shutil
import struct
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core.network import ModelConfig, Params
from trm_jax.errors import UserError
from trm_jax.export import recognition, reference
from trm_jax.run import checkpoint, weights
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.train import step as train
from trm_jax.train.program import build

# What may become of a puzzle table of another size than the data needs.
TABLES = ("keep", "mean", "drop")

_TABLE = "inner.puzzle_emb.weights"
_BLANK = "<blank>"

# More than the names of some million puzzles take, in bytes.
_LONGEST_NAMES = 2**28

Arrays = dict[str, np.ndarray]


def read_arrays(path: pathlib.Path) -> Arrays:
  """Reads the arrays of a checkpoint. Nothing in it is run.

  Args:
    path: `.safetensors`; under any other name, what `torch.save` wrote.

  Returns:
    The learnt arrays and the buffers by plain name, see
    `recognition.plain_names`.

  Raises:
    UserError: if the file is missing, damaged or something else, PyTorch is
      needed and not there, or an array does not hold finite numbers.
  """
  if path.suffix == ".safetensors":
    with weights.opened(path) as file:
      named = {name: file.get_tensor(name) for name in list(file.keys())}
  else:
    named = _read_torch(path)
  plain = recognition.plain_names(named)
  arrays = {name: named[given] for name, given in plain.items()}
  for name, array in arrays.items():
    if recognition.is_buffer(name):
      continue
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise UserError(
        f"{path}: array {name!r} is of {array.dtype}; expected floating point"
      )
    weights.check_finite(path, name, array)
  return arrays


def _read_torch(path: pathlib.Path) -> Arrays:
  size = _check_archive(path)
  try:
    # Needed for nothing else, PyTorch is no dependency: whoever has it may
    # use it here, and nowhere is it imported without being asked for.
    torch = importlib.import_module("torch")
  except ImportError as error:
    raise UserError(
      f"{path}: reading what torch.save wrote needs PyTorch: pip install -e "
      "'.[torch]', or save it as .safetensors where PyTorch is"
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # of any kind, for the file may hold anything
    raise UserError(
      f"{path} is refused: it is damaged, or holds more than plain arrays, "
      f"such as code to run. PyTorch says: {_cause(error)}"
    ) from error
  if not isinstance(state, dict) or not state:
    raise UserError(f"{path} holds {type(state).__name__}, not named arrays")
  for name, tensor in state.items():
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
      raise UserError(
        f"{path}: {name!r:.80} is {type(tensor).__name__}, not an array; save "
        "the model's state_dict() alone"
      )
  # A few stored bytes can be shown as any number of values.
  claimed = sum(t.numel() * t.element_size() for t in state.values())
  if claimed > size:
    raise UserError(
      f"{path}: its arrays claim {claimed:,} bytes, and the file has {size:,}"
    )
  try:
    return {name: _to_numpy(tensor, torch) for name, tensor in state.items()}
  except (TypeError, RuntimeError, NotImplementedError) as error:
    raise UserError(
      f"{path}: an array is not a plain one: {_cause(error)}"
    ) from error


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
  tensor = tensor.detach()
  # NumPy has no bfloat16; float32 holds every value of it.
  narrow = tensor.dtype == torch.bfloat16
  return (tensor.float() if narrow else tensor).numpy()


def _check_archive(path: pathlib.Path) -> int:
  """Sees to it that reading takes no more memory than the file has bytes.

  Returns:
    Its size in bytes.

  Raises:
    UserError: if it is not an archive as `torch.save` writes.
  """
  if not path.is_file():  # a pipe would be waited for
    kind = "a folder" if path.is_dir() else "missing, or not a file"
    raise UserError(f"{path} cannot be read: it is {kind}")
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
      raise ValueError("it does not begin like one")
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
    packed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
      raise ValueError("its entries are compressed")
  except (
    OSError, ValueError, EOFError, IndexError, NotImplementedError,
    OverflowError, struct.error, zipfile.BadZipFile,
  ) as error:  # fmt: skip
    raise UserError(
      f"{path} cannot be read: not an archive as torch.save writes since "
      f"PyTorch 1.6 ({error}); if it is safetensors, name it .safetensors"
    ) from error
  return size


def read_names(path: pathlib.Path) -> list[str]:
  """Reads the name of each puzzle id: the `identifiers.json` of a data set.

  Raises:
    UserError: if it is missing or not a list of names.
  """
  try:
    if path.stat().st_size > _LONGEST_NAMES:
      raise ValueError(f"it is larger than {_LONGEST_NAMES:,} bytes")
    names = json.loads(path.read_text())
    if not isinstance(names, list) or not names:
      raise ValueError("not a list")
    if not all(isinstance(name, str) for name in names):
      raise ValueError("not all of it are names")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{path} cannot be read: {error}; expected a JSON list of the names of "
      "the puzzle ids, as identifiers.json in the reference's data folders"
    ) from error
  if len(set(names)) < len(names):
    raise UserError(f"{path}: two puzzle ids have the same name")
  return names


def complete_config(
  config: Mapping[str, Any], arrays: Arrays, given: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
  """A config as the arrays want it.

  Args:
    config: as plain values; names the task and all that shapes do not tell.
    arrays: what `read_arrays` returns.
    given: fields of the model that were named by hand, for these arrays.

  Returns:
    The config, and a sentence for each field that had to be changed.

  Raises:
    UserError: as `recognition.recognise`, or if the config is none.
  """
  task = config_lib.read({"data": config.get("data", {})}).task
  settings = _model_settings(config.get("model", {}))
  shapes = {name: array.shape for name, array in arrays.items()}
  found = recognition.recognise(
    shapes, settings, task.seq_len, task.vocab_size, given
  )
  changes = {k: v for k, v in found.items() if settings[k] != v}
  notes = [
    f"{name}: {settings[name]!r} in the config, {value!r} in the file"
    for name, value in changes.items()
  ]
  model = dict(config.get("model", {})) | changes
  return dict(config) | {"model": model}, notes


def _model_settings(model: Any) -> dict[str, Any]:
  """Every configured field of a model, of the right type.

  Whether they go together is seen when shapes have had their say.
  """
  if not isinstance(model, Mapping):
    raise UserError(f"config.model={model!r:.80}: must be a section")
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)
    if field.default is not dataclasses.MISSING
  }
  for name, default in defaults.items():
    value = model.get(name, default)
    kinds = (float, int) if isinstance(default, float) else (type(default),)
    if type(value) not in kinds:
      raise UserError(
        f"config.model.{name}={value!r}: must be {type(default).__name__}"
      )
  return defaults | dict(model)


def arrange_table(
  arrays: Arrays,
  config: Mapping[str, Any],
  choice: str | None,
  names: list[str] | None,
  data_names: list[str] | None,
) -> tuple[Arrays, dict[str, Any], list[str]]:
  """Brings the puzzle table to the size that the run needs.

  Args:
    arrays: what `read_arrays` returns.
    config: what `complete_config` returns.
    choice: of `TABLES`: "keep" the table as it is, one row for all puzzles
      (or for each id of the data) with the "mean" of its rows, or "drop" it
      for zeros, one row for each id of the data. None is for a table that
      fits.
    names: the name of each puzzle id of the file, if known. Rows without a
      name must be zero, as those that fill a table up are.
    data_names: the name of each puzzle id of the data, if known.

  Returns:
    The arrays with their new table, the config with its size, and the name of
    each puzzle id of the run: `["<blank>"]` where one row serves all.

  Raises:
    UserError: if the table does not fit, naming the ways out.
  """
  if _TABLE in arrays:
    table, run_names = _choose_rows(arrays[_TABLE], choice, names, data_names)
  elif choice or names:
    flag = "--puzzle_table" if choice else "--identifiers"
    raise UserError(f"{flag}: the model has no puzzle table; leave it out")
  else:
    table, run_names = np.zeros((1, 0), np.float32), data_names or [_BLANK]
  experiment = config_lib.read(config)
  needed = experiment.with_puzzle_ids(len(run_names)).model.num_puzzle_ids
  rows = max(needed, _used(table))
  config = dict(config)
  if rows != experiment.model.num_puzzle_ids:
    config["model"] = dict(config["model"]) | {"num_puzzle_ids": rows}
  resized = np.zeros((rows, table.shape[1]), table.dtype)
  resized[: len(table)] = table[:rows]
  if _TABLE in arrays:
    arrays = arrays | {_TABLE: resized}
  return arrays, config, run_names


def _choose_rows(
  table: np.ndarray,
  choice: str | None,
  names: list[str] | None,
  data_names: list[str] | None,
) -> tuple[np.ndarray, list[str]]:
  """A table, and the name of each id in it."""
  rows = len(table)

  def fits(names: list[str] | None) -> bool:
    return names is not None and _used(table) <= len(names) <= rows

  if names is not None and choice != "drop" and not fits(names):
    raise UserError(
      f"--identifiers: {len(names):,} names, and the puzzle table has "
      f"{rows:,} rows; give the names of the data set that it was trained on"
    )
  if choice == "drop":
    if data_names is None:
      raise UserError(
        "--puzzle_table=drop: it is not known how many ids the data has"
      )
    return np.zeros((len(data_names), table.shape[1]), table.dtype), data_names
  if choice == "mean":
    learnt = table[1 : len(names) if names else rows]
    row = (learnt if len(learnt) else table).mean(0, dtype=np.float64)
    run_names = data_names or [_BLANK]
    mean = np.tile(row.astype(table.dtype), (len(run_names), 1))
    return mean, run_names
  known = names or (data_names if fits(data_names) else None)
  if choice == "keep":
    if known is None and (data_names is None or len(data_names) > 1):
      raise UserError(
        f"--puzzle_table=keep: whose are its {rows:,} rows? Name them with "
        "--identifiers=FILE.json, of the data set that it was trained on"
      )
    return table, known or [_BLANK]
  if known is None and _used(table) <= 1:
    known = [_BLANK]
  if known is None or (data_names and len(known) != len(data_names)):
    wanted = f"the data needs {len(data_names):,}" if data_names else (
      "it is not known whose they are"
    )  # fmt: skip
    raise UserError(
      f"the puzzle table has {rows:,} rows, and {wanted}: choose "
      "--puzzle_table=keep (all rows, whose names --identifiers=FILE.json "
      "tells), mean (one embedding for all puzzles) or drop (zeros, to be "
      "trained anew)"
    )
  return table, known


def _used(table: np.ndarray) -> int:
  """Rows up to the last that is not zero; the blank one counts always."""
  return int(np.max(np.flatnonzero(table.any(axis=1)), initial=0)) + 1


def to_params(arrays: Arrays, model: ModelConfig) -> Params:
  """Builds parameters, leaving out what the reference does not learn.

  Raises:
    UserError: naming an array that is missing, left over or of another shape.
  """
  known = {entry.name for entry in reference.layout(model)}
  for name in arrays:
    if name not in known and not recognition.is_buffer(name):
      raise UserError(
        f"array {name!r} has no place in a model of family={model.family!r} "
        f"with mixer={model.mixer!r}"
      )
  return reference.params_from_reference(arrays, model)


def check_new(path: pathlib.Path):
  """Refuses a place for a run where something is already.

  Raises:
    UserError: naming it.
  """
  if path.is_symlink() or path.exists():
    raise UserError(f"{path} exists already; name another folder")


def write_run(
  path: pathlib.Path,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  experiment: Experiment,
  params: Params,
  names: list[str],
):
  """Makes a run's folder that stands before its first step.

  Its one checkpoint, of step 0, has the given weights and their copy as the
  average, a new optimizer and empty slots. The folder appears whole or not at
  all.

  Args:
    path: the folder to make.
    config: as plain values.
    overrides: what the command line changed in it.
    experiment: the config, checked.
    params: the model.
    names: the name of each puzzle id.

  Raises:
    UserError: if there is something already, it cannot be written, or the
      devices do not suit the config.
  """
  check_new(path)
  program = build(experiment)
  unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    folder = RunFolder(unfinished)
    folder.claim(config, overrides)
    folder.release()
    if len(names) > 1:
      write_json(folder.identifiers, names)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    begin = jax.jit(
      lambda params: train.state_from_params(params, program.recipe),
      out_shardings=shardings,
    )
    with checkpoint.Checkpoints(folder.checkpoints, keep=1) as checkpoints:
      checkpoints.save(0, begin(params))
      checkpoints.wait()
    unfinished.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _cause(error: BaseException) -> str:
  """What PyTorch objects to, without its advice to read the file anyhow."""
  text = " ".join(str(error).split())
  text = "".join(c if c.isprintable() else "?" for c in text)
  wanted = re.search(r"GLOBAL (\S+)", text)
  if wanted:
    return f"it asks for {wanted[1]:.80}"
  return text.split(". ")[0][:200] or type(error).__name__
