"""Datasets on disk: records that TFDS writes once and that are then reused.

A dataset is named after its content, so that whoever asks for the same again
finds it there, and whoever asks for another gets it made beside it.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.proto import tf_example_pb2

from trm_jax.errors import UserError

Say = Callable[[str], None]

# The records of each split; a record is what TFDS takes as an example.
Splits = Mapping[str, Iterable[dict]]

# Generated code, whose classes a type checker cannot see.
_EXAMPLE = getattr(tf_example_pb2, "Example")  # noqa: B009

# Records read at a time.
_CHUNK = 8192


@dataclasses.dataclass(eq=False)
class RecordsConfig(tfds.core.BuilderConfig):
  """One dataset. Its name must change with its content.

  Attributes:
    features: the TFDS feature of each part of a record.
    make: `() -> (splits, notes)`, called if it is not there yet.
  """

  features: dict[str, Any] = dataclasses.field(default_factory=dict)
  make: Callable[[], tuple[Splits, list[str]]] = lambda: ({}, [])


class _RecordsInfo(tfds.core.DatasetInfo):
  """What is known of a dataset, none of which is on the servers of TFDS."""

  def initialize_from_bucket(self):
    """Does nothing; that of TFDS would leave an empty temporary folder."""


class Records(tfds.core.GeneratorBasedBuilder):
  """Records of arrays, in the order in which they were made."""

  VERSION = tfds.core.Version("1.0.0")

  # TFDS looks beside this path for the checksums of downloads. It makes none
  # here, and finding the path would need a package that it does not install.
  code_path = None

  @property
  def config(self) -> RecordsConfig:
    """What this dataset is made of."""
    return cast(RecordsConfig, self.builder_config)

  def _info(self):
    return _RecordsInfo(
      builder=self,
      features=tfds.features.FeaturesDict(self.config.features),
      # Batches are shuffled by the reader, so records may keep their order.
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),  # "notes", for `notes`
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the files are at hand
    splits, found = self.config.make()
    cast(dict, self.info.metadata)["notes"] = found
    return {
      split: self._generate_examples(records)
      for split, records in splits.items()
    }

  def _generate_examples(self, records):
    yield from enumerate(records)


def prepare(
  config: RecordsConfig, cache_dir: str, say: Say, announcement: str
) -> Records:
  """Returns a dataset, making it if it is not there yet.

  Args:
    config: the dataset.
    cache_dir: where datasets are kept; "" is the default of TFDS.
    say: called with the announcement before the dataset is made.
    announcement: a sentence on what may take how long.

  Raises:
    UserError: it cannot be made, or not kept in this folder.
  """
  folder = os.path.expanduser(cache_dir) or None
  try:
    builder = _builder(config, folder)
    if not builder.data_path.exists():
      say(announcement)
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
      f"{cache_dir or 'the default folder of TFDS'} ({error}); set cache_dir "
      f"to a folder with free space that you may write to."
    ) from error
  return builder


def _builder(config: RecordsConfig, folder: str | None) -> Records:
  # TFDS warns of every configuration that its catalogue does not list.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return Records(config=config, data_dir=folder)
  finally:
    logging.set_verbosity(verbosity)


def notes(builder: Records) -> list[str]:
  """What users of the dataset should read."""
  return list((builder.info.metadata or {}).get("notes", []))


def count(builder: Records, split: str) -> int:
  """Counts the records of a split, "train" or "test".

  Raises:
    UserError: the dataset has no such split.
  """
  if split not in builder.info.splits:
    raise UserError(
      f"split: {split!r}, but the dataset has only "
      f"{sorted(builder.info.splits)}; set the option {split!r} to a source of "
      f"puzzles."
    )
  return builder.info.splits[split].num_examples


def read(
  builder: Records, split: str, rows: np.ndarray | None = None
) -> Iterator[Any]:
  """Reads the records of a split, or those of some rows.

  Yields:
    The features of each record, by name, as they are in a `tf.train.Example`.

  Raises:
    UserError: the dataset has no such split.
  """
  total = count(builder, split)
  rows = np.arange(total) if rows is None else rows
  # Parsing the records here is five times as fast as the decoder of TFDS.
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  as_data_source = cast(Callable, builder.as_data_source)
  records = as_data_source(split, deserialize_method=raw)
  for begin in range(0, len(rows), _CHUNK):
    chunk = np.asarray(rows[begin : begin + _CHUNK]).tolist()
    for record in records.__getitems__(chunk):
      yield _EXAMPLE.FromString(record).features.feature


def digest(path: str, wanted: str) -> str:
  """The SHA-256 of a file in hexadecimal.

  Raises:
    UserError: the file cannot be read; it says what is wanted.
  """
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); expected {wanted}. Check "
      f"the path."
    ) from error
