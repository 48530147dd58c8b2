"""A model as one ONNX file, for devices that have onnxruntime and no JAX.

Inputs:
  inputs      int32 [batch, S], tokens of the questions
  puzzle_ids  int32 [batch], rows of the puzzle table; not read without one
  depth       int64 [], the most supervision steps that a puzzle gets
  threshold   float32 [], the halting margin (`q_halt`; in HRM less
              `q_continue`) beyond which a puzzle halts; infinity gives every
              puzzle all of `depth`
Outputs, each as it was when the puzzle halted:
  answers     int32 [batch, S]
  logits      float32 [batch, S, V]
  q_halt      float32 [batch], logit of "the answer is right"
  steps       int32 [batch], supervision steps taken
The loop ends as soon as all puzzles of a batch have halted. A model that does
not recurse takes one step and reads neither `depth` nor `threshold`.

Arithmetic is float32 whatever the model was trained in, so that answers of a
bfloat16 model may differ in rare ties. As "int8" each matrix but those of the
heads is stored in bytes, with a scale for every output: a quarter of the size.
They are multiplied out when a run begins, so memory and speed stay those of
float32. (A model without loops, "feedforward", onnxruntime may run in int8.)

The file needs operators of ONNX 1.13 (opset 18, IR version 8), which
onnxruntime 1.14 and later have (tried: 1.15 and 1.31), and no other file
beside it. Its metadata hold `format`, `precision` and `card` (JSON, see
`pretrained.Pretrained.card`) and, last in the file, the `sha256` of all bytes
before: `load` refuses what was damaged or edited before onnxruntime, which may
crash on such files, sees it. It does not tell who made a file.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from trm_jax.core.network import ModelConfig
from trm_jax.errors import UserError
from trm_jax.run import files
from trm_jax.run.pretrained import Pretrained

if TYPE_CHECKING:
  import onnx
  import onnxruntime

FORMAT = "trm_jax.onnx/1"
PRECISIONS = ("float32", "int8")
# What `load` leans on.
_READ_OF_CARD = {
  "task": str, "seq_len": int, "vocabulary": list, "puzzle_rows": int,
}  # fmt: skip
# Protocol buffers can be no larger.
_MAX_BYTES = 2**31 - 1
_GRAPH_BYTES = 2**20  # more than nodes and names take


def export(
  pretrained: Pretrained,
  path: str | os.PathLike,
  precision: str = "float32",
  puzzle_rows: Sequence[int] | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes a model as an ONNX file, whole or not at all.

  Args:
    pretrained: the model, of a family with the standard cycle.
    path: the `.onnx` file.
    precision: how matrices are stored, "float32" or "int8".
    puzzle_rows: the puzzle ids to keep of a large table, each once; they
      become 0, 1, 2 ... in this order, in the names of the card too. By
      default all are kept.
    overwrite: whether a file that is there is replaced.

  Returns:
    `bytes`, `nodes`, `opset`, `ir_version`, `precision`, and in words the
    `inputs` and `outputs`.

  Raises:
    UserError: if `onnx` is not installed, the model cannot be said in ONNX or
      is larger than such a file can be, an argument is wrong, or the file
      cannot be written.
  """
  path = pathlib.Path(path)
  _require("onnx")
  from trm_jax.export.onnx import graph as onnx_graph
  from trm_jax.export.onnx import model as onnx_model

  config = pretrained.experiment.model
  _refuse_unsupported(config)
  if precision not in PRECISIONS:
    raise UserError(
      f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}"
    )
  files.refuse_existing(overwrite, path)
  params, card = pretrained.params, pretrained.card()
  if puzzle_rows is not None:
    rows = _check_rows(puzzle_rows, config)
    table = jnp.asarray(np.asarray(params.puzzle_table)[rows])
    params = params.replace(puzzle_table=table)
    names = card["names"]
    card["names"] = [names[i] if i < len(names) else "" for i in rows]
  # The config goes on telling the size of the table that was trained.
  card["puzzle_rows"] = len(params.puzzle_table)
  written = json.dumps(card)
  graph = onnx_model.build(params, config, precision)
  size = graph.stored_bytes + len(written) + _GRAPH_BYTES
  if size > _MAX_BYTES:
    raise UserError(
      f"{path}: the model takes {size / 1e9:.1f} GB, but an ONNX file holds "
      "2 GB at most; use precision int8, or keep some puzzle_rows only"
    )
  model = graph.model(
    "trm_jax",
    _document(card, config, precision),
    {"format": FORMAT, "precision": precision, "card": written},
  )
  body = model.SerializeToString(deterministic=True)
  files.write({path: body + _seal(body)})
  return {
    "bytes": path.stat().st_size,
    "nodes": onnx_graph.count_nodes(model.graph),
    "opset": onnx_graph.OPSET,
    "ir_version": onnx_graph.IR_VERSION,
    "precision": precision,
    "inputs": [onnx_graph.describe(info) for info in model.graph.input],
    "outputs": [onnx_graph.describe(info) for info in model.graph.output],
  }


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a model says of a batch, see the head of this file."""

  answers: np.ndarray
  logits: np.ndarray
  q_halt: np.ndarray
  steps: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
  """An exported model, ready to run on the CPU.

  Attributes:
    card: what the file says of the model.
    precision: how its matrices are stored.
    session: of onnxruntime.
  """

  card: dict[str, Any]
  precision: str
  session: "onnxruntime.InferenceSession"

  def __call__(
    self,
    inputs: np.ndarray,
    puzzle_ids: np.ndarray | int = 0,
    depth: int = 16,
    threshold: float = float("inf"),
  ) -> Answers:
    """Solves a batch.

    Args:
      inputs: int [B, S], tokens.
      puzzle_ids: int [B], or one for all.
      depth: the most supervision steps, 1 or more.
      threshold: the halting margin that is enough.

    Raises:
      UserError: if an argument has another shape or is out of range.
    """
    inputs, seq_len = np.asarray(inputs), self.card["seq_len"]
    vocabulary = len(self.card["vocabulary"]) + 1  # and the padding
    if inputs.ndim != 2 or inputs.shape[1] != seq_len or not len(inputs):
      raise UserError(
        f"inputs have shape {inputs.shape}: must be [batch, {seq_len}]"
      )
    ids = np.broadcast_to(np.asarray(puzzle_ids), inputs.shape[:1])
    for name, values, count in (
      ("inputs", inputs, vocabulary),
      ("puzzle_ids", ids, self.card["puzzle_rows"]),
    ):
      if values.dtype.kind not in "iu" or not (
        0 <= values.min() <= values.max() < count
      ):
        raise UserError(f"{name}: must be integers from 0 to {count - 1}")
    if depth < 1:
      raise UserError(f"depth={depth}: must be 1 or more")
    feed = {
      "inputs": inputs.astype(np.int32),
      "puzzle_ids": ids.astype(np.int32),
      "depth": np.asarray(depth, np.int64),
      "threshold": np.asarray(threshold, np.float32),
    }
    names = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*map(np.asarray, self.session.run(names, feed)))


def load(path: str | os.PathLike, task: str | None = None) -> Solver:
  """Opens a file that `export` wrote.

  Args:
    path: the file.
    task: the name of the task that it must be for; None for any.

  Returns:
    The model on onnxruntime's CPU provider.

  Raises:
    UserError: if `onnxruntime` is not installed; if the file is missing,
      damaged, edited, of another origin or task, or leans on other files.
  """
  path = pathlib.Path(path)
  _require("onnx", "onnxruntime")
  import onnx
  import onnxruntime
  from google.protobuf.message import DecodeError

  body = _read(path)
  try:
    model = onnx.ModelProto.FromString(body)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
  except (DecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read as ONNX: {error}") from error
  if metadata.get("format") != FORMAT:
    raise UserError(
      f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}; "
      "export the model again with this version"
    )
  card = _read_card(path, metadata.get("card", ""))
  if task is not None and card["task"] != task:
    raise UserError(f"{path}: is a model for {card['task']}, not for {task}")
  for tensor in _tensors(model):
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
      raise UserError(
        f"{path}: {tensor.name!r} lies in another file, which no export of "
        "ours does; export the model again"
      )
  del model  # as large as the file
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # what fails raises
  try:
    # The bytes that were checked, not the path: nobody can swap the file.
    session = onnxruntime.InferenceSession(
      body, options, providers=["CPUExecutionProvider"]
    )
  except Exception as error:  # onnxruntime's errors share no base of their own
    raise UserError(
      f"{path}: onnxruntime {onnxruntime.__version__} refuses it: {error}"
    ) from error
  return Solver(card, metadata.get("precision", ""), session)


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


def _check_rows(rows: Sequence[int], config: ModelConfig) -> list[int]:
  if not config.puzzle_emb_ndim:
    raise UserError(
      "puzzle_rows: the model has no puzzle embedding; leave them out"
    )
  rows, count = list(rows), config.num_puzzle_ids
  if (
    not rows
    or len(set(rows)) < len(rows)
    or not all(0 <= row < count for row in rows)
  ):
    raise UserError(
      f"puzzle_rows={rows!s:.80}: must be different numbers from 0 to "
      f"{count - 1}, at least one"
    )
  return rows


def _document(card: dict[str, Any], config: ModelConfig, precision: str) -> str:
  return (
    f"{config.family} ({config.mixer} mixer) for {card['task']}, "
    f"{card['weights']} weights stored as {precision}, after {card['step']} "
    "training steps. inputs: tokens of the questions; puzzle_ids: rows of the "
    "puzzle table, 0 where there is one; depth: the most supervision steps; "
    "threshold: the halting logit beyond which a puzzle stops, inf for a "
    "fixed depth. The vocabulary is in the metadata, under 'card'."
  )


def _seal(body: bytes) -> bytes:
  """The end of a file: the checksum of what comes before, as metadata.

  Two protocol buffers joined end to end are one, with the entries of both.
  """
  import onnx

  digest = hashlib.sha256(body).hexdigest()
  seal = onnx.ModelProto()
  seal.metadata_props.add(key="sha256", value=digest)
  return seal.SerializeToString(deterministic=True)


def _read(path: pathlib.Path) -> bytes:
  """The bytes of a file whose seal is whole, the seal included."""
  length = len(_seal(b""))
  try:
    size = path.stat().st_size
    if size > _MAX_BYTES:
      raise UserError(
        f"{path}: has {size} bytes, more than an ONNX file can have"
      )
    content = path.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  body, seal = content[:-length], content[-length:]
  if seal != _seal(body):
    raise UserError(
      f"{path}: does not end in the checksum of its contents: it is damaged, "
      "was edited, or is no export of ours; export the model again"
    )
  return content


def _read_card(path: pathlib.Path, text: str) -> dict[str, Any]:
  try:
    card = json.loads(text)
    for name, kind in _READ_OF_CARD.items():
      if not isinstance(card[name], kind):
        raise ValueError(f"{name} is {card[name]!r:.40}")
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: its card cannot be read: {error!r}") from error
  return card


def _tensors(message: Any) -> Iterator["onnx.TensorProto"]:
  """Every tensor in a message, however deep."""
  import onnx
  from google.protobuf.message import Message

  if isinstance(message, onnx.TensorProto):
    yield message
    return
  for field, value in message.ListFields():
    if field.message_type is not None:
      for inner in [value] if isinstance(value, Message) else value:
        yield from _tensors(inner)
