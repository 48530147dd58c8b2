"""Training: the state, one pure step, and several scanned into one dispatch.

`train_step` is one optimizer step, which is one supervision step: halted
slots take new puzzles, every slot recurses once, losses drive three update
rules (AdamATan2, sign-SGD on the puzzle table, EMA), and slots may halt.
It knows neither mesh nor files; `trm_jax/fit.py` is the loop around it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trm_jax import optim
from trm_jax.config import Experiment, TrainConfig
from trm_jax.core import halting, losses, network
from trm_jax.core.halting import Carry, HaltingConfig, Puzzles
from trm_jax.core.network import ModelConfig, Params, Weights
from trm_jax.data import batches
from trm_jax.data.batches import Table
from trm_jax.data.task import Task
from trm_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that fixes a training step besides arrays; hashable, so static."""

  model: ModelConfig
  halting: HaltingConfig
  optim: OptimConfig
  train: TrainConfig
  task: Task

  @classmethod
  def of(cls, experiment: Experiment) -> "Recipe":
    """The part of an experiment that training steps depend on."""
    return cls(
      model=experiment.model,
      halting=experiment.halting,
      optim=experiment.optim,
      train=experiment.train,
      task=experiment.task,
    )


class TrainState(struct.PyTreeNode):
  """All that a run needs to go on, bit for bit.

  Attributes:
    step: int32, optimizer steps made.
    params: the model.
    opt_state: moments of the weights' optimizer.
    ema: moving average of `params.weights`.
    carry: what the batch slots hold.
    cursor: place in the endless stream of training puzzles.
    key: uint32 `[2]`, raw data of the run's base key; every other key is
      folded from it and the step, so it never changes.
  """

  step: jax.Array
  params: Params
  opt_state: optax.OptState
  ema: Weights
  carry: Carry
  cursor: batches.Cursor
  key: jax.Array

  @property
  def averaged_params(self) -> Params:
    """The model with its averaged weights, which is what is evaluated."""
    return self.params.replace(weights=self.ema)


class Learned(struct.PyTreeNode):
  """By-products of a training step, for inspection.

  Attributes:
    loss: scalar, summed over the batch.
    metrics: sums, see `losses.losses_and_metrics`.
    outputs: what the step predicted.
    gradients: of loss / batch size with respect to the weights.
    row_gradients: the same per batch slot, of its puzzle embedding, `[B, E]`.
  """

  loss: jax.Array
  metrics: dict[str, jax.Array]
  outputs: halting.Outputs
  gradients: Weights
  row_gradients: jax.Array


def init_state(recipe: Recipe) -> TrainState:
  """A fresh state, a function of the recipe (and its seed) alone."""
  key = jax.random.key(recipe.train.seed)
  params = network.init(jax.random.fold_in(key, 0), recipe.model)
  return state_from_params(params, recipe)


def state_from_params(params: Params, recipe: Recipe) -> TrainState:
  """A fresh state around given parameters."""
  key = jax.random.key(recipe.train.seed)
  optimizer = optim.adam_atan2(recipe.optim, recipe.train.steps)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params.weights),
    # A copy: donation must not see one buffer twice.
    ema=jax.tree.map(jnp.copy, params.weights),
    carry=halting.initial_carry(recipe.train.batch_size, recipe.model),
    cursor=batches.start(),
    key=jax.random.key_data(jax.random.fold_in(key, 1)),
  )


def draw_puzzles(
  state: TrainState, table: Table, recipe: Recipe
) -> tuple[Puzzles, batches.Cursor]:
  """The puzzles that slots take if they are halted.

  Example number i of the stream is a function of (seed, i), and so is its
  augmentation; only how far the stream has moved depends on halting.

  Args:
    state: the training state; its carry says which slots are halted.
    table: the whole training split.
    recipe: names the way of refilling.

  Returns:
    One puzzle a slot, and the cursor behind those that were taken.
  """
  halted = state.carry.halted
  if recipe.train.refill == "queue":
    ranks = jnp.cumsum(halted, dtype=jnp.int32)
    offsets, taken = ranks - halted, ranks[-1]
  else:
    offsets = jnp.arange(halted.shape[0], dtype=jnp.int32)
    taken = jnp.int32(halted.shape[0])
  drawn = batches.take(state.cursor, offsets, recipe.train.seed, table)
  inputs, labels = table.inputs[drawn.rows], table.labels[drawn.rows]
  view, augment = recipe.task.view, recipe.task.augment
  if view and not table.is_viewed:
    assert table.symmetries is not None, "copies differ by a symmetry"
    symmetries = table.symmetries[drawn.puzzles]
    inputs = jax.vmap(view)(inputs, symmetries)
    labels = jax.vmap(view)(labels, symmetries)
  # Copies that are stored as shown were moved about when they were written.
  if augment and recipe.train.augment and not (view and table.is_viewed):
    base = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)

    def move(epoch, row, inputs, labels):
      key = jax.random.fold_in(jax.random.fold_in(base, epoch), row)
      return augment(key, inputs, labels)

    moved = jax.vmap(move)(drawn.epochs, drawn.rows, inputs, labels)
    if view:
      still = drawn.anchored[:, None]
      moved = jax.tree.map(
        lambda here, there: jnp.where(still, here, there),
        (inputs, labels),
        moved,
      )
    inputs, labels = moved
  return (
    as_puzzles(inputs, labels, table.puzzle_ids[drawn.puzzles]),
    batches.advance(state.cursor, taken, table.num_rows),
  )


def as_puzzles(
  inputs: jax.Array, labels: jax.Array, puzzle_ids: jax.Array
) -> Puzzles:
  """Stored uint8 tokens as the core wants them: label 0 becomes ignored."""
  labels = labels.astype(jnp.int32)
  return Puzzles(
    inputs=inputs.astype(jnp.int32),
    labels=jnp.where(labels == 0, losses.IGNORE_LABEL, labels),
    puzzle_ids=puzzle_ids,
  )


def learn(
  state: TrainState, incoming: Puzzles, recipe: Recipe
) -> tuple[TrainState, Learned]:
  """One optimizer step on given incoming puzzles.

  Args:
    state: the training state. Its cursor is left alone.
    incoming: one puzzle per slot, taken by the halted ones.
    recipe: what to do.

  Returns:
    The next state, and the by-products.
  """
  params = state.params
  batch = state.carry.halted.shape[0]
  carry = halting.refill(
    state.carry,
    incoming,
    jax.tree.map(
      lambda v: v[None, None].astype(recipe.model.dtype), params.initial
    ),
  )
  puzzles = carry.puzzles
  key = jax.random.wrap_key_data(state.key)
  minimum_steps = halting.draw_minimum_steps(
    jax.random.fold_in(jax.random.fold_in(key, 1), state.step),
    batch,
    recipe.halting,
  )

  def loss_of(weights, puzzle_rows):
    latents, outputs = halting.supervise(
      weights, puzzle_rows, carry.latents, puzzles.inputs, recipe.model
    )
    after = halting.finish_step(
      carry, latents, outputs.q_halt, minimum_steps, recipe.halting
    )
    loss, metrics = losses.losses_and_metrics(
      outputs, puzzles.labels, after.halted, after.steps, recipe.train.loss
    )
    return loss / batch, (loss, metrics, outputs, after)

  puzzle_rows = params.puzzle_table[puzzles.puzzle_ids]
  (_, (loss, metrics, outputs, after)), (gradients, row_gradients) = (
    jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
      params.weights, puzzle_rows
    )
  )
  optimizer = optim.adam_atan2(recipe.optim, recipe.train.steps)
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, params.weights
  )
  weights = optax.apply_updates(params.weights, updates)
  puzzle_schedule = optim.warmup_schedule(
    recipe.optim.puzzle_lr, recipe.optim, recipe.train.steps
  )
  puzzle_table = optim.sign_sgd_rows(
    params.puzzle_table,
    puzzles.puzzle_ids,
    row_gradients,
    puzzle_schedule(state.step),
    recipe.optim.puzzle_weight_decay,
  )
  state = state.replace(
    step=state.step + 1,
    params=params.replace(weights=weights, puzzle_table=puzzle_table),
    opt_state=opt_state,
    ema=optax.incremental_update(weights, state.ema, 1 - recipe.optim.ema),
    carry=after,
  )
  return state, Learned(
    loss=loss,
    metrics=metrics,
    outputs=outputs,
    gradients=gradients,
    row_gradients=row_gradients,
  )


def train_step(
  state: TrainState, table: Table, recipe: Recipe
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Draws puzzles and learns from them.

  Args:
    state: the training state.
    table: the whole training split, on the device.
    recipe: what to do.

  Returns:
    The next state, and scalar metrics: the sums of
    `losses.losses_and_metrics`, `loss` per puzzle and `gradient_norm`.
  """
  incoming, cursor = draw_puzzles(state, table, recipe)
  state, learned = learn(state, incoming, recipe)
  metrics = learned.metrics | {
    "loss": learned.loss / recipe.train.batch_size,
    "gradient_norm": optax.tree.norm(learned.gradients),
  }
  return state.replace(cursor=cursor), metrics


def train_steps(
  state: TrainState, table: Table, recipe: Recipe
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`steps_per_dispatch` training steps in one program; metrics `[K]` each."""

  def body(state, _):
    return train_step(state, table, recipe)

  return jax.lax.scan(body, state, length=recipe.train.steps_per_dispatch)
