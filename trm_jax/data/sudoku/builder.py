"""Sudoku datasets: prepared once by TFDS, then staged in host memory.

A dataset is named after its content: the settings and the bytes of its csv
files. Ask for the same again and the prepared one is reused; edit a file or
change the seed and another is made beside it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import cast

import huggingface_hub
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from huggingface_hub.errors import HfHubHTTPError
from tensorflow_datasets.proto import tf_example_pb2

from trm_jax.data.sudoku.generate import generate
from trm_jax.data.sudoku.rows import (
  UNIQUE_ROWS,
  Rows,
  drop_ambiguous,
  read_csv,
)
from trm_jax.data.sudoku.settings import SudokuData
from trm_jax.data.task import Split
from trm_jax.errors import UserError

__all__ = ["Sudoku", "SudokuData", "load", "num_rows", "prepare", "read_csv"]

HUB_REPOSITORY = "sapientinc/sudoku-extreme"

# Generated code, whose classes a type checker cannot see.
_EXAMPLE = getattr(tf_example_pb2, "Example")  # noqa: B009

# Records decoded at a time while staging.
_CHUNK = 8192


def prepare(
  settings: SudokuData, say: Callable[[str], None] = logging.info
) -> list[str]:
  """Makes the dataset, if it is not there yet.

  Args:
    settings: what the dataset is made of.
    say: told in a sentence, before it starts, of work that may take a minute.

  Returns:
    Sentences that its users should read: how many rows of a file were left
    out and why, and what was not checked.

  Raises:
    UserError: the dataset cannot be prepared.
  """
  metadata = _prepare(settings, say).info.metadata
  return list((metadata or {}).get("notes", []))


def load(
  settings: SudokuData, split: str, rows: np.ndarray | None = None
) -> Split:
  """Stages a split in host memory; the dataset is prepared if need be.

  Args:
    settings: what the dataset is made of.
    split: "train" or "test".
    rows: integers [N], the rows to stage; None stages all of them.

  Returns:
    The split, with tokens uint8 [N, L].

  Raises:
    UserError: the dataset cannot be prepared, or has no such split.
  """
  builder = _prepare(settings)
  _check_split(builder, split)
  # Parsing the records here is five times as fast as the decoder of TFDS.
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  as_data_source = cast(Callable, builder.as_data_source)
  records = as_data_source(split, deserialize_method=raw)
  if rows is None:
    rows = np.arange(len(records))
  shape = (len(rows), settings.size * settings.size)
  inputs, labels = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
  for begin in range(0, len(rows), _CHUNK):
    chunk = np.asarray(rows[begin : begin + _CHUNK]).tolist()
    for row, record in enumerate(records.__getitems__(chunk), begin):
      feature = _EXAMPLE.FromString(record).features.feature
      inputs[row] = _grid(feature["inputs"])
      labels[row] = _grid(feature["labels"])
  return Split(inputs, labels, np.zeros(len(rows), np.int32))


def _grid(feature) -> np.ndarray:
  return np.frombuffer(feature.bytes_list.value[0], np.uint8)


def num_rows(settings: SudokuData, split: str) -> int:
  """Counts the rows of a split; the dataset is prepared if need be.

  Args:
    settings: what the dataset is made of.
    split: "train" or "test".

  Returns:
    The number of rows.

  Raises:
    UserError: the dataset cannot be prepared, or has no such split.
  """
  builder = _prepare(settings)
  _check_split(builder, split)
  return builder.info.splits[split].num_examples


def _check_split(builder, split):
  if split not in builder.info.splits:
    raise UserError(
      f"split: {split!r}, but the dataset has only "
      f"{sorted(builder.info.splits)}; set the option {split!r} to a csv path, "
      f"'generate' or 'hub'."
    )


@dataclasses.dataclass(eq=False)
class SudokuConfig(tfds.core.BuilderConfig):
  """The settings, and the file (or "generate") behind each split."""

  settings: SudokuData = dataclasses.field(default_factory=SudokuData)
  files: dict[str, str] = dataclasses.field(default_factory=dict)


class Sudoku(tfds.core.GeneratorBasedBuilder):
  """Sudoku puzzles with their answers, as tokens.

  Change `VERSION` with anything that changes the content for the same
  settings: the generator, the subsampling or the tokens.
  """

  VERSION = tfds.core.Version("1.0.0")

  # TFDS looks beside this path for the checksums of downloads. It makes none
  # here, and finding the path would need a package that it does not install.
  code_path = None

  @property
  def config(self) -> SudokuConfig:
    """What this dataset is made of."""
    return cast(SudokuConfig, self.builder_config)

  def _info(self):
    length = self.config.settings.size**2
    grid = tfds.features.Tensor(
      shape=(length,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "inputs": grid,
          "labels": grid,
          "rating": np.int32,
          "source": tfds.features.Text(),
        }
      ),
      supervised_keys=("inputs", "labels"),
      # Batches are shuffled by the reader, so rows may keep their order.
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),  # "notes", for `prepare`
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the files are at hand
    settings, files = self.config.settings, self.config.files
    splits = {}
    notes = []
    for split in files:  # train comes first
      if files[split] == "generate":
        splits[split] = _generated(settings, split, splits.get("train"))
      else:
        splits[split], more = _selected(settings, split, files[split])
        notes += more
    cast(dict, self.info.metadata)["notes"] = notes
    return {
      split: self._generate_examples(rows) for split, rows in splits.items()
    }

  def _generate_examples(self, rows):
    for key in range(len(rows)):
      yield (
        key,
        {
          "inputs": rows.inputs[key],
          "labels": rows.labels[key],
          "rating": rows.ratings[key],
          "source": rows.sources[key],
        },
      )


def _generated(settings: SudokuData, split: str, train: Rows | None) -> Rows:
  """Generates a split. Test puzzles avoid the solution grids of training."""
  is_test = split == "test"
  avoid = {label.tobytes() for label in train.labels} if train else set()
  count = settings.num_test if is_test else settings.num_train
  inputs, labels, ratings = generate(
    settings.size,
    count,
    settings.seed,
    settings.givens,
    settings.rating,
    held_out=is_test,
    avoid=avoid,
  )
  return Rows(
    path="generate",
    size=settings.size,
    inputs=inputs,
    labels=labels,
    ratings=ratings,
    sources=np.full(count, "generated", object),
    lines=np.arange(count),
    unique=True,
  )


def _selected(
  settings: SudokuData, split: str, path: str
) -> tuple[Rows, list[str]]:
  """Reads a csv file and chooses the rows of a split; adds notes on them."""
  rows = read_csv(path, settings.size, settings.skip_bad_rows)
  count = len(rows) + len(rows.skipped)
  notes = []
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
  if not rows.unique:
    if len(rows) <= UNIQUE_ROWS:
      rows = drop_ambiguous(rows, settings.skip_bad_rows)
    else:
      notes.append(
        f"{path}: {len(rows):,} rows are too many to look for second "
        f"solutions; their answers are legal and keep the givens."
      )
  if rows.skipped:
    notes.append(
      f"{path}: {len(rows.skipped):,} bad rows of {count:,} were left out. "
      f"The first: {' | '.join(rows.skipped[:3])}"
    )
  for note in notes:
    logging.warning("%s", note)
  return rows, notes


def _prepare(
  settings: SudokuData, say: Callable[[str], None] = logging.info
) -> Sudoku:
  """Returns the prepared dataset, making it if it is not there yet."""
  files = _files(settings)
  config = SudokuConfig(
    name=_content_name(settings, files),
    description=f"Sudoku {settings.size}x{settings.size}",
    settings=settings,
    files=files,
  )
  folder = os.path.expanduser(settings.cache_dir) or None
  try:
    builder = _builder(config, folder)
    if not builder.data_path.exists():
      say(_what_is_prepared(files))
      tfds.disable_progress_bar()
      try:
        # TFDS writes to a folder of its own and renames it when complete, so
        # an interrupted or a simultaneous preparation leaves nothing halfway.
        with contextlib.redirect_stdout(None):  # "Downloading" nothing
          builder.download_and_prepare(file_format="array_record")
      except OSError:
        if not builder.data_path.exists():
          raise  # else another process was first, with the same content
      builder = _builder(config, folder)
  except (OSError, RuntimeError) as error:  # the latter: array_record's own
    raise UserError(
      f"cache_dir: the dataset cannot be kept in "
      f"{settings.cache_dir or 'the default folder of TFDS'} ({error}); set "
      f"cache_dir to a folder with free space that you may write to."
    ) from error
  return builder


def _what_is_prepared(files: dict[str, str]) -> str:
  sources = [
    f"{split} generated" if source == "generate" else f"{split} from {source}"
    for split, source in files.items()
  ]
  return (
    f"preparing the puzzles, once ({', '.join(sources)}); to check that each "
    f"has one solution can take a minute"
  )


def _builder(config: SudokuConfig, folder: str | None) -> Sudoku:
  # TFDS warns of every configuration that its catalogue does not list.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return Sudoku(config=config, data_dir=folder)
  finally:
    logging.set_verbosity(verbosity)


def _files(settings: SudokuData) -> dict[str, str]:
  """Finds the file of each split that has a source, or "generate"."""
  files = {}
  for split in ("train", "test"):
    source = getattr(settings, split)
    if source == "hub":
      files[split] = _download(f"{split}.csv", split)
    elif source == "generate":
      files[split] = source
    elif source:
      files[split] = os.path.expanduser(source)
  return files


def _download(filename: str, option: str) -> str:
  try:
    return huggingface_hub.hf_hub_download(
      HUB_REPOSITORY, filename, repo_type="dataset"
    )
  except (OSError, HfHubHTTPError) as error:
    raise UserError(
      f"{option}: 'hub', but {filename} of the dataset {HUB_REPOSITORY} could "
      f"not be downloaded from huggingface.co ({type(error).__name__}). Where "
      f"there is a network, download {filename} from https://huggingface.co/"
      f"datasets/{HUB_REPOSITORY} and set {option} to its path; or set "
      f"{option} to 'generate'."
    ) from error


def _content_name(settings: SudokuData, files: dict[str, str]) -> str:
  """Names the dataset after all that decides its content."""
  content = dataclasses.asdict(settings)
  unread = ["cache_dir"]
  if "generate" not in files.values():
    unread += ["num_train", "num_test", "givens", "rating"]
  for name in unread:
    del content[name]
  for split in ("train", "test"):
    source = files.get(split, "")
    content[split] = source if source in ("", "generate") else _digest(source)
  text = json.dumps(content, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  return f"{settings.size}x{settings.size}-{digest}"


def _digest(path: str) -> str:
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); expected a csv file of "
      f"puzzles, 'generate' or 'hub'. Check the path."
    ) from error
