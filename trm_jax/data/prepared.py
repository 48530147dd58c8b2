"""Datasets of rows, a question and its answer each: csv files and generators.

They are prepared once (see `records`), then staged in host memory. A dataset
is named after the settings and the bytes of its csv files: edit a file or
change the seed, and another is made beside it.

The settings are the `data` section of a config. Whatever the family of tasks,
they have `size`, `train`, `test`, `subsample`, `min_rating`, `seed`,
`skip_bad_rows` and `cache_dir`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from huggingface_hub.errors import HfHubHTTPError

from trm_jax.data import records
from trm_jax.data.csv_rows import Rows
from trm_jax.data.records import Say
from trm_jax.data.task import Split
from trm_jax.errors import UserError

_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Family:
  """What a task family knows of its datasets.

  Attributes:
    name: the family's name, as in "sudoku".
    version: change it with anything that changes the content for the same
      settings: the generator, the subsampling or the tokens.
    repository: the dataset of the Hugging Face hub behind the source "hub",
      with its files train.csv and test.csv.
    read: `(settings, path) -> Rows`, reads and checks a csv file.
    generate: `(settings, split, train, say) -> (inputs, labels, ratings)`,
      makes puzzles; those of the split "test" are like none of `train`, the
      Rows of the training split or None.
    generator_fields: the settings that `generate` alone reads.
    wait: what may take how long, said before a dataset is made.
    confirm: `(settings, Rows) -> (Rows, notes)`, checks that are too slow for
      a whole file, made on the rows chosen from it.
  """

  name: str
  version: int
  repository: str
  read: Callable[[Any, str], Rows]
  generate: Callable[
    [Any, str, Rows | None, Say], tuple[np.ndarray, np.ndarray, np.ndarray]
  ]
  generator_fields: tuple[str, ...]
  wait: str
  confirm: Callable[[Any, Any], tuple[Rows, list[str]]] | None = None


def prepare(family: Family, settings: Any, say: Say) -> list[str]:
  """Makes a dataset, if it is not there yet.

  Args:
    family: the task family.
    settings: what the dataset is made of.
    say: told in a sentence, before it starts, of work that may take a minute.

  Returns:
    Sentences that its users should read: how many rows of a file were left
    out and why, and what was not checked.

  Raises:
    UserError: the dataset cannot be prepared.
  """
  return records.notes(_prepare(family, settings, say))


def num_groups(family: Family, settings: Any, split: str) -> int:
  """Counts the puzzles of a split; the dataset is prepared if need be.

  Args:
    family: the task family.
    settings: what the dataset is made of.
    split: "train" or "test".

  Returns:
    The number of puzzles, each of which is a group.

  Raises:
    UserError: the dataset cannot be prepared, or has no such split.
  """
  _check_split(settings, split)
  return records.count(_prepare(family, settings, logging.info), split)


def load(
  family: Family,
  settings: Any,
  split: str,
  groups: np.ndarray | None = None,
) -> Split:
  """Stages a split in host memory; the dataset is prepared if need be.

  Args:
    family: the task family.
    settings: what the dataset is made of.
    split: "train" or "test".
    groups: integers [N], the puzzles to stage; None stages all of them.

  Returns:
    The split, with tokens uint8 [N, L].

  Raises:
    UserError: the dataset cannot be prepared, or has no such split.
  """
  _check_split(settings, split)
  builder = _prepare(family, settings, logging.info)
  count = records.count(builder, split) if groups is None else len(groups)
  shape = (count, settings.size * settings.size)
  inputs, labels = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
  for row, record in enumerate(records.read(builder, split, groups)):
    inputs[row] = _grid(record["inputs"])
    labels[row] = _grid(record["labels"])
  return Split.of_rows(inputs, labels)


def _grid(feature) -> np.ndarray:
  return np.frombuffer(feature.bytes_list.value[0], np.uint8)


def _check_split(settings: Any, split: str):
  given = [name for name in _SPLITS if getattr(settings, name)]
  if split not in given:
    raise UserError(
      f"split: {split!r}, but the dataset has only {given}; set the option "
      f"{split!r} to a csv path, 'generate' or 'hub'."
    )


def _prepare(family: Family, settings: Any, say: Say) -> records.Records:
  """Returns the prepared dataset, making it if it is not there yet."""
  files = _files(family, settings)
  grid = tfds.features.Tensor(
    shape=(settings.size * settings.size,),
    dtype=np.uint8,
    encoding=tfds.features.Encoding.BYTES,
  )
  config = records.RecordsConfig(
    name=_content_name(family, settings, files),
    description=f"{family.name} {settings.size}x{settings.size}",
    features={
      "inputs": grid,
      "labels": grid,
      "rating": np.int32,
      "source": tfds.features.Text(),
    },
    make=lambda: _make(family, settings, files, say),
  )
  announcement = _what_is_prepared(family, files)
  return records.prepare(config, settings.cache_dir, say, announcement)


def _what_is_prepared(family: Family, files: dict[str, str]) -> str:
  sources = [
    f"{split} generated" if source == "generate" else f"{split} from {source}"
    for split, source in files.items()
  ]
  return f"preparing the puzzles, once ({', '.join(sources)}); {family.wait}"


def _make(
  family: Family, settings: Any, files: dict[str, str], say: Say
) -> tuple[records.Splits, list[str]]:
  """Reads or generates the records of each split, with notes on them."""
  splits = {}
  notes = []
  for split, source in files.items():  # train comes first
    if source == "generate":
      train = splits.get("train")
      splits[split] = _generated(family, settings, split, train, say)
    else:
      splits[split], more = _selected(family, settings, split, source)
      notes += more
  return {split: _records(rows) for split, rows in splits.items()}, notes


def _records(rows: Rows) -> Iterator[dict]:
  for row in range(len(rows)):
    yield {
      "inputs": rows.inputs[row],
      "labels": rows.labels[row],
      "rating": rows.ratings[row],
      "source": rows.sources[row],
    }


def _generated(
  family: Family, settings: Any, split: str, train: Rows | None, say: Say
) -> Rows:
  inputs, labels, ratings = family.generate(settings, split, train, say)
  count = len(inputs)
  return Rows(
    path="generate",
    inputs=inputs,
    labels=labels,
    ratings=ratings,
    sources=np.full(count, "generated", object),
    lines=np.arange(count),
  )


def _selected(
  family: Family, settings: Any, split: str, path: str
) -> tuple[Rows, list[str]]:
  """Reads a csv file and chooses the rows of a split; adds notes on them."""
  rows = family.read(settings, path)
  count = len(rows) + len(rows.skipped)
  hardest = rows.ratings.max()
  rows = rows.take(rows.ratings >= settings.min_rating)
  if not len(rows):
    raise UserError(
      f"min_rating: {settings.min_rating}, but no row of {path} is rated above "
      f"{hardest}; lower it."
    )
  if split == "train" and settings.subsample:
    if settings.subsample > len(rows):
      raise UserError(
        f"subsample: {settings.subsample}, but {path} has {len(rows)} rows "
        f"rated {settings.min_rating} or more; ask for fewer, or 0 for all."
      )
    rng = np.random.default_rng(settings.seed)
    chosen = rng.choice(len(rows), settings.subsample, replace=False)
    rows = rows.take(np.sort(chosen))
  notes = []
  if family.confirm:
    rows, notes = family.confirm(settings, rows)
  if rows.skipped:
    notes.append(
      f"{path}: {len(rows.skipped):,} bad rows of {count:,} were left out. "
      f"The first: {' | '.join(rows.skipped[:3])}"
    )
  for note in notes:
    logging.warning("%s", note)
  return rows, notes


def _files(family: Family, settings: Any) -> dict[str, str]:
  """Finds the file of each split that has a source, or "generate"."""
  files = {}
  for split in _SPLITS:
    source = getattr(settings, split)
    if source == "hub":
      files[split] = _download(family.repository, f"{split}.csv", split)
    elif source == "generate":
      files[split] = source
    elif source:
      files[split] = os.path.expanduser(source)
  return files


def _download(repository: str, filename: str, option: str) -> str:
  try:
    return huggingface_hub.hf_hub_download(
      repository, filename, repo_type="dataset"
    )
  except (OSError, HfHubHTTPError) as error:
    raise UserError(
      f"{option}: 'hub', but {filename} of the dataset {repository} could not "
      f"be downloaded from huggingface.co ({type(error).__name__}). Where "
      f"there is a network, download {filename} from https://huggingface.co/"
      f"datasets/{repository} and set {option} to its path; or set {option} "
      f"to 'generate'."
    ) from error


def _content_name(family: Family, settings: Any, files: dict[str, str]) -> str:
  """Names the dataset after all that decides its content."""
  content = dataclasses.asdict(settings)
  unread = ["cache_dir", "path"]
  if "generate" not in files.values():
    unread += family.generator_fields
  for name in unread:
    del content[name]
  for split in _SPLITS:
    source = files.get(split, "")
    content[split] = (
      source
      if source in ("", "generate")
      else records.digest(source, "a csv file of puzzles, 'generate' or 'hub'")
    )
  content["version"] = family.version
  text = json.dumps(content, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  return f"{family.name}-{settings.size}x{settings.size}-{digest}"
