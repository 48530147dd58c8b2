"""Prints experiments, progress and scores."""

import contextlib
import math
import pathlib
from collections.abc import (
  Callable,
  Collection,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

from trm_jax.cli import progress
from trm_jax.config import Experiment
from trm_jax.core import flops, network
from trm_jax.core.model import ModelConfig, Params
from trm_jax.data.task import Split
from trm_jax.draw import console, curves
from trm_jax.run import metrics, sharding
from trm_jax.run.folder import RunFolder
from trm_jax.solve import evaluate, vote
from trm_jax.train.step import Recipe


def describe(
  experiment: Experiment, training: Split, held_out: Split | None
) -> str:
  """A summary of an experiment in two lines."""
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


def title(experiment: Experiment, step: int, puzzles: str = "") -> str:
  """The title of a picture of a run's model, perhaps of scores on `puzzles`."""
  side = math.isqrt(experiment.task.seq_len)
  weights = network.count_weights(network.shapes(experiment.model))
  return (
    f"{_family(experiment.model)}, {weights / 1e3:,.0f}k weights, on "
    f"{side}x{side} {experiment.task.name}, after {step:,} steps"
    + f"\n{puzzles}"
    * bool(puzzles)
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


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
  """Shows a progress bar; yields its update function `(done, total)`."""
  shown = progress.bar(what, console.make(stderr=True), transient=True)
  with shown:
    task = shown.add_task("", total=None, numbers=[])
    yield lambda done, total: shown.update(task, completed=done, total=total)


def evaluate_depths(
  experiment: Experiment,
  step: int,
  params: Params,
  split: Split,
  depths: Sequence[int],
  ballots: Mapping[int, vote.Ballot] | None = None,
) -> list[evaluate.Record]:
  """Evaluates with a progress bar; returns the records of `depths`."""
  if not experiment.model.is_recursive:
    depths = [1]
  mesh = sharding.inference_mesh(experiment.mesh.model)
  batch, devices = experiment.eval.batch_size, mesh.size
  with progress_bar("evaluating") as on_batch:
    records = evaluate.evaluate(
      params,
      split,
      experiment.model,
      experiment.task,
      depth=max(depths),
      batch_size=-(-batch // devices) * devices,
      mesh=mesh,
      ballots=ballots,
      training_flops=Recipe.of(experiment).training_flops(step),
      on_batch=on_batch,
    )
  return [record for record in records if record["depth"] in depths]


# Field of a record -> heading and format of its column.
_COLUMNS = {
  "halt": ("halting", ""),
  "depth": ("depth", ""),
  "breadth": ("breadth", ""),
  "select": ("chosen by", ""),
  "pass@1": ("pass@1", ".1%"),
  "pass@2": ("pass@2", ".1%"),
  "pass@10": ("pass@10", ".1%"),
  "exact_accuracy": ("exact", ".1%"),
  "oracle_accuracy": ("any right", ".1%"),
  "valid_rate": ("valid", ".1%"),
  "cell_accuracy": ("cells", ".1%"),
  "q_accuracy": ("q right", ".1%"),
  "halted_exact_accuracy": ("exact if halting", ".1%"),
  "mean_steps": ("mean steps", ".2f"),
  "flops_per_puzzle": ("FLOPs/puzzle", ".2e"),
  "puzzles_per_second": ("puzzles/s", ".1f"),
  "speedup": ("times as fast", ".1f"),
}
_KEYS = ("halt", "depth", "breadth", "select")  # what scores are of


def print_records(
  records: Sequence[Mapping[str, Any]],
  title: str,
  kind: str = "held-out puzzles",
  bold: Collection[int] = (),
):
  """Prints scores as a table with a row per record, and notes below.

  Columns of equal halting rules or of breadths that are all 1 are left out.
  `kind` says which puzzles the scores are of; `bold` are indices of rows.
  """
  first = records[0]
  hidden = set()
  if len({record.get("halt") for record in records}) == 1:
    hidden.add("halt")
  if all(record.get("breadth", 1) == 1 for record in records):
    hidden |= {"breadth", "select", "oracle_accuracy"}
  names = [name for name in _COLUMNS if name in first and name not in hidden]
  rows, bold_rows = [], []
  for number, record in enumerate(records):
    is_single = record.get("breadth") == 1  # all selection rules are equal
    if is_single and record["select"] != first["select"]:
      continue
    if number in bold:
      bold_rows.append(len(rows))
    rows.append([
      "" if name == "select" and is_single else _text(record, name)
      for name in names
    ])  # fmt: skip
  console.print_table(
    [_COLUMNS[name][0] for name in names], rows, title,
    keys=sum(name in _KEYS for name in names),
    texts=[i for i, name in enumerate(names) if name == "halt"],
    bold=bold_rows,
  )  # fmt: skip
  notes = []
  if "puzzles" in first:
    copies = ", copies included" if "pass@1" in first else ""
    notes.append(f"{first['puzzles']} {kind}{copies}")
  if "halt" in first and "halt" in hidden:
    notes.append(f"halting: {first['halt']}")
  if "breadth" in names:
    notes.append("mean steps are of a rollout")
  print("; ".join([*notes, "± is one standard error"]))


def _text(record: Mapping[str, Any], name: str) -> str:
  """A number, with its standard error if there is one."""
  error = record.get(f"{name}_se")
  spread = f" ± {error:.1%}" if error is not None else ""
  return format(record[name], _COLUMNS[name][1]) + spread


def plot_learning(folders: Sequence[RunFolder], picture: pathlib.Path):
  """Draws the learning curves of some runs into one picture.

  Seeds that were trained together are several runs.
  """
  runs: dict[str, list[metrics.Row]] = {}
  for folder in folders:
    folder.read_config()  # raises if this is not a run's folder
    for row in metrics.read(folder.metrics):
      kind, *seed = row["split"].split("/", 1)
      if kind != "all":
        name = "/".join([str(folder.path), *seed])
        runs.setdefault(name, []).append(row | {"split": kind})
  curves.learning_curves(runs, picture)
