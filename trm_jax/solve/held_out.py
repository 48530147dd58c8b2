"""Loads the puzzles of an experiment or a run, and a run's weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core.model import Params
from trm_jax.data import datasets
from trm_jax.data.task import Settings, Split
from trm_jax.errors import UserError
from trm_jax.run import pretrained
from trm_jax.run.folder import RunFolder

Say = Callable[[str], None]


def prepare(
  config: dict[str, Any], experiment: Experiment, say: Say = lambda _: None
) -> tuple[Experiment, list[str]]:
  """Prepares the data, and sets the size of the puzzle table.

  The size is written into `config`, the plain values of `experiment`. Messages
  go to `say`. Returns the experiment, and the name of each puzzle id.
  """
  _prepare(experiment.data, say)
  names = datasets.identifiers(experiment.data)
  experiment = experiment.with_puzzle_ids(len(names))
  if len(names) > 1:
    rows = experiment.model.num_puzzle_ids
    config.setdefault("model", {})["num_puzzle_ids"] = rows
  return experiment, names


def choose_data(data: Settings, source: str, skip_bad_rows: bool) -> Settings:
  """The data of a run with another test source, if `source` is not empty."""
  if source:
    data = datasets.tested_on(data, source)
  if skip_bad_rows:
    if not hasattr(data, "skip_bad_rows"):
      raise UserError("--skip_bad_rows: ARC files have no rows; leave it out")
    data = dataclasses.replace(data, skip_bad_rows=True)
  return data


def choose_groups(num_groups: int, count: int, seed: int) -> np.ndarray:
  """`count` random groups of a split, ascending; all if `count` is 0."""
  if not 0 < count < num_groups:
    return np.arange(num_groups)
  chosen = np.random.default_rng(seed).choice(num_groups, count, replace=False)
  return np.sort(chosen)


def load_splits(experiment: Experiment) -> tuple[Split, Split | None]:
  """Training puzzles, and test puzzles for evaluation if there are any."""
  training = datasets.load(experiment.data, "train")
  if not datasets.has_split(experiment.data, "test"):
    return training, None
  return training, load_test(experiment, experiment.eval.puzzles)


def load_test(
  experiment: Experiment, puzzles: int, copies: int = -1, split: str = "test"
) -> Split:
  """Random `puzzles` (in ARC: tasks; 0 for all), drawn with the config's seed.

  Each has `copies` copies: 0 for all, -1 as in the config. The data must be
  prepared.
  """
  groups = choose_groups(
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
  say: Say = lambda _: None,
) -> tuple[Experiment, Split]:
  """The experiment of a run, and puzzles to test it on with its puzzle ids.

  `source` replaces the run's own data; `puzzles` (None as in the config) and
  `copies` are as in `load_test`; `unseen` is the treatment of puzzles without
  an embedding, see `datasets.match_ids`.
  """
  experiment = config_lib.read(folder.read_config())
  data = choose_data(experiment.data, source, skip_bad_rows)
  experiment = dataclasses.replace(experiment, data=data)
  _prepare(data, say)
  if puzzles is None:
    puzzles = experiment.eval.puzzles
  chosen = load_test(experiment, puzzles, copies, split)
  names = datasets.identifiers(data)
  known = folder.read_identifiers()
  return experiment, datasets.match_ids(chosen, names, known, unseen)


def restore(
  folder: RunFolder, experiment: Experiment, which: str, unseen: str = "error"
) -> tuple[int, Params]:
  """The step and the averaged weights of a checkpoint.

  With `unseen` "mean", row 0 of the puzzle table is the mean of all.
  """
  step, params = pretrained.restore_params(experiment, folder, which)
  if unseen == "mean":
    params = with_mean_embedding(params, len(folder.read_identifiers()))
  return step, params


def with_mean_embedding(params: Params, known: int) -> Params:
  """Sets row 0 of the puzzle table to the mean of rows 1 to `known` - 1."""
  table = params.puzzle_table
  if known > 1:
    table = table.at[0].set(jnp.mean(table[1:known], axis=0))
  return params.replace(puzzle_table=table)


def _prepare(data: Settings, say: Say):
  for note in datasets.prepare(data, say):
    say(f"note: {note}")
