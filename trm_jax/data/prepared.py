"""Datasets of rows (a question and its answer): files and generators.

They are prepared once (see `records`), then loaded into host memory. A dataset
is named after a digest of its settings and files, so edited files or
changed settings give another dataset.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from huggingface_hub.errors import HfHubHTTPError

from trm_jax.data import checks, csv_rows, duplicates, records
from trm_jax.data.csv_rows import CsvFormat, Rows
from trm_jax.data.records import Say
from trm_jax.data.task import Dataset, Split
from trm_jax.errors import UserError

_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class PuzzleData:
  """Settings of a dataset of square boards.

  Attributes:
    size: cells along one side of the board.
    train: "hub" (a dataset of the Hugging Face hub), "generate", the path of a
      file of puzzles, or "" for no such split.
    test: the same, for the test split.
    subsample: training rows to keep, chosen by the seed; 0 keeps all.
    min_rating: rows of files with a lower rating are left out of both splits.
    seed: the seed of the subsample and of the generator.
    num_train: training puzzles to generate.
    num_test: test puzzles to generate.
    skip_bad_rows: whether bad rows of a file are left out with a warning;
      otherwise they are an error.
    cache_dir: where prepared datasets are kept; "" is the default of TFDS
      (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
    path: a folder in the reference's layout, used instead of all the above but
      `size`.
    hub_size: the size of the boards of the hub.
  """

  size: int = 0
  train: str = "hub"
  test: str = "hub"
  subsample: int = 0
  min_rating: int = 0
  seed: int = 0
  num_train: int = 1000
  num_test: int = 1000
  skip_bad_rows: bool = False
  cache_dir: str = ""
  path: str = ""
  hub_size: ClassVar[int] = 0

  def __post_init__(self):
    checks.convert_fields(self)
    self.check_size()
    checks.require_whole(self, "subsample", "min_rating", "seed", least=0)
    checks.require_whole(self, "num_train", "num_test")
    if self.path:
      return
    if not self.train and not self.test:
      raise UserError(
        "train, test: both are empty; give at least one of them a csv path, "
        "'generate' or 'hub'"
      )
    if "hub" in (self.train, self.test) and self.size != self.hub_size:
      size = f"{self.hub_size}x{self.hub_size}"
      raise UserError(
        f"size={self.size}: the puzzles of the hub are {size}; use "
        f"size={self.hub_size}, or set train and test to 'generate' or to csv "
        "paths"
      )

  def check_size(self) -> None:
    """Raises a `UserError` unless there are boards of this size."""
    checks.require_whole(self, "size")

  @classmethod
  def few(
    cls, *, size: int, split: str, count: int, seed: int, cache_dir: str,
    **settings: Any,
  ):  # fmt: skip
    """Settings of a few generated puzzles of one split."""
    settings |= {"train": "", "test": "", split: "generate"}
    settings |= {f"num_{split}": count, "seed": seed, "cache_dir": cache_dir}
    return cls(size=size, **settings)


@dataclasses.dataclass(frozen=True)
class SlowCheck:
  """A check that is too slow for all rows of a large file.

  Small files are checked completely; of large ones only the selected rows.

  Attributes:
    is_bad: `Rows -> bool [N]`.
    fault: the message for bad rows.
    most_rows: the most rows that are checked; for more there is a note.
    unchecked: the predicate of that note.
  """

  is_bad: Callable[[Rows], np.ndarray]
  fault: str
  most_rows: int
  unchecked: str


@dataclasses.dataclass(frozen=True)
class PuzzleSource:
  """How the datasets of a task with square boards are made.

  Attributes:
    name: the task's name.
    version: increase after any change of the content for the same settings: of
      the generator, the subsampling or the tokens.
    repository: the dataset of the Hugging Face hub for "hub", with files
      train.csv and test.csv.
    hub_rows: rows of its train.csv.
    csv_format: `size -> CsvFormat`, of files.
    generate: `(settings, split, train, say) -> (inputs, labels, ratings)`.
      `train` are the Rows of the training split or None; puzzles of the split
      "test" must differ from them.
    generator_fields: the settings that only `generate` reads.
    wait: a sentence on how long making the dataset may take.
    slow_check: a further check of the rows of files.
  """

  name: str
  version: int
  repository: str
  hub_rows: int
  csv_format: Callable[[int], CsvFormat]
  generate: Callable[
    [Any, str, Rows | None, Say], tuple[np.ndarray, np.ndarray, np.ndarray]
  ]
  generator_fields: tuple[str, ...]
  wait: str
  slow_check: SlowCheck | None = None

  @property
  def dataset(self) -> Dataset:
    """The functions of a `Task`."""
    return Dataset(
      load=self.load,
      num_groups=self.num_groups,
      prepare=self.prepare,
      expected_size=self.expected_size,
      read_rows=self.read_rows,
    )

  def prepare(self, settings: PuzzleData, say: Say = logging.info) -> list[str]:
    """Makes a dataset if it does not exist; see `task.Dataset`."""
    return records.notes(self._builder(settings, say))

  def num_groups(self, settings: PuzzleData, split: str) -> int:
    """Counts the puzzles of a split."""
    self._check_split(settings, split)
    return records.count(self._builder(settings), split)

  def load(
    self, settings: PuzzleData, split: str, groups: np.ndarray | None = None
  ) -> Split:
    """Loads a split into host memory, preparing the dataset if needed."""
    self._check_split(settings, split)
    builder = self._builder(settings)
    count = records.count(builder, split) if groups is None else len(groups)
    tokens = np.empty((2, count, settings.size**2), np.uint8)
    for row, record in enumerate(records.read(builder, split, groups)):
      for role, name in enumerate(("inputs", "labels")):
        grid = record[name].bytes_list.value[0]
        tokens[role, row] = np.frombuffer(grid, np.uint8)
    return Split.of_rows(*tokens)

  def expected_size(self, settings: PuzzleData) -> tuple[int, int, int]:
    """Rows, copies and puzzle ids, estimated from the settings."""
    known = {"generate": settings.num_train, "hub": self.hub_rows}
    rows = known.get(settings.train, 1024)
    return min(rows, settings.subsample or rows), 1, 1

  def read_rows(self, settings: PuzzleData, path: str) -> Rows:
    """Reads and checks a file of puzzles."""
    form = self.csv_format(settings.size)
    return csv_rows.read(path, form, settings.skip_bad_rows)

  def _check_split(self, settings: PuzzleData, split: str):
    given = [name for name in _SPLITS if getattr(settings, name)]
    if split not in given:
      raise UserError(
        f"split: {split!r}, but the dataset has only {given}; set the option "
        f"{split!r} to a csv path, 'generate' or 'hub'."
      )

  def _builder(
    self, settings: PuzzleData, say: Say = logging.info
  ) -> records.Records:
    """The dataset, made if it does not exist."""
    files = self._files(settings)
    grid = records.bytes_feature(settings.size**2)
    config = records.RecordsConfig(
      name=self._content_name(settings, files),
      description=f"{self.name} {settings.size}x{settings.size}",
      features={
        "inputs": grid,
        "labels": grid,
        "rating": np.int32,
        "source": tfds.features.Text(),
      },
      make=lambda: self._make(settings, files, say),
    )
    sources = ", ".join(
      f"{split} generated" if source == "generate" else f"{split} from {source}"
      for split, source in files.items()
    )
    announcement = f"preparing the puzzles, once ({sources}); {self.wait}"
    return records.prepare(config, settings.cache_dir, say, announcement)

  def _make(
    self, settings: Any, files: dict[str, str], say: Say
  ) -> tuple[records.Splits, list[str]]:
    """Reads or generates the records of each split, with notes on them."""
    splits: dict[str, Rows] = {}
    notes = []
    for split, source in files.items():  # train first
      if source == "generate":
        made = self.generate(settings, split, splits.get("train"), say)
        splits[split] = Rows(
          "generate",
          *made,
          sources=np.full(len(made[0]), "generated", object),
          lines=np.arange(len(made[0])),
        )
      else:
        splits[split], split_notes = self._selected(settings, split, source)
        notes += split_notes
    questions = {split: rows.inputs for split, rows in splits.items()}
    notes += duplicates.notes(questions, settings.task)
    return {split: _records(rows) for split, rows in splits.items()}, notes

  def _selected(
    self, settings: PuzzleData, split: str, path: str
  ) -> tuple[Rows, list[str]]:
    """Reads a file and selects the rows of a split, with notes on them."""
    skip, slow = settings.skip_bad_rows, self.slow_check
    rows = self.read_rows(settings, path)
    count = len(rows) + rows.bad
    if slow and len(rows) <= slow.most_rows:
      rows = csv_rows.drop(rows, slow.is_bad(rows), slow.fault, skip)
      slow = None
    hardest = rows.ratings.max()
    rows = rows.take(rows.ratings >= settings.min_rating)
    if not len(rows):
      raise UserError(
        f"min_rating: {settings.min_rating}, but no row of {path} is rated "
        f"above {hardest}; lower it."
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
    if slow and len(rows) <= slow.most_rows:
      rows = csv_rows.drop(rows, slow.is_bad(rows), slow.fault, skip)
    elif slow:
      notes.append(f"{path}: {len(rows):,} rows {slow.unchecked}.")
    if rows.searched:
      notes.append(
        f"{path}: {rows.searched:,} puzzles without an answer were solved by "
        "search."
      )
    if rows.bad:
      notes.append(
        f"{path}: {rows.bad:,} bad rows of {count:,} were left out. "
        f"The first: {' | '.join(rows.skipped[:3])}"
      )
    return rows, notes

  def _files(self, settings: PuzzleData) -> dict[str, str]:
    """The file of each split that has a source, or "generate"."""
    files = {}
    for split in _SPLITS:
      source = getattr(settings, split)
      if source == "hub":
        files[split] = _download(self.repository, f"{split}.csv", split)
      elif source:
        files[split] = os.path.expanduser(source)
    return files

  def _content_name(self, settings: PuzzleData, files: dict[str, str]) -> str:
    """A name with a digest of everything that decides the content."""
    content = dataclasses.asdict(settings)
    ignored = ["cache_dir", "path"]
    if "generate" not in files.values():
      ignored += self.generator_fields
    for name in ignored:
      del content[name]
    wanted = "a file of puzzles, 'generate' or 'hub'"
    for split in _SPLITS:
      source = files.get(split, "")
      if source not in ("", "generate"):
        source = records.digest(source, wanted)
      content[split] = source
    content["version"] = self.version
    digest = records.content_digest(content)
    return f"{self.name}-{settings.size}x{settings.size}-{digest}"


def _records(rows: Rows) -> Iterator[dict]:
  columns = (rows.inputs, rows.labels, rows.ratings, rows.sources)
  names = ("inputs", "labels", "rating", "source")
  for row in zip(*columns, strict=True):
    yield dict(zip(names, row, strict=True))


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
