"""A run's folder, on a disk or in a bucket (gs://BUCKET/FOLDER).

    config.json      the resolved config      metrics.jsonl   one row a record
    overrides.json   flags of the command     result.json     the last scores
    checkpoints/     see checkpoint.py        plots/          figures
    identifiers.json the name of each puzzle id, if puzzles have names
    submission.json  answers in the format of Kaggle's ARC contest
    calibration.json calibration of the halting head's confidence, if measured

On a disk a lock file keeps other processes out. A bucket has no locks that a
killed process releases: the last process that claimed the folder owns it, and
the previous one ends at its next checkpoint.
"""

import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import filelock

from trm_jax import config as config_lib
from trm_jax.errors import UserError
from trm_jax.run import changes
from trm_jax.run.files import (
  is_remote,
  locate,
  read_json,
  refuse_patterns,
  write_json,
  write_text,
)


class RunFolder:
  """One run's folder at `path`, created by `claim`."""

  def __init__(self, path: str | os.PathLike):
    if not str(path):
      raise UserError("--workdir is missing: name a folder for the run")
    self.path = locate(path)
    refuse_patterns(self.path)
    self.is_remote = is_remote(self.path)
    self._claim = ""
    self._lock_file: tuple[int, int] | None = None
    if not self.is_remote:
      self._lock = filelock.FileLock(self.path / ".lock")

  checkpoints = property(lambda self: self.path / "checkpoints")
  metrics = property(lambda self: self.path / "metrics.jsonl")
  plots = property(lambda self: self.path / "plots")
  tensorboard = property(lambda self: self.path / "tensorboard")
  result = property(lambda self: self.path / "result.json")
  identifiers = property(lambda self: self.path / "identifiers.json")
  submission = property(lambda self: self.path / "submission.json")
  calibration = property(lambda self: self.path / "calibration.json")

  def claim(self, config: Mapping[str, Any], overrides: Mapping[str, Any]):
    """Claims the folder for a new or resumed run, until the process ends.

    The config may change until something was trained, so that a command that
    failed early can be corrected; then only as `changes.refuse` allows.

    Args:
      config: the resolved config as plain values.
      overrides: fields that the command line changed.

    Raises:
      UserError: if the folder cannot be written, belongs to another process, or
        was made with another config or holds that of another program; then
        nothing in it is changed.
    """
    if self.is_remote:
      self._claim = uuid.uuid4().hex
      write_text(self.path / ".claim", self._claim)
    else:
      self._acquire()
    config = json.loads(json.dumps(config))  # tuples become lists
    try:
      known = self._known_config()
      if known is not None:
        changes.refuse(config, known, os.fspath(self.path), self._saved_facts)
      if (
        known is None
        or not (self.path / "config.json").exists()
        or changes.changes_results(config, known)
      ):
        write_json(self.path / "overrides.json", overrides)
        write_json(self.path / "config.json", config)
    except UserError:
      self.release()
      raise

  def _known_config(self) -> dict[str, Any] | None:
    """The config that the folder was trained with, if it was."""
    has_config = (self.path / "config.json").exists()
    if has_config:
      config = self.read_config()
      studied = ("study", "grid")
      if not config.keys() <= {*config_lib.sections(config), *studied}:
        raise UserError(
          f"{self.path} holds a config.json of something else; use another "
          "--workdir"
        )
      return config if self._has_trained() else None
    return self._saved_facts().get("config")

  def _saved_facts(self) -> dict[str, Any]:
    """What the latest checkpoint tells of itself; empty if there is none."""
    if not any(self._checkpoint_folders()):
      return {}
    from trm_jax.run.checkpoint import Checkpoints  # Orbax imports slowly

    with Checkpoints(self.checkpoints) as checkpoints:
      step = checkpoints.latest
      return {} if step is None else checkpoints.facts(step)

  def check_claim(self):
    """Raises a `UserError` if the folder no longer belongs to this process.

    Another process may have claimed a bucket, and a folder on a disk may have
    been moved or deleted. Called before files are written there.
    """
    if self.is_remote:
      try:
        found = (self.path / ".claim").read_text()
      except FileNotFoundError:
        found = ""  # the folder was emptied
      if self._claim and found != self._claim:
        raise UserError(
          f"{self.path}: another process has begun to train in this folder; it "
          "goes on from the last checkpoint, and this one ends"
        )
    elif self._lock_file and self._lock_file != _identity(self.path / ".lock"):
      raise UserError(
        f"{self.path} was moved or deleted during training, or another folder "
        "took its place; the run is saved up to its last checkpoint. Move it "
        "back, or name its new path as --workdir, to go on from there"
      )

  def _acquire(self):
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock.acquire(timeout=0)
      self._lock_file = _identity(self.path / ".lock")
    except filelock.Timeout:
      raise UserError(
        f"{self.path}: another process is training in this folder; stop it, "
        "or choose another --workdir"
      ) from None
    except OSError as error:
      cause = f"cannot write to this folder ({error.strerror})"
      if isinstance(error, (FileExistsError, NotADirectoryError)):
        cause = "a file is in the way of this folder"
      raise UserError(
        f"{self.path}: {cause}; choose another --workdir"
      ) from None

  def _has_trained(self) -> bool:
    """Whether the folder holds a measurement or a checkpoint."""
    measured = self.metrics.exists() and bool(self.metrics.read_bytes())
    return measured or any(self._checkpoint_folders())

  def _checkpoint_folders(self) -> Iterator[pathlib.Path]:
    return (
      path for path in self.checkpoints.glob("*") if path.name.isdecimal()
    )

  def keep_identifiers(self, names: list[str]):
    """Writes the name of each puzzle id, unless there is only the blank one.

    Raises:
      UserError: if the puzzle table was trained with other names.
    """
    if self._has_trained() and self.identifiers.exists():
      known = self.read_identifiers()
      if known != names:
        pairs = zip(known, names, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        detail = f"{len(known):,} there, {len(names):,} in the data"
        if first:
          detail = f"the first is {first[0]!r} there, {first[1]!r} in the data"
        raise UserError(
          f"{self.path}: the rows of its puzzle table have other names than "
          f"the data's puzzles ({detail}); use the data that it was trained "
          "on, or another --workdir"
        )
    elif len(names) > 1:
      write_json(self.identifiers, names)

  def release(self):
    """Releases the lock on a disk."""
    self._lock_file = None
    if not self.is_remote:
      self._lock.release()

  def read_config(self) -> dict[str, Any]:
    """The run's config; raises a `UserError` if it is missing or damaged."""
    config = read_json(
      self.path / "config.json",
      lambda value: (
        isinstance(value, dict)
        and all(isinstance(section, dict) for section in value.values())
      ),
      "an object of sections",
      "put back the config that the run was made with, or use another "
      "--workdir",
    )
    if config is None:
      raise UserError(f"{self.path} is not a run folder: it has no config.json")
    return config

  def read_identifiers(self) -> list[str]:
    """The name of each puzzle id; `["<blank>"]` if puzzles have no names."""
    names = read_json(
      self.identifiers,
      lambda value: (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
      ),
      "a list of names",
      "give the command that made the run again, which writes it anew",
      most=2**28,
    )
    return ["<blank>"] if names is None else names


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
  """Device and inode of a file; None if there is none."""
  try:
    found = path.stat()
  except OSError:
    return None
  return found.st_dev, found.st_ino
