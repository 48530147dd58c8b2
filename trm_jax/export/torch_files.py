"""Checkpoint files for the reference PyTorch implementation.

Its `pretrain.py` loads files strictly, by
`model.load_state_dict(torch.load(file), assign=True)`, where `model` is the
compiled loss head around the model. Therefore

  names    start with `_orig_mod.model.inner.`, as in a compiled model; with
           DISABLE_COMPILE=1 it needs them without `_orig_mod.`;
  dtypes   become those of the loaded model: weights and puzzle table float32,
           initial latents (`H_init`, `L_init`) in the dtype of the activations;
  buffers  include the initial latents and the puzzle table, but no rotary
           tables and no rows of the current batch.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from trm_jax.core import layers
from trm_jax.core.halting import HaltingConfig
from trm_jax.core.model import ModelConfig, Params
from trm_jax.errors import UserError
from trm_jax.export import reference, torch_archive
from trm_jax.run import card, files
from trm_jax.run.pretrained import Pretrained

FORMAT = "trm_jax.torch/1"
PREFIX = "_orig_mod.model."

_POSITIONS = {"none": "none", "rotary": "rope", "learned": "learned"}
_INNER_MULTIPLE = 256  # of its SwiGLU


def export(
  pretrained: Pretrained, path: str | os.PathLike, overwrite: bool = False
):
  """Writes a model for the reference implementation, and its card beside it.

  Args:
    pretrained: the model.
    path: a `.pt` file, which needs PyTorch, or a `.safetensors` file, which
      does not. The card is `PATH.json`; its "arch" is the reference's config
      of the model.
    overwrite: whether existing files are replaced.

  Raises:
    UserError: if the reference has no such model, PyTorch is needed and
      missing, or the files cannot be written.
  """
  path = pathlib.Path(path)
  files.refuse_existing(overwrite, path, files.card_path(path))
  experiment = pretrained.experiment
  arrays = state_dict(pretrained.params, experiment.model)
  if path.suffix == ".pt":
    content = torch_archive.save(arrays)
  else:  # Hugging Face's libraries require this "format"
    content = save(arrays, {"format": "pt"})
  facts = pretrained.card() | {
    "format": FORMAT,
    "arch": describe(experiment.model, experiment.halting),
  }
  card.write(path, content, facts)


def state_dict(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
  """Name -> array of the reference's checkpoints, in its layouts and dtypes.

  Weights are exact (float64 stays float64); initial latents are rounded to
  `config.dtype`, as both implementations read them. As `check`, it refuses
  models that the reference does not have.
  """
  check(config)
  arrays = reference.params_to_reference(jax.device_get(params), config)

  def dtype(name: str, array: np.ndarray) -> Any:
    if name.endswith("_init"):
      return jnp.dtype(config.dtype)
    return layers.at_least_float32(array.dtype)

  return {PREFIX + k: v.astype(dtype(k, v)) for k, v in arrays.items()}


def check(config: ModelConfig):
  """Refuses models that the reference cannot load or computes differently."""
  theirs = reference.names(config)
  widths = [(config.width, config.mlp_inner)]
  if config.mixer == "mlp":
    widths.append((config.length, config.token_inner))
  same_inner = all(
    layers.inner_width(config.expansion, width, _INNER_MULTIPLE) == inner
    for width, inner in widths
  )
  lacking = theirs.lacks(config)
  if config.registers:
    lacking = "registers", "it has no registers"
  elif config.initial_std:
    lacking = "initial_std", "it starts from fixed vectors only"
  elif not same_inner:
    reason = f"it rounds the inner widths of SwiGLU up to {_INNER_MULTIPLE}"
    lacking = "inner_multiple", reason
  if lacking:
    field, reason = lacking
    raise UserError(
      f"config.model.{field}={getattr(config, field)!r}: the reference "
      f"implementation has no such model: {reason}. Export to another format, "
      "as safetensors"
    )


def describe(config: ModelConfig, halting: HaltingConfig) -> dict[str, Any]:
  """The reference's `config_dict` of a model, without `batch_size`.

  `name` is the model's class.
  """
  stacks = config.kind.stacks(config)
  return {
    "name": f"recursive_reasoning.{reference.names(config).model}",
    "H_cycles": config.cycles,
    "L_cycles": config.latent_steps,
    "H_layers": stacks.get("answer_blocks", config.layers),
    "L_layers": config.layers,
    "hidden_size": config.width,
    "num_heads": config.heads,
    "expansion": config.expansion,
    "mlp_t": config.mixer == "mlp",
    "pos_encodings": _POSITIONS[config.positions],
    "rope_theta": config.rope_theta,
    "rms_norm_eps": config.norm_eps,
    "puzzle_emb_ndim": config.puzzle_emb_ndim,
    "puzzle_emb_len": config.prefix,
    "forward_dtype": config.dtype,
    "halt_max_steps": halting.max_steps,
    "halt_exploration_prob": halting.exploration,
    "vocab_size": config.vocab_size,
    "seq_len": config.seq_len,
    "num_puzzle_identifiers": config.num_puzzle_ids,
  }
