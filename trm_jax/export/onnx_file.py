"""A model as one ONNX file, for devices that have onnxruntime and no JAX.

Inputs:
  inputs      int32 [batch, S], tokens of the questions
  puzzle_ids  int32 [batch], rows of the puzzle table; not read without one
  depth       int64 [], most supervision steps of a puzzle
  threshold   float32 [], the halting margin (`q_halt`; in HRM less
              `q_continue`) beyond which a puzzle halts; infinity gives every
              puzzle all of `depth`
Outputs, each as it was when the puzzle halted:
  answers     int32 [batch, S]
  logits      float32 [batch, S, V]
  q_halt      float32 [batch], logit of "the answer is right"
  steps       int32 [batch], supervision steps taken
The loop ends when all puzzles of a batch have halted. A model that does not
recur takes one step and reads neither `depth` nor `threshold`.

Arithmetic is float32 whatever the model was trained in, so that answers of a
bfloat16 model may differ in rare ties. As "int8" each matrix but those of the
heads is stored in bytes, with a scale for every output: a quarter of the size.
They are multiplied out when a run begins; memory and speed stay those of
float32.

The file needs opset 18 (onnxruntime 1.14 or later) and no other file. Its
metadata hold `format`, `precision`, `card` (JSON, see `Pretrained.card`) and,
last in the file, the `sha256` of all bytes before: onnxruntime may crash on
damaged files, so `load` checks it first. It does not tell who made a file.
"""

import dataclasses
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
from trm_jax.run import card as cards
from trm_jax.run import files
from trm_jax.run.pretrained import Pretrained

if TYPE_CHECKING:
  import onnx
  import onnxruntime

FORMAT = "trm_jax.onnx/1"
PRECISIONS = ("float32", "int8")
# What a `Solver` reads of its card.
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
):
  """Writes a model as an ONNX file, whole or not at all.

  Args:
    pretrained: the model, of a family with the standard cycle.
    path: the `.onnx` file.
    precision: how matrices are stored, "float32" or "int8".
    puzzle_rows: the puzzle ids to keep of a large table, each once; they
      become 0, 1, 2 ... in this order, in the names of the card too. By
      default all are kept.
    overwrite: whether a file that is there is replaced.

  Raises:
    UserError: if `onnx` is not installed, ONNX cannot express the model or it
      is larger than such a file can be, an argument is wrong, or the file
      cannot be written.
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
  files.refuse_existing(overwrite, path)
  params, card = pretrained.params, pretrained.card()
  if puzzle_rows is not None:
    rows = _check_rows(puzzle_rows, config)
    table = jnp.asarray(np.asarray(params.puzzle_table)[rows])
    params = params.replace(puzzle_table=table)
    names = card["names"]
    card["names"] = [names[i] if i < len(names) else "" for i in rows]
  # The config still has the size of the table that was trained.
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
    f"{config.family} ({config.mixer} mixer) for {card['task']}, weights "
    f"stored as {precision}, after {card['step']} training steps. Its "
    "vocabulary is in the metadata, under 'card'.",
    {"format": FORMAT, "precision": precision, "card": written},
  )
  body = model.SerializeToString(deterministic=True)
  files.write({path: body + _seal(body)})


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
  """An exported model, ready to run on the CPU.

  Attributes:
    card: what the file says of the model.
    session: of onnxruntime.
  """

  card: dict[str, Any]
  session: "onnxruntime.InferenceSession"

  def __call__(
    self,
    inputs: np.ndarray,
    puzzle_ids: np.ndarray | int = 0,
    depth: int = 16,
    threshold: float = float("inf"),
  ) -> dict[str, np.ndarray]:
    """Solves a batch.

    Args:
      inputs: int [B, S], tokens.
      puzzle_ids: int [B], or one for all.
      depth: most supervision steps, 1 or more.
      threshold: the halting margin that is enough.

    Returns:
      The outputs by name, see the head of this file.

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
    names = [output.name for output in self.session.get_outputs()]
    found = map(np.asarray, self.session.run(names, feed))
    return dict(zip(names, found, strict=True))


def load(path: str | os.PathLike) -> Solver:
  """Opens a file that `export` wrote.

  Args:
    path: the file.

  Returns:
    The model on onnxruntime's CPU provider.

  Raises:
    UserError: if `onnxruntime` is not installed; if the file is missing,
      damaged, edited, of another format, or refers to other files.
  """
  path = pathlib.Path(path)
  _require("onnx", "onnxruntime")
  import onnx
  import onnxruntime
  from google.protobuf.message import DecodeError

  content = cards.read_bytes(path, _MAX_BYTES)
  end = max(0, len(content) - len(_seal(b"")))
  cards.check_fingerprint(path, content[end:], _seal(content[:end]))
  try:
    model = onnx.ModelProto.FromString(content)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
  except (DecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read as ONNX: {error}") from error
  cards.check_format(path, metadata.get("format"), FORMAT)
  card = cards.parse(path, metadata.get("card", ""), _READ_OF_CARD)
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
      content, options, providers=["CPUExecutionProvider"]
    )
  except Exception as error:  # onnxruntime's errors share no base of their own
    raise UserError(
      f"{path}: onnxruntime {onnxruntime.__version__} refuses it: {error}"
    ) from error
  return Solver(card, session)


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
  rows, known = list(rows), set(range(config.num_puzzle_ids))
  if not rows or len(set(rows)) < len(rows) or not known.issuperset(rows):
    raise UserError(
      f"puzzle_rows={rows!s:.80}: must be different numbers from 0 to "
      f"{config.num_puzzle_ids - 1}, at least one"
    )
  return rows


def _seal(body: bytes) -> bytes:
  """The end of a file: the checksum of what comes before, as metadata.

  Two protocol buffers joined end to end are one, with the entries of both.
  """
  import onnx

  seal = onnx.ModelProto()
  seal.metadata_props.add(key="sha256", value=cards.fingerprint(body))
  return seal.SerializeToString(deterministic=True)


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
