"""Datasets on disk: records that TFDS writes once and then reuses.

A dataset's name contains a digest of its settings and files, so equal requests
reuse it and others get a dataset of another name. Its file digests.json holds
the digest of every other file, and is compared with them whenever the dataset
is opened.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.proto import tf_example_pb2

from trm_jax.data import checks, lines
from trm_jax.errors import UserError

Say = Callable[[str], None]

# The records of each split; a record is an example of TFDS.
Splits = Mapping[str, Iterable[dict]]

# `getattr`, as type checkers cannot see the classes of generated code.
_EXAMPLE = getattr(tf_example_pb2, "Example")  # noqa: B009

_CHUNK = 8192  # records read at a time
_DIGESTS = "digests.json"


@dataclasses.dataclass(eq=False)
class RecordsConfig(tfds.core.BuilderConfig):
  """One dataset. Its name must change with its content.

  Attributes:
    features: the TFDS feature of each part of a record.
    make: `() -> (splits, notes)`, called if the dataset does not exist yet.
  """

  features: dict[str, Any] = dataclasses.field(default_factory=dict)
  make: Callable[[], tuple[Splits, list[str]]] = lambda: ({}, [])


class _RecordsInfo(tfds.core.DatasetInfo):
  """Information on a dataset that is not on the servers of TFDS."""

  def initialize_from_bucket(self):
    """Called if there is no dataset_info.json; downloads nothing."""
    if os.path.exists(self.data_dir):
      _verify(self.data_dir, self.config_name)

  def read_from_directory(self, dataset_info_dir):
    """Reads what `write_to_directory` wrote, if it is undamaged."""
    _verify(dataset_info_dir, self.config_name)
    super().read_from_directory(dataset_info_dir)

  def write_to_directory(self, dataset_info_dir, all_metadata=True):
    """Writes the last files of a folder, which is still a temporary one."""
    super().write_to_directory(dataset_info_dir, all_metadata)
    content = _digests(pathlib.Path(dataset_info_dir), self.config_name)
    path = pathlib.Path(dataset_info_dir) / _DIGESTS
    path.write_text(json.dumps(content, indent=1), "utf-8")


def _verify(path: str | os.PathLike, name: str) -> None:
  """Raises a `UserError` if a dataset is not as it was written."""
  folder = pathlib.Path(path)
  try:
    written = checks.read_json(folder / _DIGESTS, "the digests of files")
    found = _digests(folder, name)
    if not isinstance(written, dict):
      raise UserError(f"{_DIGESTS} holds {checks.shorten(written)}")
    for file in sorted({"dataset", *written}):
      if file not in found:
        raise UserError(f"{file} is missing")
      if found[file] != written.get(file):
        raise UserError(f"{file} has changed")
  except (UserError, OSError) as error:
    raise UserError(
      f"{folder} is damaged ({error}); delete {folder}, it is made again"
    ) from error


def _digests(folder: pathlib.Path, name: str) -> dict[str, str]:
  """The name of a dataset and the digests of its files."""
  found = {"dataset": name}
  for path in sorted(folder.iterdir()):
    if path.name[0] != "." and path.name != _DIGESTS and path.is_file():
      status = path.stat()
      found[path.name] = _digest_once(path, status.st_size, status.st_mtime_ns)
  return found


@functools.lru_cache(maxsize=256)
def _digest_once(path: pathlib.Path, size: int, time: int) -> str:
  """The digest of a file, read again if its size or time changes."""
  del size, time
  return digest(os.fspath(path), "a file of a dataset")


class Records(tfds.core.GeneratorBasedBuilder):
  """Records of arrays, in the order of their creation."""

  # Increase after any change of the files, so that older ones are made again.
  VERSION = tfds.core.Version("1.1.0")

  # TFDS looks beside this path for the checksums of downloads. There are none,
  # and finding the path needs a package that TFDS does not install.
  code_path = None

  @property
  def config(self) -> RecordsConfig:
    """The configuration of this dataset."""
    return cast(RecordsConfig, self.builder_config)

  def _info(self):
    return _RecordsInfo(
      builder=self,
      features=tfds.features.FeaturesDict(self.config.features),
      # Batches are shuffled when read, so records keep their order.
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),  # filled with "notes"
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    splits, notes = self.config.make()
    for note in notes:
      logging.warning("%s", note)
    cast(dict, self.info.metadata)["notes"] = notes
    return {
      split: self._generate_examples(records)
      for split, records in splits.items()
    }

  def _generate_examples(self, records):
    yield from enumerate(records)


def prepare(
  config: RecordsConfig, cache_dir: str, say: Say, announcement: str
) -> Records:
  """Returns a dataset, making it in `cache_dir` if it does not exist.

  Before that, `say` is called with the announcement: what is made, and how long
  it may take. The default of `cache_dir`, "", is that of TFDS.
  """
  folder = os.path.expanduser(cache_dir) or None
  try:
    builder = _builder(config, folder)
    if not builder.data_path.exists():
      say(announcement)
      tfds.disable_progress_bar()
      try:
        # TFDS writes to a temporary folder and renames it when complete, so
        # interrupted or simultaneous preparations are safe.
        with (
          contextlib.redirect_stdout(None),  # hides "Downloading"
          _writing(pathlib.Path(builder.data_dir).parent.parent),
        ):
          builder.download_and_prepare(file_format="array_record")
      except OSError:
        if not builder.data_path.exists():
          raise  # otherwise another process made the same dataset first
      builder = _builder(config, folder)
  except (OSError, RuntimeError) as error:  # RuntimeError by array_record
    raise UserError(
      f"cache_dir: the dataset cannot be kept in "
      f"{cache_dir or 'the default folder of TFDS'} ({error}); set cache_dir "
      f"to a folder with free space that you may write to."
    ) from error
  return builder


@contextlib.contextmanager
def _writing(root: pathlib.Path) -> Iterator[None]:
  """Deletes what interrupted preparations left, then allows a preparation.

  Each process that prepares a dataset below `root` shares a lock. One that
  gets the lock alone knows that all temporary folders are of ended processes.
  """
  root.mkdir(parents=True, exist_ok=True)
  with open(root / ".lock", "ab") as lock:
    with contextlib.suppress(OSError):  # in use, or a disk without locks
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      for folder in root.glob("*/incomplete.*"):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_SH)
    yield


def _builder(config: RecordsConfig, folder: str | None) -> Records:
  # Hides warnings of configurations that are not in the catalogue of TFDS.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return Records(config=config, data_dir=folder)
  finally:
    logging.set_verbosity(verbosity)


def notes(builder: Records) -> list[str]:
  """Sentences for users of the dataset."""
  return list((builder.info.metadata or {}).get("notes", []))


def count(builder: Records, split: str) -> int:
  """Counts the records of a split, "train" or "test"."""
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
    The features of each record, by name, as in a `tf.train.Example`.
  """
  total = count(builder, split)
  rows = np.arange(total) if rows is None else rows
  # Parsing records here is five times as fast as the decoder of TFDS.
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  as_data_source = cast(Callable, builder.as_data_source)
  records = as_data_source(split, deserialize_method=raw)
  for begin in range(0, len(rows), _CHUNK):
    chunk = np.asarray(rows[begin : begin + _CHUNK]).tolist()
    for record in records.__getitems__(chunk):
      yield _EXAMPLE.FromString(record).features.feature


def bytes_feature(*shape: int | None) -> tfds.features.Tensor:
  """The TFDS feature of uint8 arrays of a shape."""
  encoding = tfds.features.Encoding.BYTES
  return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=encoding)


def content_digest(content: dict) -> str:
  """16 hexadecimal digits that identify JSON content, for names of datasets."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(path: str, wanted: str) -> str:
  """The SHA-256 of a file in hexadecimal.

  Raises a `UserError` that names what is `wanted` if it cannot be read.
  """
  with lines.open_file(path, wanted) as file:
    try:
      return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
      raise lines.unreadable(path, error) from error
