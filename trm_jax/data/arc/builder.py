"""ARC datasets: one record per task, with its pairs and its copies' symmetries.

Pairs are stored once. A copy is a symmetry of 11 bytes, which the device
applies to the pairs when they are read (`Task.copies`).
"""

import dataclasses
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from trm_jax.data import records
from trm_jax.data import task as task_lib
from trm_jax.data.arc import copies, files, grids
from trm_jax.data.arc import names as names_lib
from trm_jax.data.arc.files import ArcTask, Pair
from trm_jax.data.arc.groups import gather

# Increase after any change of the content for the same settings.
_VERSION = 1


def prepare(settings: Any, say: records.Say = logging.info) -> list[str]:
  """Makes the dataset if it does not exist; see `task.Dataset`."""
  return records.notes(_prepare(settings, say))


def num_groups(settings: Any, split: str) -> int:
  """Counts the tasks of a split; a task and its copies are one group."""
  return records.count(_prepare(settings), split)


def load(
  settings: Any, split: str, groups: np.ndarray | None = None
) -> task_lib.Split:
  """Loads a split into host memory, preparing the dataset first if needed.

  Examples are originals at the origin of the canvas; an unknown label is all 0.
  A task has the same puzzle ids in both splits.
  """
  length = settings.size**2
  names, ids, inputs, labels, symmetries = [], [], [], [], []
  for feature in records.read(_prepare(settings), split, groups):
    names.append(_name(feature))
    inputs.append(_array(feature["inputs"], length))
    labels.append(_array(feature["labels"], length))
    symmetries.append(_array(feature["symmetries"], len(grids.IDENTITY)))
    first = feature["first_id"].int64_list.value[0]
    ids.append(np.arange(first, first + len(symmetries[-1]), dtype=np.int32))
  num_examples = np.array([len(tokens) for tokens in inputs], np.int32)
  num_copies = np.array([len(rows) for rows in symmetries], np.int32)
  ends = num_examples.cumsum(dtype=np.int32)
  # `concatenate` needs at least one array, even if there is no task.
  none = np.empty((0, length), np.uint8)
  return task_lib.Split(
    inputs=np.concatenate([none, *inputs]),
    labels=np.concatenate([none, *labels]),
    puzzle_ids=np.concatenate([np.empty(0, np.int32), *ids]),
    first_puzzle=np.append(np.int32(0), num_copies.cumsum(dtype=np.int32)),
    first_example=np.repeat(ends - num_examples, num_copies),
    num_examples=np.repeat(num_examples, num_copies),
    symmetries=np.concatenate([grids.IDENTITY[None][:0], *symmetries]),
    names=tuple(names),
  )


def _name(feature) -> str:
  return feature["name"].bytes_list.value[0].decode()


def _array(feature, length: int) -> np.ndarray:
  tokens = np.frombuffer(feature.bytes_list.value[0], np.uint8)
  return tokens.reshape(-1, length)


def identifiers(settings: Any) -> list[str]:
  """The name of each puzzle id, in the reference's form."""
  names, symmetries = [], []
  for feature in records.read(_prepare(settings), "train"):
    symmetries.append(_array(feature["symmetries"], len(grids.IDENTITY)))
    names += [_name(feature)] * len(symmetries[-1])
  return [
    task_lib.BLANK,
    *names_lib.copy_names(names, np.concatenate(symmetries)),
  ]


def _prepare(settings: Any, say: records.Say = logging.info) -> records.Records:
  size = settings.size
  config = records.RecordsConfig(
    name=f"arc-{size}x{size}-{_content(settings)}",
    description="ARC tasks and their copies",
    features={
      "name": tfds.features.Text(),
      "first_id": np.int64,
      "inputs": records.bytes_feature(None, size * size),
      "labels": records.bytes_feature(None, size * size),
      "symmetries": records.bytes_feature(None, len(grids.IDENTITY)),
    },
    make=lambda: _make(settings),
  )
  return records.prepare(
    config,
    settings.cache_dir,
    say,
    f"preparing the ARC tasks, once (train from {settings.train or 'nothing'}, "
    f"test from {settings.test or 'nothing'}); a thousand copies of a thousand "
    f"tasks take some seconds",
  )


def _content(settings: Any) -> str:
  """A digest of all settings and files that decide the content."""
  content = dataclasses.asdict(settings)
  del content["cache_dir"], content["path"]
  for split in ("train", "test"):
    content[split] = [
      [
        (os.path.basename(file), records.digest(file, "ARC tasks"))
        for file in found
      ]
      for found in map(
        files.source_files, getattr(settings, f"{split}_sources")
      )
    ]
  content["only"] = sorted(set(settings.only_names))
  content["version"] = _VERSION
  return records.content_digest(content)


def _make(settings: Any) -> tuple[records.Splits, list[str]]:
  """Makes the records of both splits, and notes on them."""
  tasks, notes = gather(settings)
  splits: dict[str, list[dict]] = {"train": []}
  if settings.test_sources:
    splits["test"] = []
  next_id, short = 1, 0
  for task in tasks:
    symmetries = copies.symmetries(task, settings.num_aug, settings.seed)
    for split, pairs in (("train", task.train), ("test", task.test)):
      if pairs:
        splits[split].append(
          _record(task, pairs, symmetries, next_id, settings.size)
        )
    next_id += len(symmetries)
    short += len(symmetries) <= settings.num_aug
  if short:
    notes.append(
      f"{short} of {len(tasks)} tasks look the same under so many symmetries "
      f"that they have fewer than {settings.num_aug} copies."
    )
  return splits, notes


def _record(
  task: ArcTask,
  pairs: tuple[Pair, ...],
  symmetries: np.ndarray,
  first_id: int,
  size: int,
) -> dict:
  unknown = np.zeros(size * size, np.uint8)
  return {
    "name": task.name,
    "first_id": first_id,
    "inputs": np.stack([grids.encode(question, size) for question, _ in pairs]),
    "labels": np.stack(
      [
        unknown if answer is None else grids.encode(answer, size)
        for _, answer in pairs
      ]
    ),
    "symmetries": symmetries,
  }
