"""A model as one StableHLO file with its weights.

The file is `jax.export.Exported.serialize()`. It runs on CPUs, NVIDIA GPUs and
TPUs, for any batch size, with jax and flatbuffers and without this package:

    solve = jax.jit(jax.export.deserialize(open(path, "rb").read()).call)
    found = solve(inputs, puzzle_ids, np.int32(16), np.float32(np.inf))

  inputs      int32 [b, S]     the questions
  puzzle_ids  int32 [b]        rows of the puzzle table; 0 if there is only one
  depth       int32 []         maximum supervision steps
  threshold   float32 []       a puzzle halts when its margin exceeds it
  answers     int32 [b, S]     the likeliest tokens
  logits      float32 [b, S, V]
  q_halt      float32 [b]      logit of "the answer is right"
  steps       int32 [b]        supervision steps taken

Inputs are positional; the result is a dict.

jax reads such a file for at least six months, and as long as it supports the
calling convention version in the card (`PATH.json`).
"""

import functools
import os
import pathlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from trm_jax import config as config_lib
from trm_jax.core import recursion, rollout
from trm_jax.core.halting import select_rows
from trm_jax.core.model import ModelConfig, Params, portable
from trm_jax.errors import UserError
from trm_jax.export.solver import ExportedSolver
from trm_jax.run import card, files
from trm_jax.run.pretrained import Pretrained

FORMAT = "trm_jax.stablehlo/1"
PLATFORMS = ("cpu", "cuda", "tpu")

_LARGEST = 2**31  # bytes of a flatbuffer


def solve(
  params: Params,
  inputs: jax.Array,
  puzzle_ids: jax.Array,
  depth: jax.Array,
  threshold: jax.Array,
  config: ModelConfig,
) -> dict[str, jax.Array]:
  """Refines a batch until every puzzle has halted, or `depth` is reached.

  A puzzle halts after the first supervision step whose margin (`q_halt`; in
  HRM `q_halt - q_continue`) exceeds the threshold; its outputs are those of
  that step.

  Args:
    params: the model.
    inputs: int32 `[B, S]`.
    puzzle_ids: int32 `[B]`; ids out of range are replaced by 0, the blank one.
    depth: int32 [], maximum supervision steps; below 1 counts as 1. Ignored by
      families that do not recur.
    threshold: float32 [], infinite for a fixed depth.
    config: the model's.

  Returns:
    The outputs, see the top of this file.
  """
  batch = inputs.shape[0]
  known = (puzzle_ids >= 0) & (puzzle_ids < config.num_puzzle_ids)
  rows = params.puzzle_table[jnp.where(known, puzzle_ids, 0)]
  depth = jnp.maximum(depth, 1) if config.is_recursive else jnp.int32(1)

  def unfinished(state):
    step, _, halted, _ = state
    return (step < depth) & ~jnp.all(halted)

  def refine(state):
    step, latents, halted, found = state
    latents, now = rollout.step(params.weights, rows, latents, inputs, config)
    halts = now.margin > threshold
    new = {
      "logits": now.outputs.logits.astype(jnp.float32),
      "q_halt": now.outputs.q_halt.astype(jnp.float32),
      "steps": jnp.broadcast_to(step + 1, (batch,)),
    }
    found = select_rows(halted, found, new)
    return step + 1, latents, halted | halts, found

  latents = recursion.evaluation_latents(params.initial, batch, config)
  outputs = {
    "logits": jnp.zeros(
      (batch, config.seq_len, config.vocab_size), jnp.float32
    ),
    "q_halt": jnp.zeros((batch,), jnp.float32),
    "steps": jnp.zeros((batch,), jnp.int32),
  }
  start = (jnp.int32(0), latents, jnp.zeros((batch,), bool), outputs)
  *_, found = jax.lax.while_loop(unfinished, refine, start)
  answers = jnp.argmax(found["logits"], axis=-1).astype(jnp.int32)
  return {"answers": answers, **found}


def export(
  pretrained: Pretrained, path: str | os.PathLike, overwrite: bool = False
):
  """Writes a model for all platforms, and its card beside it.

  Args:
    pretrained: the model.
    path: the file; the card is `PATH.json`.
    overwrite: whether existing files are replaced.

  Raises:
    UserError: if the model is too large for the format, or the files cannot be
      written.
  """
  path = pathlib.Path(path)
  files.refuse_existing(overwrite, path, files.card_path(path))
  config = portable(pretrained.experiment.model)
  params = _narrowed(jax.device_get(pretrained.params), config)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  if size > _LARGEST - 2**24:  # the rest is for the program
    raise UserError(
      f"{path}: the model has {size:,} bytes, and this format holds no more "
      f"than {_LARGEST:,}; export it as safetensors or with Orbax"
    )
  (batch,) = jax.export.symbolic_shape("b")
  exported = jax.export.export(
    jax.jit(functools.partial(solve, params, config=config)),
    platforms=PLATFORMS,
  )(
    jax.ShapeDtypeStruct((batch, config.seq_len), jnp.int32),
    jax.ShapeDtypeStruct((batch,), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.float32),
  )
  facts = pretrained.card() | {
    "format": FORMAT,
    "platforms": PLATFORMS,
    "calling_convention_version": exported.calling_convention_version,
    "jax": jax.__version__,
  }
  card.write(path, bytes(exported.serialize()), facts)


def _narrowed(params: Params, config: ModelConfig) -> Params:
  """Parameters in the dtype of the activations, if that is narrower.

  Every layer casts its weights to it, so results are bitwise the same.
  """
  compute = jnp.dtype(config.dtype)

  def narrow(leaf):
    is_wide = leaf.dtype.itemsize > compute.itemsize
    return jnp.asarray(leaf, compute if is_wide else leaf.dtype)

  return jax.tree.map(narrow, params)


def load(path: str | os.PathLike) -> ExportedSolver:
  """Reads a file of `export`, with its card beside it.

  Raises:
    UserError: if a file is missing, damaged, of another format, or too old or
      too new for this jax.
  """
  path = pathlib.Path(path)
  # The compiler does not validate its input, so `read` checks the fingerprint.
  facts, content = card.read(path, FORMAT, _LARGEST)
  model = config_lib.read(facts.get("config", {})).model
  try:
    exported = jax.export.deserialize(bytearray(content))
  except Exception as error:  # jax and flatbuffers raise many kinds
    raise UserError(
      f"{path} was written by jax {facts.get('jax')} and cannot be read by jax "
      f"{jax.__version__}; export it again. Cause: {error}"
    ) from error
  call = jax.jit(exported.call)

  def run(inputs, puzzle_ids, depth, threshold):
    return call(inputs, puzzle_ids, np.int32(depth), np.float32(threshold))

  return ExportedSolver(facts, model, run)
