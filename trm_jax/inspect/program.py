"""The programs that loops run, lowered for devices that are only described.

They are the very functions that `fit`, `population` and `solve` compile, with
their shapes and shardings. No data is read: only its shapes matter.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.config import Experiment
from trm_jax.core import flops, network
from trm_jax.data import synthetic
from trm_jax.data.batches import Table
from trm_jax.inspect.topology import Topology
from trm_jax.run import sharding
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Solver
from trm_jax.train import loop as fit
from trm_jax.train import population
from trm_jax.train import step as train


@dataclasses.dataclass(frozen=True)
class Data:
  """What is assumed of data that is not read.

  Attributes:
    rows: examples, in ARC before they are copied.
    copies: of each, 1 but in ARC.
    puzzle_ids: rows of the puzzle table that they need.
  """

  rows: int
  copies: int
  puzzle_ids: int


@dataclasses.dataclass(frozen=True)
class Work:
  """A program to be compiled.

  Attributes:
    name: what it is called.
    lower: gives it to the compiler.
    devices: that run it.
    steps: supervision steps that a call makes.
    flops: of one, by the analytic count, on all devices together.
    dtype: of the activations.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]
  devices: int
  steps: int
  flops: float
  dtype: str


def assume(experiment: Experiment, rows: int = 0, puzzle_ids: int = 0) -> Data:
  """The size of an experiment's data, as far as its config tells.

  Args:
    experiment: the config.
    rows: if it is known better.
    puzzle_ids: likewise.

  Returns:
    The paper's size where the config names the paper's data, and no less than
    1024 rows of a file that is not read.
  """
  data = experiment.data
  expected = data.task.dataset.expected_size(data)
  rows, copies = rows or expected[0], expected[1]
  ids = max(puzzle_ids or expected[2], experiment.model.num_puzzle_ids)
  return Data(rows, copies, ids)


def training(experiment: Experiment, topology: Topology, data: Data) -> Work:
  """A dispatch of the training loop.

  Raises:
    UserError: if the devices do not suit the config.
  """
  experiment = experiment.with_puzzle_ids(data.puzzle_ids)
  mesh = sharding.make_mesh(
    experiment.mesh.data, experiment.mesh.model, devices=topology.devices
  )
  _check_batches(experiment, mesh)
  count = experiment.train.steps_per_dispatch

  def lower() -> jax.stages.Lowered:
    program = fit.lay_out(experiment, mesh)
    table = _stage(experiment, mesh, data)
    choices = program.recipe.choices(0, count)
    return program.dispatch.lower(program.abstract, table, choices)

  work = _training_flops(experiment)
  return Work("train", lower, mesh.size, count, work, experiment.model.dtype)


def population_training(
  name: str,
  experiment: Experiment,
  seeds: Sequence[int],
  topology: Topology,
  data: Data,
) -> Work:
  """A dispatch of the loop that trains several seeds together.

  Raises:
    UserError: if the devices do not suit the config.
  """
  experiment = experiment.with_puzzle_ids(data.puzzle_ids)
  mesh = sharding.make_mesh(
    experiment.mesh.data,
    experiment.mesh.model,
    members=len(seeds),
    devices=topology.devices,
  )
  _check_batches(experiment, mesh, shared=True)
  count = experiment.train.steps_per_dispatch

  def lower() -> jax.stages.Lowered:
    program = population.lay_out(experiment, seeds, mesh)
    table = _stage(experiment, mesh, data)
    choices = program.recipe.choices(0, count)
    return program.dispatch.lower(program.abstract, table, choices)

  work = len(seeds) * _training_flops(experiment)
  return Work(name, lower, mesh.size, count, work, experiment.model.dtype)


def solving(
  experiment: Experiment,
  topology: Topology,
  data: Data,
  slots: int,
  settings: SolveConfig,
) -> Work:
  """A call of the inference engine, on the devices of one host.

  How many supervision steps it makes, its data decide: one is counted.

  Raises:
    UserError: if the settings do not suit the model or the task.
  """
  model = experiment.with_puzzle_ids(data.puzzle_ids).model
  solver = Solver(
    network.shapes(model),
    model,
    experiment.task,
    slots,
    devices=topology.host,
  )
  work = slots * float(flops.inference(model, 1))
  return Work(
    name="solve",
    lower=lambda: solver.lower(slots, settings),
    devices=len(topology.host),
    steps=1,
    flops=work,
    dtype=model.dtype,
  )


def _training_flops(experiment: Experiment) -> float:
  """Of a step at the deepest of its depths, which is what is counted too."""
  models = train.Recipe.of(experiment).models
  deepest = max(flops.training_step(model) for model in models)
  return float(deepest * experiment.train.batch_size)


def _check_batches(experiment: Experiment, mesh: Mesh, shared: bool = False):
  sharding.check_batch(
    "config.train.batch_size", experiment.train.batch_size, mesh
  )
  sharding.check_batch(
    "config.eval.batch_size", experiment.eval.batch_size, mesh, shared
  )


def _stage(experiment: Experiment, mesh: Mesh, data: Data) -> Table:
  """`fit.stage` of data that is not there."""
  split = synthetic.split(experiment.task, data.rows, data.copies)
  whole = sharding.replicated(mesh)
  table = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole),
    Table.of(split),
  )
  if split.inputs.nbytes + split.labels.nbytes <= fit._SHARED_FROM:
    return table
  rows = -(-data.rows // mesh.size) * mesh.size
  examples = jax.ShapeDtypeStruct(
    (rows, *split.inputs.shape[1:]),
    split.inputs.dtype,
    sharding=NamedSharding(mesh, P(mesh.axis_names)),
  )
  return table.replace(inputs=examples, labels=examples)
