"""A model as one ONNX file, for onnxruntime without JAX.

Inputs and outputs are those of `export.stablehlo`, except that `depth` is
int64. Arithmetic is float32, so answers of a bfloat16 model may differ in rare
ties. In precision "int8" all matrices except the heads are stored as int8 with
a scale for each output: a quarter of the size. They are dequantized when a run
starts, so memory and speed are those of float32.

The file needs opset 18 (onnxruntime 1.14 or later). Its metadata contain the
card; `load` needs the card `PATH.json` and checks its fingerprint first,
because onnxruntime may crash on damaged files.
"""

import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_jax import config as config_lib
from trm_jax.core.model import ModelConfig
from trm_jax.errors import UserError
from trm_jax.export.solver import ExportedSolver
from trm_jax.run import card, files
from trm_jax.run.pretrained import Pretrained

if TYPE_CHECKING:
  import onnx

FORMAT = "trm_jax.onnx/2"
PRECISIONS = ("float32", "int8")
_MAX_BYTES = 2**31 - 1  # of a protocol buffer
_GRAPH_BYTES = 2**20  # upper bound of nodes and names


def export(
  pretrained: Pretrained,
  path: str | os.PathLike,
  precision: str = "float32",
  overwrite: bool = False,
):
  """Writes a model as an ONNX file, and its card beside it.

  Args:
    pretrained: the model, of a family with the standard cycle.
    path: the `.onnx` file; the card is `PATH.json`.
    precision: of stored matrices, "float32" or "int8".
    overwrite: whether existing files are replaced.

  Raises:
    UserError: if `onnx` is not installed, ONNX cannot express the model, it is
      too large, or the files cannot be written.
  """
  path = pathlib.Path(path)
  _require("onnx")
  from trm_jax.export.onnx import model as onnx_model

  config = pretrained.experiment.model
  _refuse_unsupported(config)
  if precision not in PRECISIONS:
    raise UserError(
      f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}"
    )
  files.refuse_existing(overwrite, path, files.card_path(path))
  facts = pretrained.card() | {"format": FORMAT, "precision": precision}
  card_json = json.dumps(facts)
  graph = onnx_model.build(pretrained.params, config, precision)
  size = graph.stored_bytes + len(card_json) + _GRAPH_BYTES
  if size > _MAX_BYTES:
    raise UserError(
      f"{path}: the model takes {size / 1e9:.1f} GB, but an ONNX file holds "
      "2 GB at most; use precision int8, or another format"
    )
  model = graph.model(
    f"{config.family} ({config.mixer} mixer) for {facts['task']}, weights "
    f"stored as {precision}, after {facts['step']} training steps. Its "
    "vocabulary is in the metadata, under 'card'.",
    {"card": card_json},
  )
  card.write(path, model.SerializeToString(deterministic=True), facts)


def load(path: str | os.PathLike) -> ExportedSolver:
  """Opens a file of `export` on onnxruntime's CPU provider.

  Raises:
    UserError: if `onnxruntime` is not installed; if a file is missing, damaged,
      of another format, or refers to other files.
  """
  path = pathlib.Path(path)
  _require("onnx", "onnxruntime")
  import onnx
  import onnxruntime
  from google.protobuf.message import DecodeError

  facts, content = card.read(path, FORMAT, _MAX_BYTES)
  config = config_lib.read(facts.get("config", {})).model
  try:
    model = onnx.ModelProto.FromString(content)
  except DecodeError as error:
    raise UserError(f"{path} cannot be read as ONNX: {error}") from error
  for tensor in _tensors(model):
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
      raise UserError(
        f"{path}: {tensor.name!r} is stored in another file; export the model "
        "again"
      )
  del model  # as large as the file
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # errors are raised anyway
  try:
    # The checked bytes: the file may have changed.
    session = onnxruntime.InferenceSession(
      content, options, providers=["CPUExecutionProvider"]
    )
  except Exception as error:  # onnxruntime's errors have no common base
    raise UserError(
      f"{path}: onnxruntime {onnxruntime.__version__} refuses it: {error}"
    ) from error
  names = [output.name for output in session.get_outputs()]

  def run(inputs, puzzle_ids, depth, threshold):
    feed = {
      "inputs": inputs,
      "puzzle_ids": puzzle_ids,
      "depth": np.asarray(depth, np.int64),
      "threshold": np.asarray(threshold, np.float32),
    }
    return dict(zip(names, session.run(names, feed), strict=True))

  return ExportedSolver(facts, config, run)


def _require(*packages: str):
  for package in packages:
    if importlib.util.find_spec(package) is None:
      raise UserError(f"ONNX needs {package}: pip install -e '.[onnx]'")


def _refuse_unsupported(config: ModelConfig):
  if not config.kind.is_standard_cycle:
    raise UserError(
      f"config.model.family={config.family!r}: the ONNX graph has no such "
      "recursion; export safetensors instead"
    )
  if config.initial_std:
    raise UserError(
      f"config.model.initial_std={config.initial_std}: starts from random "
      "numbers of JAX, which ONNX cannot draw; export StableHLO instead"
    )


def _tensors(message: Any) -> Iterator["onnx.TensorProto"]:
  """Yields every tensor in a message, at any depth."""
  import onnx
  from google.protobuf.message import Message

  if isinstance(message, onnx.TensorProto):
    yield message
    return
  for field, value in message.ListFields():
    if field.message_type is not None:
      for inner in [value] if isinstance(value, Message) else value:
        yield from _tensors(inner)
