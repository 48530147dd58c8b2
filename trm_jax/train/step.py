"""The training state and the pure training step.

`train_step` is one optimizer step, which is one supervision step: halted slots
take new puzzles, every slot recurses once, the weights (AdamATan2), the puzzle
table (sign-SGD) and the moving average are updated, and slots may halt.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.typing import ArrayLike

from trm_jax.config import Experiment, TrainConfig
from trm_jax.core import (
  flops,
  halting,
  hashing,
  losses,
  network,
  optim,
  recursion,
)
from trm_jax.core.depth import DepthConfig
from trm_jax.core.halting import Carry, HaltingConfig, Puzzles
from trm_jax.core.model import ModelConfig, Params, Weights
from trm_jax.core.optim import OptimConfig
from trm_jax.data import batches
from trm_jax.data.batches import Table
from trm_jax.data.task import Task, show
from trm_jax.run import sharding


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The static settings of a training step; hashable."""

  model: ModelConfig
  halting: HaltingConfig
  optim: OptimConfig
  train: TrainConfig
  task: Task
  depth: DepthConfig = dataclasses.field(default_factory=DepthConfig)

  @classmethod
  def of(cls, experiment: Experiment) -> "Recipe":
    """The settings of an experiment that training steps depend on."""
    names = (field.name for field in dataclasses.fields(cls))
    return cls(**{name: getattr(experiment, name) for name in names})

  @property
  def models(self) -> tuple[ModelConfig, ...]:
    """The model at each depth that is trained."""
    return self.depth.models(self.model)

  def choices(self, first: int, count: int) -> np.ndarray:
    """The index in `models` at each of the next steps, int32 [count]."""
    return self.depth.choices(first, count, self.train.steps)

  def training_flops(self, steps: int) -> float:
    """FLOPs of the first `steps` optimizer steps, over the whole batch."""
    each = [flops.training_step(model) for model in self.models]
    counts = np.bincount(self.choices(0, steps), minlength=len(each))
    return float(np.dot(counts, each)) * self.train.batch_size


class TrainState(struct.PyTreeNode):
  """All arrays that a run needs to resume bit for bit.

  Attributes:
    step: int32 [], number of optimizer steps.
    params: the model.
    opt_state: state of the weights' optimizer.
    ema: moving average of `params.weights`.
    carry: puzzles and latents of the batch slots.
    cursor: position in the stream of training puzzles.
    seed: uint32 [], constant; all keys derive from it and the step.
  """

  step: jax.Array
  params: Params
  opt_state: optax.OptState
  ema: Weights
  carry: Carry
  cursor: batches.Cursor
  seed: jax.Array

  @property
  def key(self) -> jax.Array:
    """The run's base key."""
    return jax.random.fold_in(hashing.base_key(self.seed), 1)

  @property
  def averaged_params(self) -> Params:
    """The model with its averaged weights, used for evaluation."""
    return self.params.replace(weights=self.ema)


class Learned(struct.PyTreeNode):
  """Losses, outputs and gradients of a training step.

  Attributes:
    loss: scalar, summed over the batch.
    metrics: sums, see `losses.losses_and_metrics`.
    outputs: predictions.
    gradients: of loss / batch size, with respect to the weights.
    row_gradients: the same for each slot's puzzle embedding, `[B, E]`.
  """

  loss: jax.Array
  metrics: dict[str, jax.Array]
  outputs: halting.Outputs
  gradients: Weights
  row_gradients: jax.Array


def init_state(recipe: Recipe, seed: ArrayLike | None = None) -> TrainState:
  """An initial state; `seed`, integer [], replaces the recipe's."""
  seed = recipe.train.seed if seed is None else seed
  key = jax.random.fold_in(hashing.base_key(seed), 0)
  return state_from_params(network.init(key, recipe.model), recipe, seed)


def state_from_params(
  params: Params, recipe: Recipe, seed: ArrayLike | None = None
) -> TrainState:
  """An initial state with given parameters; see `init_state`."""
  seed = recipe.train.seed if seed is None else seed
  optimizer = optim.weights_optimizer(recipe.optim, recipe.train.steps)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params.weights),
    # A copy, because a buffer cannot be donated twice.
    ema=jax.tree.map(jnp.copy, params.weights),
    carry=halting.initial_carry(recipe.train.batch_size, recipe.model),
    cursor=batches.start(),
    seed=jnp.asarray(seed, jnp.uint32),
  )


def draw_puzzles(
  state: TrainState, table: Table, recipe: Recipe
) -> tuple[Puzzles, batches.Cursor]:
  """Draws the puzzles that halted slots take next.

  Example i of the stream and its augmentation are a function of (seed, i);
  halting affects only the position in the stream.

  Returns:
    One puzzle a slot, and the cursor after the puzzles taken.
  """
  halted = state.carry.halted
  if recipe.train.refill == "queue":
    ranks = jnp.cumsum(halted, dtype=jnp.int32)
    offsets, taken = ranks - halted, ranks[-1]
  else:
    offsets = jnp.arange(halted.shape[0], dtype=jnp.int32)
    taken = jnp.int32(halted.shape[0])
  drawn = batches.take(state.cursor, offsets, state.seed, table)
  inputs, labels = show(table, drawn.rows, drawn.puzzles, recipe.task)
  augmentation, copies = recipe.task.augmentation, recipe.task.copies
  # Viewed copies were augmented when their folder was written.
  if augmentation and recipe.train.augment and not (copies and table.is_viewed):
    base = jax.random.fold_in(state.key, 0)

    def augment_one(epoch, row, inputs, labels):
      key = jax.random.fold_in(jax.random.fold_in(base, epoch), row)
      return augmentation.augment(key, inputs, labels)

    augmented = jax.vmap(augment_one)(drawn.epochs, drawn.rows, inputs, labels)
    if copies:
      anchored = drawn.anchored[:, None]
      augmented = jax.tree.map(
        lambda plain, changed: jnp.where(anchored, plain, changed),
        (inputs, labels),
        augmented,
      )
    inputs, labels = augmented
  return (
    Puzzles.of(inputs, labels, table.puzzle_ids[drawn.puzzles]),
    batches.advance(state.cursor, taken, table.num_rows),
  )


class TrainingSlots(struct.PyTreeNode):
  """Inputs of the loss by batch slot; every leaf is `[B, ...]`.

  Attributes:
    carry: after the refill.
    minimum_steps: int32, supervision steps before a slot may halt.
    puzzle_rows: `[B, E]`, rows of the puzzle table.
    keys: PRNG keys of the path noise, or None.
  """

  carry: Carry
  minimum_steps: jax.Array
  puzzle_rows: jax.Array
  keys: jax.Array | None


def learn(
  state: TrainState,
  incoming: Puzzles,
  recipe: Recipe,
  split_slots: sharding.SplitSlots = sharding.all_at_once,
) -> tuple[TrainState, Learned]:
  """One optimizer step; does not move the cursor.

  Args:
    state: the training state.
    incoming: one puzzle a slot, taken by halted slots.
    recipe: static settings.
    split_slots: splits over devices and microbatches.
  """
  params, model = state.params, recipe.model
  batch = state.carry.halted.shape[0]

  def key(purpose: int) -> jax.Array:
    return jax.random.fold_in(
      jax.random.fold_in(state.key, purpose), state.step
    )

  carry = halting.refill(
    state.carry,
    incoming,
    recursion.initial_latents(params.initial, batch, model, key(2)),
  )
  ids = carry.puzzles.puzzle_ids
  slots = TrainingSlots(
    carry=carry,
    minimum_steps=halting.draw_minimum_steps(key(1), batch, recipe.halting),
    puzzle_rows=params.puzzle_table[ids],
    keys=jax.random.split(key(3), batch) if model.path_noise else None,
  )

  def differentiate(weights, slots):
    loss_and_gradients = jax.value_and_grad(_loss, argnums=(0, 1), has_aux=True)
    (loss, (metrics, *aux)), (gradients, row_gradients) = loss_and_gradients(
      weights, slots.puzzle_rows, slots, recipe, batch
    )
    return (loss, metrics, gradients), (*aux, row_gradients)

  sums, results = split_slots(differentiate)(params.weights, slots)
  loss, metrics, gradients = sums
  outputs, after, row_gradients = results
  with jax.named_scope("optimizer"):
    optimizer = optim.weights_optimizer(recipe.optim, recipe.train.steps)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, params.weights
    )
    weights = optax.apply_updates(params.weights, updates)
    ema = optax.incremental_update(weights, state.ema, 1 - recipe.optim.ema)
  with jax.named_scope("puzzle_table"):
    puzzle_schedule = optim.warmup_schedule(
      recipe.optim.puzzle_lr, recipe.optim, recipe.train.steps
    )
    puzzle_table = optim.sign_sgd_rows(
      params.puzzle_table,
      ids,
      row_gradients,
      puzzle_schedule(state.step),
      recipe.optim.puzzle_weight_decay,
    )
  state = state.replace(
    step=state.step + 1,
    params=params.replace(weights=weights, puzzle_table=puzzle_table),
    opt_state=opt_state,
    ema=ema,
    carry=after,
  )
  return state, Learned(
    loss=loss * batch,
    metrics=metrics,
    outputs=outputs,
    gradients=gradients,
    row_gradients=row_gradients,
  )


def _loss(
  weights: Weights,
  puzzle_rows: jax.Array,
  slots: TrainingSlots,
  recipe: Recipe,
  batch: int,
):
  """Losses of slots / batch size, and auxiliary (metrics, outputs, carry)."""
  model, carry = recipe.model, slots.carry
  puzzles = carry.puzzles
  latents, outputs = halting.supervise(
    weights, puzzle_rows, carry.latents, puzzles.inputs, model, puzzles.labels,
    slots.keys,
  )  # fmt: skip
  after = halting.finish_step(
    carry, latents, outputs.wants_to_halt(model), slots.minimum_steps,
    recipe.halting,
  )  # fmt: skip
  if model.kind.bootstraps:
    last = after.steps >= recipe.halting.max_steps
    target = halting.bootstrap(
      weights, puzzle_rows, latents, puzzles.inputs, last, model
    )
    outputs = outputs.replace(target_continue=target)
  # A decoder also learns to generate padding, which it reads afterwards.
  labelled = None
  if model.kind.learns_padding:
    labelled = jnp.ones_like(puzzles.labels, bool)
  weighted = None
  if recipe.train.supervision_decay != 1:
    weighted = losses.step_weights(
      after.steps, recipe.train.supervision_decay, recipe.halting.max_steps
    )
  loss, metrics = losses.losses_and_metrics(
    outputs,
    puzzles.labels,
    after.halted,
    after.steps,
    recipe.train.loss,
    smoothing=recipe.train.label_smoothing,
    weights=weighted,
    has_halting_head=model.kind.has_halting_head,
    labelled=labelled,
  )
  return loss / batch, (metrics, outputs, after)


def train_step(
  state: TrainState,
  table: Table,
  recipe: Recipe,
  choice: ArrayLike = 0,
  split_slots: sharding.SplitSlots = sharding.all_at_once,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Draws puzzles and makes one optimizer step.

  Args:
    state: the training state.
    table: the whole training split, on the device.
    recipe: static settings.
    choice: int32 [], index in `recipe.models` of the model to train.
    split_slots: see `learn`.

  Returns:
    The next state, and scalar metrics: the sums of
    `losses.losses_and_metrics`, but losses and `loss` per puzzle, and
    `gradient_norm`.
  """
  incoming, cursor = draw_puzzles(state, table, recipe)

  def learn_with(model: ModelConfig):
    recipe_of_model = dataclasses.replace(recipe, model=model)

    def branch(state, incoming):
      state, learned = learn(state, incoming, recipe_of_model, split_slots)
      per_puzzle = {
        name: value / recipe.train.batch_size
        for name, value in (learned.metrics | {"loss": learned.loss}).items()
        if name.endswith("loss")
      }
      norm = optax.tree.norm(learned.gradients)
      return state, learned.metrics | per_puzzle | {"gradient_norm": norm}

    return branch

  branches = [learn_with(model) for model in recipe.models]
  state, metrics = jax.lax.switch(choice, branches, state, incoming)
  return state.replace(cursor=cursor), metrics


def train_steps(
  state: TrainState,
  table: Table,
  recipe: Recipe,
  choices: ArrayLike | None = None,
  split_slots: sharding.SplitSlots = sharding.all_at_once,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`train_step` scanned `steps_per_dispatch` times; metrics are `[K]`.

  `choices`, int32 `[K]`, come from `Recipe.choices`; `None` for one model.
  """
  count = recipe.train.steps_per_dispatch
  if choices is None:
    assert len(recipe.models) == 1, "choose among the depths"
    choices = np.zeros(count, np.int32)

  def body(state, choice):
    return train_step(state, table, recipe, choice, split_slots)

  return jax.lax.scan(body, state, jnp.asarray(choices), length=count)
