"""The compiled functions of training, for one seed or several.

The states of several seeds ("members") are stacked along a leading axis, which
is split over devices, and the training step is vmapped over it. With one seed
there is neither the axis nor the vmap.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from trm_jax.config import Experiment
from trm_jax.core.model import Params, portable
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import checkpoint, sharding
from trm_jax.train import step as train

# Bytes of a split above which it is sharded over devices, not replicated.
_SHARED_FROM = 2**28


@dataclasses.dataclass(frozen=True)
class Program:
  """A run's compiled functions and the layout of their arrays.

  Attributes:
    mesh: the devices, with an axis "member" if there are several seeds.
    recipe: static settings of the training step.
    seeds: the seed of each member.
    abstract: the state's shapes, dtypes and shardings.
    init: makes an initial state, already sharded.
    dispatch: `(state, table, choices) -> (state, metrics)`; donates the state.
      Metrics are [K], or [M, K] for several members.
    averaged: `(state, i) -> Params`, the averaged model of member i; replicated
      if there are several members.
  """

  mesh: Mesh
  recipe: train.Recipe
  seeds: tuple[int, ...]
  abstract: train.TrainState
  init: Callable[[], train.TrainState]
  dispatch: Callable[[train.TrainState, Table, Any], Any]
  averaged: Callable[[train.TrainState, int], Params]


def build(
  experiment: Experiment, seeds: Sequence[int] | None = None
) -> Program:
  """Makes an experiment's mesh and functions.

  If given, `seeds` are the members' seeds, instead of the experiment's own.

  Raises:
    UserError: if the devices do not suit the config.
  """
  mesh = sharding.make_mesh(
    experiment.mesh.data, experiment.mesh.model, len(seeds or [0])
  )
  check_batches(experiment, mesh)
  model, platform = experiment.model, mesh.devices.flat[0].platform
  if model.kernel_platform not in (None, platform):
    raise UserError(
      f"config.model.attention={model.attention!r}: is a kernel of the "
      f"platform {model.kernel_platform!r}, but these devices are "
      f"{platform!r}; set config.model.attention='blocks', which runs anywhere "
      "and computes the same; a run may change it when it resumes"
    )
  return lay_out(experiment, mesh, seeds)


def check_batches(experiment: Experiment, mesh: Mesh):
  """Raises a `UserError` if the devices do not divide a batch."""
  sharding.check_batch(
    "config.train.batch_size", experiment.train.batch_size, mesh
  )
  # Each member is evaluated on all devices, one after another.
  sharding.check_batch(
    "config.eval.batch_size", experiment.eval.batch_size, mesh, shared=True
  )


def lay_out(
  experiment: Experiment, mesh: Mesh, seeds: Sequence[int] | None = None
) -> Program:
  """`build` for a given mesh, whose devices may be descriptions."""
  recipe = train.Recipe.of(experiment)
  seeds = tuple(seeds or [recipe.train.seed])
  several = len(seeds) > 1
  if several and (mesh.shape["model"] > 1 or recipe.model.attention == "cudnn"):
    # Below a vmap, JAX can neither split a kernel's heads over "model" nor
    # differentiate the kernel of cuDNN.
    model = portable(recipe.model)
    recipe = dataclasses.replace(recipe, model=model)
  split_slots = sharding.split_slots(
    mesh, experiment.train.microbatches(mesh.shape["data"])
  )

  def init():
    if several:
      init_member = functools.partial(train.init_state, recipe)
      return jax.vmap(init_member)(np.asarray(seeds, np.uint32))
    return train.init_state(recipe, seeds[0])

  def dispatch(state, table, choices):
    def steps(state):
      return train.train_steps(state, table, recipe, choices, split_slots)

    if several:
      steps = jax.vmap(steps, spmd_axis_name="member")
    return steps(state)

  def averaged(state, i):
    return jax.tree.map(lambda leaf: leaf[i], state.averaged_params)

  shapes = jax.eval_shape(init)
  state_sharding = sharding.shardings(shapes, mesh, stacked=several)
  replicated = sharding.replicated(mesh)
  return Program(
    mesh=mesh,
    recipe=recipe,
    seeds=seeds,
    abstract=checkpoint.abstract_state(shapes, state_sharding),
    init=jax.jit(init, out_shardings=state_sharding),
    dispatch=jax.jit(
      dispatch, out_shardings=(state_sharding, replicated), donate_argnums=0
    ),
    averaged=(
      jax.jit(averaged, out_shardings=replicated)
      if several
      else lambda state, i: state.averaged_params
    ),
  )


def stage(split: Split, mesh: Mesh) -> Table:
  """Puts a whole split onto the devices, as stored (uint8 tokens).

  It is replicated, or if large sharded by examples; a lookup then sends only
  the batch's rows between devices.
  """
  table = Table.of(split)
  if split.inputs.nbytes + split.labels.nbytes <= _SHARED_FROM:
    return sharding.put(table, sharding.replicated(mesh))
  rest = table.replace(inputs=None, labels=None)
  return sharding.put(rest, sharding.replicated(mesh)).replace(
    inputs=sharding.put_rows(split.inputs, mesh),
    labels=sharding.put_rows(split.labels, mesh),
  )


class Dispatch(NamedTuple):
  """A compiled dispatch with its arguments on the devices, for timing."""

  call: Callable[[], Any]  # continues from the last call; returns metrics
  compiled: Any  # jax.stages.Compiled
  compile_seconds: float
  steps: int  # optimizer steps of a call


def prepare_dispatch(program: Program, split: Split) -> Dispatch:
  """Puts data and an initial state onto the devices, and compiles."""
  table = stage(split, program.mesh)
  state = program.init()
  steps = program.recipe.train.steps_per_dispatch
  choices = program.recipe.choices(0, steps)
  started = time.perf_counter()
  compiled = program.dispatch.lower(state, table, choices).compile()
  seconds = time.perf_counter() - started

  def call():
    nonlocal state
    state, metrics = compiled(state, table, choices)
    return metrics

  return Dispatch(call, compiled, seconds, steps)
