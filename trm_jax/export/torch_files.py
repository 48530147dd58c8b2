"""Files that the reference PyTorch implementation loads as its own.

Its `pretrain.py` saves `model.state_dict()` with `torch.save`, where `model` is
the compiled loss head around the model, and loads such a file with
`model.load_state_dict(torch.load(file), assign=True)`, strictly. So

  names    are those of a compiled model, `_orig_mod.model.inner. ...`: its
           loader looks for the puzzle table under this name, and published
           checkpoints are of this kind. With DISABLE_COMPILE=1 it wants them
           without `_orig_mod.`;
  dtypes   are what the loaded model then has, for `assign=True` converts
           nothing: weights and puzzle table float32, the initial latents
           (`H_init`, `L_init`) in the dtype of the activations;
  buffers  are the initial latents and the puzzle table. The reference keeps
           its rotary tables, and the rows of the batch at hand, out of its
           checkpoints.
"""

import importlib
import io
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save

from trm_jax.core import layers
from trm_jax.core.halting import HaltingConfig
from trm_jax.core.network import ModelConfig, Params
from trm_jax.errors import UserError
from trm_jax.export import reference
from trm_jax.run import files
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
    path: a `.pt` file, as `torch.save` writes it, which needs torch; or a
      `.safetensors` file, which does not. The card is `PATH.json`; its "arch"
      is the reference's config of the model.
    overwrite: whether files that are there are replaced.

  Raises:
    UserError: if the reference has no such model, torch is needed and missing,
      or the files cannot be written.
  """
  path = pathlib.Path(path)
  card_path = files.card_path(path)
  files.refuse_existing(overwrite, path, card_path)
  experiment = pretrained.experiment
  arrays = state_dict(pretrained.params, experiment.model)
  # Hugging Face's libraries take files of this "format" only.
  content = (
    _saved(arrays) if path.suffix == ".pt" else save(arrays, {"format": "pt"})
  )
  card = pretrained.card() | {
    "format": FORMAT,
    "arch": describe(experiment.model, experiment.halting),
  }
  files.write({path: content, card_path: files.to_json(card)})


def state_dict(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
  """A model's arrays under the names of the reference's checkpoints.

  Args:
    params: the model.
    config: its config.

  Returns:
    Name -> array, in the reference's layouts and dtypes. Weights keep every
    bit (float64 stays); initial latents are rounded to `config.dtype`, which
    is how either implementation reads them.

  Raises:
    UserError: naming what the reference does not have.
  """
  check(config)
  arrays = reference.params_to_reference(jax.device_get(params), config)
  compute = jnp.dtype(config.dtype)
  return {
    PREFIX + name: np.ascontiguousarray(
      array.astype(
        compute
        if name.endswith("_init")
        else layers.at_least_float32(array.dtype)
      )
    )
    for name, array in arrays.items()
  }


def check(config: ModelConfig):
  """Refuses models that the reference would load as others, or not at all.

  Raises:
    UserError: naming the field, and what the reference has instead.
  """
  called, width = reference.names(config), config.width
  if config.registers:
    raise _lacks(config, "registers", "it has no registers")
  if config.initial_std:
    raise _lacks(config, "initial_std", "it starts from fixed vectors only")
  inner = layers.inner_width(config.expansion, width, _INNER_MULTIPLE)
  same = config.mlp_inner == inner
  if config.mixer == "mlp":
    inner = layers.inner_width(config.expansion, config.length, _INNER_MULTIPLE)
    same &= config.token_inner == inner
  if not same:
    raise _lacks(
      config, "inner_multiple",
      f"it rounds the inner widths of SwiGLU up to {_INNER_MULTIPLE}",
    )  # fmt: skip
  if lacking := called.lacks(config):
    raise _lacks(config, *lacking)


def describe(config: ModelConfig, halting: HaltingConfig) -> dict[str, Any]:
  """The model in the words of the reference: its `arch`, and what data gives.

  Returns:
    The `config_dict` of its model classes, but for `batch_size`, which is the
    user's; and `name`, which class.
  """
  layers = config.kind.stacks(config)
  return {
    "name": f"recursive_reasoning.{reference.names(config).model}",
    "H_cycles": config.cycles,
    "L_cycles": config.latent_steps,
    "H_layers": layers.get("answer_blocks", config.layers),
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


def _lacks(config: ModelConfig, field: str, reason: str) -> UserError:
  return UserError(
    f"config.model.{field}={getattr(config, field)!r}: the reference "
    f"implementation has no such model: {reason}. Export to another format, "
    "as safetensors"
  )


def _saved(arrays: dict[str, np.ndarray]) -> bytes:
  """What `torch.save` makes of a state dict."""
  torch = _torch()
  buffer = io.BytesIO()
  torch.save(
    {name: _tensor(torch, array) for name, array in arrays.items()}, buffer
  )
  return buffer.getvalue()


def _tensor(torch: Any, array: np.ndarray) -> Any:
  if array.dtype == ml_dtypes.bfloat16:  # torch does not know numpy's
    wide = torch.from_numpy(array.astype(np.float32))
    return wide.to(torch.bfloat16)
  return torch.from_numpy(array.copy())


def _torch() -> Any:
  # By name, for the project neither needs torch nor loads it anywhere else:
  # only those who ask for its own file format must have it.
  try:
    return importlib.import_module("torch")
  except ImportError as error:
    raise UserError(
      "a .pt file is written by torch, which is not installed: "
      "pip install -e '.[torch]'; or let the name end in .safetensors"
    ) from error
