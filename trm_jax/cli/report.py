"""What programs load, and how they put an experiment into words and tables."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trm_jax import config as config_lib
from trm_jax.cli import app
from trm_jax.config import Data, Experiment
from trm_jax.core import flops, network
from trm_jax.core.network import ModelConfig, Params
from trm_jax.data import datasets
from trm_jax.data.task import Split
from trm_jax.draw import curves as plots
from trm_jax.errors import UserError
from trm_jax.run import metrics, pretrained, sharding
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate, vote
from trm_jax.train.step import Recipe


def prepare(
  config: dict[str, Any],
  experiment: Experiment,
  say: Callable[[str], None] = lambda message: None,
) -> tuple[Experiment, list[str]]:
  """Makes the data ready, and the puzzle table large enough for it.

  Args:
    config: the config as plain values; the table's size is written into it.
    experiment: the same, checked.
    say: told what takes long before it starts, and of rows left out.

  Returns:
    The experiment with its table, and the name of each puzzle id.
  """
  for note in datasets.prepare(experiment.data, say):
    say(f"note: {note}")
  names = datasets.identifiers(experiment.data)
  experiment = experiment.with_puzzle_ids(len(names))
  if len(names) > 1:
    rows = experiment.model.num_puzzle_ids
    config.setdefault("model", {})["num_puzzle_ids"] = rows
  return experiment, names


def choose_data(data: Data, source: str, skip_bad_rows: bool) -> Data:
  """A run's data, or what flags say instead.

  Args:
    data: the run's.
    source: what to test on instead; "" for the run's own.
    skip_bad_rows: whether bad rows of csv files are left out.

  Returns:
    The data.
  """
  if source:
    data = datasets.tested_on(data, source)
  if skip_bad_rows:
    if not hasattr(data, "skip_bad_rows"):
      raise UserError("--skip_bad_rows: ARC files have no rows; leave it out")
    data = dataclasses.replace(data, skip_bad_rows=True)
  return data


def load_splits(experiment: Experiment) -> tuple[Split, Split | None]:
  """Training puzzles, and the part of the test set to evaluate on.

  Args:
    experiment: names the data, which must be prepared.

  Returns:
    The training split, and the held-out one if the config has any.
  """
  training = datasets.load(experiment.data, "train")
  if not datasets.has_test(experiment.data):
    return training, None
  return training, load_test(experiment, experiment.eval.puzzles)


def load_test(
  experiment: Experiment, puzzles: int, copies: int = -1, split: str = "test"
) -> Split:
  """A part of the test set, drawn with the config's seed.

  Args:
    experiment: names the data, which must be prepared.
    puzzles: how many puzzles (in ARC: tasks); 0 for all.
    copies: how many copies of each; 0 for all, -1 for as many as the config
      says.
    split: "test", or "train" for puzzles that were trained on.

  Returns:
    The split.
  """
  groups = evaluate.choose_groups(
    datasets.num_groups(experiment.data, split), puzzles, experiment.eval.seed
  )
  chosen = datasets.load(experiment.data, split, groups)
  copies = experiment.eval.copies if copies < 0 else copies
  return chosen.take(np.arange(len(chosen)), copies)


def load_held_out(
  folder: RunFolder,
  source: str = "",
  split: str = "test",
  *,
  puzzles: int | None = None,
  copies: int = -1,
  unseen: str = "error",
  skip_bad_rows: bool = False,
) -> tuple[Experiment, Split]:
  """A run's puzzles to test on, which it knows by the ids they then have.

  Args:
    folder: the run.
    source: what to test on instead of its own test split.
    split: "test", or "train".
    puzzles: how many; 0 for all, None for as many as in training.
    copies: as in `load_test`.
    unseen: what of puzzles without an embedding, see `datasets.match_ids`.
    skip_bad_rows: whether bad rows of csv files are left out.

  Returns:
    The experiment, with the data that was chosen, and the split.
  """
  experiment = config_lib.read(folder.read_config())
  data = choose_data(experiment.data, source, skip_bad_rows)
  experiment = dataclasses.replace(experiment, data=data)
  for note in datasets.prepare(data, app.say):
    app.say(f"note: {note}")
  if puzzles is None:
    puzzles = experiment.eval.puzzles
  chosen = load_test(experiment, puzzles, copies, split)
  names = datasets.identifiers(data)
  known = folder.read_identifiers()
  return experiment, datasets.match_ids(chosen, names, known, unseen)


def restore(
  folder: RunFolder, experiment: Experiment, which: str, unseen: str = "error"
) -> tuple[int, Params]:
  """A run's averaged weights.

  Args:
    folder: the run.
    experiment: what it was made by.
    which: "best", "last" or a step.
    unseen: as in `load_held_out`; "mean" sets the embedding for such puzzles.

  Returns:
    The step, and the model.
  """
  step, params = pretrained.restore_params(experiment, folder, which)
  if unseen == "mean":
    known = len(folder.read_identifiers())
    params = evaluate.with_mean_embedding(params, known)
  return step, params


def describe(
  experiment: Experiment, training: Split, held_out: Split | None
) -> str:
  """The experiment in two lines."""
  model, train = experiment.model, experiment.train
  weights = network.count_weights(network.shapes(model))
  work = Recipe.of(experiment).training_flops(train.steps) / train.steps
  depth = ""
  if flops.passes(model) > 1:
    depth = f", T={model.cycles}, n={model.latent_steps}"
  return (
    f"{_family(model)}, {weights:,} weights, {model.layers} layers, "
    f"{model.length} tokens of width {model.width}{depth}\n"
    f"training on {_count(training)}, held out {_count(held_out)}; "
    f"{train.steps:,} steps of batch {train.batch_size}, "
    f"{work / 1e9:,.1f} GFLOP each"
  )


def _family(model: ModelConfig) -> str:
  return f"{model.kind.title} ({model.mixer})"


def _count(split: Split | None) -> str:
  if not split:
    return "no puzzles"
  if split.symmetries is None and not split.is_viewed:
    return f"{len(split):,} puzzles"
  return (
    f"{len(split):,} puzzles in {len(split.puzzle_ids):,} copies with "
    f"{len(split.rows[0]):,} examples"
  )


def evaluate_depths(
  experiment: Experiment,
  step: int,
  params: Params,
  split: Split,
  depths: Sequence[int],
  ballots: Mapping[int, vote.Ballot] | None = None,
) -> list[evaluate.Record]:
  """Evaluates with a progress bar, and keeps the depths that were asked for."""
  if not experiment.model.is_recursive:
    depths = [1]
  mesh = sharding.inference_mesh(experiment.mesh.model)
  batch, ways = experiment.eval.batch_size, mesh.size
  with Progress(transient=True) as progress:
    bar = progress.add_task("evaluating", total=len(split.rows[0]))
    records = evaluate.evaluate(
      params,
      split,
      experiment.model,
      experiment.task,
      depth=max(depths),
      batch_size=-(-batch // ways) * ways,  # so that devices can share it
      mesh=mesh,
      ballots=ballots,
      training_flops=Recipe.of(experiment).training_flops(step),
      on_batch=lambda done, _: progress.update(bar, completed=done),
    )
  return [record for record in records if record["depth"] in depths]


# A record's number -> the heading of its column.
_COLUMNS = {
  "pass@1": "pass@1",
  "pass@2": "pass@2",
  "pass@10": "pass@10",
  "exact_accuracy": "exact",
  "valid_rate": "valid",
  "cell_accuracy": "cells",
  "q_accuracy": "q right",
  "halted_exact_accuracy": "exact if halting",
}


def print_depths(
  records: Sequence[evaluate.Record], title: str, kind: str = "held-out"
):
  """Prints accuracy against depth as a table.

  Args:
    records: evaluations at several depths.
    title: what was evaluated.
    kind: what kind of puzzles.
  """
  columns = {k: v for k, v in _COLUMNS.items() if k in records[0]}
  heads = ("depth", *columns.values(), "mean steps", "FLOPs/puzzle")
  rows = [
    (
      str(record["depth"]),
      *(_share(record, name) for name in columns),
      f"{record['mean_steps']:.2f}" if "mean_steps" in record else "",
      f"{record['flops_per_puzzle']:.2e}",
    )
    for record in records
  ]
  print_table(heads, rows, title)
  copies = ", copies included" if "pass@1" in records[0] else ""
  print(
    f"{records[0]['puzzles']} {kind} puzzles{copies}; ± is one standard error"
  )


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], title=""):
  """Prints rows of text below their heads; all but the first to the right."""
  table = Table(*heads, title=title)
  for column in table.columns[1:]:
    column.justify = "right"
  for row in rows:
    table.add_row(*row)
  # A log has no width of its own; a "[" in text from outside is no markup.
  width = None if Console().is_terminal else 160
  Console(width=width, markup=False, emoji=False).print(table)


def _share(record: evaluate.Record, name: str) -> str:
  error = record.get(f"{name}_se")
  spread = f" ± {error:.1%}" if error is not None else ""
  return f"{record[name]:.1%}{spread}"


def plot_learning(folders: Sequence[RunFolder], picture: pathlib.Path):
  """Draws the learning curves of some runs into one picture."""
  runs = {}
  for folder in folders:
    folder.read_config()  # refuses what is not a run folder
    runs[str(folder.path)] = list(metrics.read(folder.metrics))
  plots.learning_curves(runs, picture)


def title(experiment: Experiment, step: int) -> str:
  """The heading of a picture."""
  side = math.isqrt(experiment.task.seq_len)
  weights = network.count_weights(network.shapes(experiment.model))
  return (
    f"{_family(experiment.model)}, {weights / 1e3:,.0f}k weights, on "
    f"{side}x{side} {experiment.task.name}, after {step:,} steps"
  )
