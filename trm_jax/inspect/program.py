"""The compiled programs of training and inference, for inspection.

They are the functions that training and `solve` compile, with the same shapes
and shardings: lowered for described devices, or callable here on synthetic
puzzles.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.config import Experiment
from trm_jax.core import flops, network
from trm_jax.core.halting import Puzzles
from trm_jax.data import synthetic
from trm_jax.data.batches import Table
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.inspect.topology import Topology
from trm_jax.run import sharding
from trm_jax.solve import evaluate
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Solver
from trm_jax.train import program as trainer
from trm_jax.train.step import Recipe


@dataclasses.dataclass(frozen=True)
class DataSize:
  """The assumed size of the data, which is not read."""

  rows: int  # examples; in ARC before augmentation
  copies: int  # of each example; 1 except in ARC
  puzzle_ids: int  # rows of the puzzle table


@dataclasses.dataclass(frozen=True)
class Workload:
  """A program to be compiled."""

  name: str
  lower: Callable[[], jax.stages.Lowered]
  devices: int  # number of devices that run it
  steps: int  # supervision steps in one call
  flops: float  # of one step on all devices, analytic count
  dtype: str  # of the activations


@dataclasses.dataclass(frozen=True)
class RepeatedCall:
  """A program that is ready to run."""

  call: Callable[[], Any]  # runs it once and returns its outputs
  steps: int  # supervision steps in one call


def expected_size(
  experiment: Experiment, rows: int = 0, puzzle_ids: int = 0
) -> DataSize:
  """The size of an experiment's data, derived from its config.

  Args:
    experiment: the config.
    rows: examples, if known. 0: the paper's size where the config names the
      paper's data, and 1024 for a file.
    puzzle_ids: rows of the puzzle table, if known.
  """
  data = experiment.data
  expected = data.task.dataset.expected_size(data)
  rows, copies = rows or expected[0], expected[1]
  ids = max(puzzle_ids or expected[2], experiment.model.num_puzzle_ids)
  return DataSize(rows, copies, ids)


def training(
  experiment: Experiment,
  topology: Topology,
  size: DataSize,
  seeds: Sequence[int] = (),
  name: str = "train",
) -> Workload:
  """A dispatch of the training loop, for one run or a population."""
  experiment = experiment.with_puzzle_ids(size.puzzle_ids)
  mesh = sharding.make_mesh(
    experiment.mesh.data,
    experiment.mesh.model,
    max(len(seeds), 1),
    topology.devices,
  )
  trainer.check_batches(experiment, mesh)
  steps = experiment.train.steps_per_dispatch

  def lower() -> jax.stages.Lowered:
    program = trainer.lay_out(experiment, mesh, seeds or None)
    table = described_table(experiment, mesh, size)
    choices = program.recipe.choices(0, steps)
    return program.dispatch.lower(program.abstract, table, choices)

  # Where the depth is drawn or scheduled, of the deepest step.
  step = max(map(flops.training_step, Recipe.of(experiment).models))
  return Workload(
    name=name,
    lower=lower,
    devices=mesh.size,
    steps=steps,
    flops=float(max(len(seeds), 1) * experiment.train.batch_size * step),
    dtype=experiment.model.dtype,
  )


def solving(
  experiment: Experiment,
  topology: Topology,
  size: DataSize,
  slots: int,
  settings: SolveConfig,
) -> Workload:
  """A call of the inference engine on the devices of one host.

  Its number of supervision steps depends on data; one is counted.
  """
  model = experiment.with_puzzle_ids(size.puzzle_ids).model
  solver = Solver(
    network.shapes(model), model, experiment.task, slots, topology.host
  )
  return Workload(
    name="solve",
    lower=lambda: solver.lower(slots, settings),
    devices=len(topology.host),
    steps=1,
    flops=slots * float(flops.inference(model, 1)),
    dtype=model.dtype,
  )


def described_table(
  experiment: Experiment, mesh: jax.sharding.Mesh, size: DataSize
) -> Table:
  """Shapes and shardings of the result of training's `stage`."""
  split = synthetic.split(experiment.task, size.rows, size.copies)
  replicated = sharding.replicated(mesh)
  table = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated),
    Table.of(split),
  )
  if split.inputs.nbytes + split.labels.nbytes <= trainer._SHARED_FROM:
    return table
  rows = -(-size.rows // mesh.size) * mesh.size
  examples = jax.ShapeDtypeStruct(
    (rows, *split.inputs.shape[1:]),
    split.inputs.dtype,
    sharding=NamedSharding(mesh, P(mesh.axis_names)),
  )
  return table.replace(inputs=examples, labels=examples)


def evaluation_batch(
  split: Split, size: int, mesh: jax.sharding.Mesh
) -> evaluate.Batch:
  """The first `size` puzzles on the devices, repeated if there are fewer."""
  rows = np.arange(size) % len(split)
  inputs, labels, ids, counted = sharding.put(
    (
      split.inputs[rows], split.labels[rows], split.puzzle_ids[rows],
      np.ones(size, bool),
    ),
    sharding.by_batch(mesh),
  )  # fmt: skip
  return evaluate.Batch(Puzzles.of(inputs, labels, ids), counted)


def dispatch(what: str, experiment: Experiment, steps: int) -> RepeatedCall:
  """The program that `trm profile` runs, on synthetic puzzles.

  Args:
    what: "train"; "evaluate" `eval.batch_size` puzzles to `eval.depth`; or
      "solve" with as many slots to the same depth, without early halting.
    experiment: the config.
    steps: total supervision steps for "solve", rounded up to whole puzzles.

  Raises:
    UserError: if the devices do not fit the config.
  """
  program = trainer.build(experiment)
  split = synthetic.split(experiment.task)
  if what == "train":
    made = trainer.prepare_dispatch(program, split)
    return RepeatedCall(made.call, made.steps)
  model, task = experiment.model, experiment.task
  params = program.init().averaged_params
  batch = experiment.eval.batch_size
  depth = experiment.eval.depth if model.is_recursive else 1
  if what == "solve":
    solver, settings = Solver(params, model, task, batch), SolveConfig(depth)
    rounds = -(-steps // depth)
    rows = np.arange(batch * rounds) % len(split)
    inputs, ids = split.inputs[rows], split.puzzle_ids[rows]
    return RepeatedCall(
      lambda: solver.solve(inputs, ids, settings), rounds * depth
    )
  if what != "evaluate":
    raise UserError(f"what={what!r}: must be train, evaluate or solve")
  shown = evaluation_batch(split, batch, program.mesh)
  score = evaluate.scorer(program.mesh)
  # Evaluation reads the scores of a batch before it runs the next.
  return RepeatedCall(
    lambda: jax.device_get(score(params, shown, depth, model, task)), depth
  )
