"""The common interface of models loaded from exported files."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trm_jax.core.model import ModelConfig
from trm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedSolver:
  """An exported model, ready to run."""

  card: Mapping[str, Any]
  model: ModelConfig
  # `(inputs, puzzle_ids, depth, threshold) -> outputs`, as in the file.
  call: Callable[..., Mapping[str, Any]]

  def __call__(
    self,
    inputs: ArrayLike,
    puzzle_ids: ArrayLike = 0,
    depth: int = 16,
    threshold: float = np.inf,
  ) -> dict[str, np.ndarray]:
    """Solves a batch.

    Args:
      inputs: int `[B, S]`, tokens of the questions.
      puzzle_ids: int `[B]`, or one for all.
      depth: maximum supervision steps, at least 1.
      threshold: a puzzle halts when its halting margin exceeds it; with
        infinity every puzzle takes `depth` steps.

    Returns:
      `answers` int32 `[B, S]`, `logits` float32 `[B, S, V]`, `q_halt` float32
      `[B]` and `steps` int32 `[B]`, each at the step where the puzzle halted.

    Raises:
      UserError: if an argument has a wrong shape or is out of range.
    """
    model, inputs = self.model, np.asarray(inputs)
    if inputs.ndim != 2 or inputs.shape[1] != model.seq_len or not len(inputs):
      raise UserError(
        f"inputs have shape {inputs.shape}: must be [batch, {model.seq_len}]"
      )
    ids = np.broadcast_to(np.asarray(puzzle_ids), inputs.shape[:1])
    for name, values, count in (
      ("inputs", inputs, model.vocab_size),
      ("puzzle_ids", ids, model.num_puzzle_ids),
    ):
      if values.dtype.kind not in "iu" or not (
        0 <= values.min() <= values.max() < count
      ):
        raise UserError(f"{name}: must be integers from 0 to {count - 1}")
    if depth < 1:
      raise UserError(f"depth={depth}: must be 1 or more")
    found = self.call(
      inputs.astype(np.int32), ids.astype(np.int32), depth, threshold
    )
    return {name: np.asarray(value) for name, value in found.items()}
