"""Random models for 4x4 Sudoku, as if they were trained."""

import jax
import numpy as np

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.run.pretrained import Pretrained

ATTENTION = {"mixer": "attention", "positions": "rotary"}


def config(**changes):
  """An experiment as plain values, with changes of the model."""
  kind = changes.get("family", "trm")
  recurs = kind not in ("feedforward", "autoregressive")
  return {
    "data": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
    "model": {
      "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
      "inner_multiple": 8, "puzzle_emb_ndim": 16, "puzzle_emb_len": 1,
      "cycles": 2, "latent_steps": 2, "dtype": "float32",
    } | changes,
    "halting": {"max_steps": 4 if recurs else 1},
    "train": {"loss": "softmax", "batch_size": 16},
    "eval": {"batch_size": 16},
  }  # fmt: skip


def pretrained(**changes) -> Pretrained:
  """A model with every weight other than zero."""
  plain = config(**changes)
  experiment = config_lib.read(plain)
  random = np.random.default_rng(0)

  def draw(path, leaf):
    # Half of what training starts from: recursion is not chaotic then,
    # round-off stays what it is, and a difference beyond it is a mistake.
    halved = path[0].name == "weights" and leaf.ndim > 1
    scale = 0.5 / np.sqrt(leaf.shape[0]) if halved else 1
    values = random.normal(size=leaf.shape) * scale
    return jax.numpy.asarray(values, leaf.dtype)

  return Pretrained(
    params=jax.tree_util.tree_map_with_path(
      draw, network.shapes(experiment.model)
    ),
    experiment=experiment, config=plain, names=["<blank>"], step=7,
    scores=[{"depth": 1}], calibration=None,
  )  # fmt: skip
