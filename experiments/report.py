"""What programs load, and how they put an experiment into words and tables."""

import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trm_jax import evaluate, metrics, plots
from trm_jax.config import Experiment
from trm_jax.core import flops, network
from trm_jax.core.network import Params
from trm_jax.data.sudoku import builder
from trm_jax.data.task import Split
from trm_jax.fit import Program
from trm_jax.run_folder import RunFolder


def load_splits(
  experiment: Experiment, say: Callable[[str], None] = lambda message: None
) -> tuple[Split, Split | None]:
  """Training puzzles, and the part of the test set to evaluate on.

  Args:
    experiment: names the data.
    say: told what takes long before it starts, and of rows left out.

  Returns:
    The training split, and the held-out one if the config has any.
  """
  _prepare(experiment, say)
  training = builder.load(experiment.data, "train")
  if not experiment.data.test:
    return training, None
  return training, _draw_test(experiment, experiment.eval.puzzles)


def load_test(
  experiment: Experiment, puzzles: int, say: Callable[[str], None]
) -> Split:
  """A part of the test set, drawn with the config's seed; 0 for all."""
  _prepare(experiment, say)
  return _draw_test(experiment, puzzles)


def _prepare(experiment: Experiment, say: Callable[[str], None]):
  for note in builder.prepare(experiment.data, say):
    say(f"note: {note}")


def _draw_test(experiment: Experiment, puzzles: int) -> Split:
  rows = evaluate.choose_rows(
    builder.num_rows(experiment.data, "test"), puzzles, experiment.eval.seed
  )
  return builder.load(experiment.data, "test", rows)


def describe(
  experiment: Experiment, training: Split, held_out: Split | None
) -> str:
  """The experiment in two lines."""
  model, train = experiment.model, experiment.train
  weights = network.count_weights(network.shapes(model))
  work = flops.training_step(model) * train.batch_size
  tested = f"{len(held_out):,}" if held_out else "no"
  return (
    f"TRM {model.mixer}, {weights:,} weights, {model.length} tokens of width "
    f"{model.width}, T={model.cycles}, n={model.latent_steps}\n"
    f"{len(training):,} training puzzles, {tested} held-out ones; "
    f"{train.steps:,} steps of batch {train.batch_size}, "
    f"{work / 1e9:,.1f} GFLOP each"
  )


def evaluate_depths(
  experiment: Experiment,
  program: Program,
  params: Params,
  split: Split,
  depths: Sequence[int],
) -> list[evaluate.Record]:
  """Evaluates with a progress bar, and keeps the depths that were asked for."""
  with Progress(transient=True) as progress:
    bar = progress.add_task("evaluating", total=len(split))
    records = evaluate.evaluate(
      params,
      split,
      experiment.model,
      experiment.task,
      depth=max(depths),
      batch_size=experiment.eval.batch_size,
      mesh=program.mesh,
      on_batch=lambda done, _: progress.update(bar, completed=done),
    )
  return [record for record in records if record["depth"] in depths]


def print_depths(records: Sequence[evaluate.Record], title: str):
  """Prints accuracy against depth as a table."""
  table = Table(
    "depth", "exact", "cells", "legal", "q right", "exact if halting",
    "mean steps", "FLOPs/puzzle", title=title,
  )  # fmt: skip
  for column in table.columns:
    column.justify = "right"
  for record in records:
    table.add_row(
      str(record["depth"]),
      f"{record['exact_accuracy']:.1%} ± {record['exact_accuracy_se']:.1%}",
      f"{record['cell_accuracy']:.1%}",
      f"{record['legal_rate']:.1%}",
      f"{record['q_accuracy']:.1%}",
      f"{record['halted_exact_accuracy']:.1%}",
      f"{record['mean_steps']:.2f}",
      f"{record['flops_per_puzzle']:.2e}",
    )
  console = Console()
  if not console.is_terminal:
    console = Console(width=100)  # a log has no width of its own
  console.print(table)
  print(f"{records[0]['puzzles']} held-out puzzles; ± is one standard error")


def plot_learning(folders: Sequence[RunFolder], picture: pathlib.Path):
  """Draws the learning curves of some runs into one picture."""
  runs = {}
  for folder in folders:
    folder.read_config()  # refuses what is not a run folder
    runs[str(folder.path)] = list(metrics.read(folder.metrics))
  plots.learning_curves(runs, picture)


def title(experiment: Experiment, step: int) -> str:
  """The heading of a picture."""
  size = experiment.data.size
  weights = network.count_weights(network.shapes(experiment.model))
  return (
    f"TRM ({experiment.model.mixer}, {weights / 1e3:,.0f}k weights) on "
    f"{size}x{size} Sudoku, after {step:,} steps"
  )
