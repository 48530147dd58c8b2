"""How programs run rollouts of puzzles, and put their scores into tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trm_jax.cli import solve_flags
from trm_jax.config import Experiment
from trm_jax.core.network import Params
from trm_jax.data.task import Split, show
from trm_jax.solve import score, vote
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Rollouts, Solver

Record = dict[str, Any]

_COLUMNS = {
  "exact_accuracy": "exact",
  "oracle_accuracy": "any right",
  "valid_rate": "valid",
  "pass@1": "pass@1",
  "pass@2": "pass@2",
}


def as_shown(split: Split, experiment: Experiment) -> tuple[np.ndarray, ...]:
  """Questions, labels and puzzle ids of all rows of a split, as copies see."""
  examples, puzzles = split.rows
  shown = show(split, examples, puzzles, experiment.task)
  inputs, labels = map(np.asarray, shown)
  return inputs, labels, split.puzzle_ids[puzzles]


def run(
  params: Params,
  experiment: Experiment,
  split: Split,
  settings: SolveConfig,
  depths: Sequence[int],
) -> Rollouts:
  """Runs the rollouts of a split, with a bar; compiling is not timed."""
  solver = Solver(
    params, experiment.model, experiment.task, experiment.eval.batch_size
  )
  inputs, _, ids = as_shown(split, experiment)
  with solve_flags.progress_bar("solving") as on_progress:
    solver.compile(len(inputs), settings, depths)
    return solver.solve(
      inputs, ids, settings, depths, prune=False, on_progress=on_progress
    )


def grid(
  rollouts: Rollouts,
  experiment: Experiment,
  split: Split,
  settings: SolveConfig,
  breadths: Sequence[int],
  selects: Sequence[str],
) -> tuple[list[Record], vote.Ballot | None]:
  """Scores every depth, breadth and way of choosing.

  Returns:
    A record for each; and, where copies vote, the last and broadest ballot.
  """
  ballot = None
  if split.symmetries is not None:
    records, ballot = score.vote_grid(
      rollouts, split, experiment.task, breadths
    )
  else:
    inputs, labels, _ = as_shown(split, experiment)
    records = score.grid(
      rollouts, inputs, labels, experiment.task, breadths, selects
    )
  halt = solve_flags.describe_halting(settings)
  return [record | {"halt": halt} for record in records], ballot


def throughput(rollouts: Rollouts) -> Record:
  """How fast it went, over all rollouts."""
  count, breadth = rollouts.halted.shape
  return {
    "seconds": rollouts.seconds,
    "puzzles_per_second": count / rollouts.seconds,
    "rollouts_per_second": count * breadth / rollouts.seconds,
    "flops_per_puzzle": rollouts.flops_per_puzzle,
  }


def print_grid(records: Sequence[Record], title: str, kind: str):
  """Prints depth x breadth as a table; one rollout leaves nothing to choose."""
  columns = {k: v for k, v in _COLUMNS.items() if k in records[0]}
  table = Table(
    "depth", "breadth", "chosen by", *columns.values(), "mean steps",
    "FLOPs/puzzle", title=title,
  )  # fmt: skip
  for column in table.columns:
    column.justify = "right"
  first = records[0]["select"]
  for record in records:
    alone = record["breadth"] == 1
    if alone and record["select"] != first:
      continue
    table.add_row(
      str(record["depth"]),
      str(record["breadth"]),
      "" if alone else record["select"],
      *(share(record, name) for name in columns),
      f"{record['mean_steps']:.2f}",
      f"{record['flops_per_puzzle']:.2e}",
    )
  console = Console()
  if not console.is_terminal:
    console = Console(width=140)  # a log has no width of its own
  console.print(table)
  print(
    f"{records[0]['puzzles']} {kind} puzzles; halting: {records[0]['halt']}; "
    "mean steps are of a rollout; ± is one standard error"
  )


def share(record: Record, name: str) -> str:
  """A share in percent, with its standard error where it has one."""
  error = record.get(f"{name}_se")
  spread = f" ± {error:.1%}" if error is not None else ""
  return f"{record[name]:.1%}{spread}"
