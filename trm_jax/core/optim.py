"""Optimizers: AdamATan2 or Muon for weights, sign-SGD for the puzzle table."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax.contrib import MuonDimensionNumbers

KINDS = ("adam_atan2", "muon")
SCHEDULES = ("constant", "cosine")

# Muon's matrices in the blocks: name -> the axes of inputs and of outputs; any
# other axis counts matrices.
_MATRIX_AXES = {
  "gate_up": MuonDimensionNumbers(0, 2),  # [D, 2, F]
  "down": MuonDimensionNumbers(0, 1),  # [F, D]
  "qkv": MuonDimensionNumbers(0, (2, 3)),  # [D, 3, H, K]
  "out": MuonDimensionNumbers((0, 1), 2),  # [H, K, D]
}

# Root mean square of Muon's updates: about that of AdamW's, so that its
# learning rates hold (arXiv 2502.16982, section 2.2).
_MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Settings of every update rule; the defaults are the paper's for Sudoku.

  Attributes:
    kind: update rule of the weights, "adam_atan2", or "muon" for the matrices
      of the blocks and AdamATan2 for all others.
    lr: learning rate of the weights after warm-up.
    weight_decay: decoupled decay of the weights, times the learning rate.
    beta1: decay of AdamATan2's first moment; Muon's is always 0.95.
    beta2: decay of AdamATan2's second moment.
    warmup_steps: optimizer steps of linear warm-up.
    schedule: "constant", or "cosine" down to `lr * lr_min_ratio`.
    lr_min_ratio: final learning rate of "cosine" as a fraction of `lr`.
    puzzle_lr: learning rate of the puzzle table, under the same schedule.
    puzzle_weight_decay: decoupled decay of touched rows.
    ema: decay of the moving average of the weights.
  """

  kind: str = "adam_atan2"
  lr: float = 1e-4
  weight_decay: float = 1.0
  beta1: float = 0.9
  beta2: float = 0.95
  warmup_steps: int = 2000
  schedule: str = "constant"
  lr_min_ratio: float = 0.1
  puzzle_lr: float = 1e-4
  puzzle_weight_decay: float = 1.0
  ema: float = 0.999

  def __post_init__(self):
    for name in ("lr", "weight_decay", "puzzle_lr", "puzzle_weight_decay",
                 "warmup_steps"):  # fmt: skip
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
    for name in ("beta1", "beta2", "ema"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
    if not 0 <= self.lr_min_ratio <= 1:
      raise ValueError(
        f"lr_min_ratio={self.lr_min_ratio}: must be a fraction in [0, 1]"
      )
    for name, allowed in (("kind", KINDS), ("schedule", SCHEDULES)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}"
        )


def warmup_schedule(
  peak: float, config: OptimConfig, total_steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, then constant or cosine.

  Step t (from 0) of W warm-up steps has rate `peak * (t + 1) / W`, as in the
  reference.

  Args:
    peak: learning rate after warm-up.
    config: names the schedule.
    total_steps: where "cosine" ends.

  Returns:
    A function of the step count.
  """
  warmup = config.warmup_steps

  def schedule(count):
    # optax's schedules count in float32, too coarse for a float64 replay.
    t = (count + 1).astype(jnp.result_type(float))
    ramp = jnp.minimum(t / max(warmup, 1), 1)
    if config.schedule == "constant":
      return peak * ramp
    progress = jnp.clip((t - warmup) / max(total_steps - warmup, 1), 0, 1)
    cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
    floor = config.lr_min_ratio
    return peak * ramp * (floor + (1 - floor) * cosine)

  return schedule


class AdamATan2State(NamedTuple):
  """Moments of AdamATan2; `count` is the number of updates made."""

  count: jax.Array
  mu: optax.Updates
  nu: optax.Updates


def scale_by_adam_atan2(
  b1: float = 0.9, b2: float = 0.95
) -> optax.GradientTransformation:
  r"""Rescales updates by Adam's moments through an arctangent.

  .. math::
    u_t = \mathrm{atan2}\left(m_t, \sqrt{v_t / (1 - b_2^t)}\right)
          / (1 - b_1^t)

  The arctangent needs no epsilon and makes the update invariant to the scale
  of the gradient ("Scaling Exponents Across Parameterizations and Optimizers",
  arXiv 2407.05872). Without further factors, as in the reference: a steady
  gradient gives updates of pi/4, not 1.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.

  Returns:
    A transform whose state is `AdamATan2State`.
  """

  def init(params):
    return AdamATan2State(
      count=jnp.zeros((), jnp.int32),
      mu=optax.tree.zeros_like(params),
      nu=optax.tree.zeros_like(params),
    )

  def update(updates, state, params=None):
    del params
    count = jnp.asarray(optax.safe_increment(state.count))
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)

    def rescale(m, v):
      steps = count.astype(m.dtype)
      unbiased = v / (1 - b2**steps)
      return jnp.arctan2(m, jnp.sqrt(unbiased)) / (1 - b1**steps)

    return (
      jax.tree.map(rescale, mu, nu),
      AdamATan2State(count=count, mu=mu, nu=nu),
    )

  return optax.GradientTransformation(init, update)


def weights_optimizer(
  config: OptimConfig, total_steps: int
) -> optax.GradientTransformation:
  """The optimizer of the weights, with decoupled decay.

  Muon moves a matrix by about the orthogonal one nearest to its momentum, times
  `0.2 sqrt(max(inputs, outputs))`, so that the root mean square of an update
  does not depend on the shape ("Muon is Scalable for LLM Training",
  arXiv 2502.16982). Gate and up are two matrices to it; q, k and v are three,
  each of all heads.

  Args:
    config: names the rule.
    total_steps: where the schedule ends.

  Returns:
    A transform of `Params.weights`.
  """
  schedule = warmup_schedule(config.lr, config, total_steps)
  adam_atan2 = optax.chain(
    scale_by_adam_atan2(config.beta1, config.beta2),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  if config.kind == "adam_atan2":
    return adam_atan2
  muon = optax.contrib.muon(
    schedule,
    weight_decay=config.weight_decay,
    # Called with the matrices alone, by the partition below.
    muon_weight_dimension_numbers=lambda weights: jax.tree.map_with_path(
      lambda path, _: _matrix_axes(path), weights
    ),
    consistent_rms=_MUON_RMS,
  )
  return optax.partition(
    {"muon": muon, "adam_atan2": adam_atan2},
    lambda weights: jax.tree.map_with_path(
      lambda path, _: "muon" if _matrix_axes(path) else "adam_atan2", weights
    ),
  )


def _matrix_axes(path: tuple) -> MuonDimensionNumbers | None:
  """The axes of a matrix that Muon updates; None for any other weight."""
  names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
  is_in_block = any(name.startswith("block_") for name in names)
  return _MATRIX_AXES.get(names[-1]) if is_in_block else None


def sign_sgd_rows(
  table: jax.Array,
  ids: jax.Array,
  gradients: jax.Array,
  learning_rate: ArrayLike,
  weight_decay: float,
) -> jax.Array:
  """Sign-SGD with decoupled decay on the rows that a batch touched.

  Gradients of a row that occurs several times are summed before the sign.
  Rows outside the batch are neither decayed nor read, so the work depends on
  the batch alone, whatever the size of the table.

  Args:
    table: `[N, E]`.
    ids: int `[B]`, rows in the batch.
    gradients: `[B, E]`, one gradient per batch slot.
    learning_rate: step size.
    weight_decay: decay, times the learning rate.

  Returns:
    The new table, `[N, E]`.
  """
  chex.assert_equal_shape_prefix([ids, gradients], 1)
  if not gradients.size:
    return table
  absent = table.shape[0]  # fills the unused places; dropped on writing
  rows, slots = jnp.unique(
    ids, size=ids.shape[0], fill_value=absent, return_inverse=True
  )
  summed = jax.ops.segment_sum(gradients, slots, num_segments=ids.shape[0])
  old = table.at[rows].get(mode="clip")
  new = old * (1 - learning_rate * weight_decay) - learning_rate * jnp.sign(
    summed
  ).astype(table.dtype)
  return table.at[rows].set(new, mode="drop")
