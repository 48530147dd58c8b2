"""Files that appear whole or not at all, on a disk or in a bucket."""

import contextlib
import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, cast

from etils import epath

from trm_jax.errors import UserError


def locate(path: str | os.PathLike) -> pathlib.Path:
  """A path on a disk, or in a bucket, which works alike but is slower.

  Raises:
    UserError: if it is in a bucket of a kind that cannot be used here.
  """
  text = os.fspath(path)
  scheme, found, _ = text.partition("://")
  if not found:
    return pathlib.Path(path)
  if scheme != "gs":
    raise UserError(f"{text}: only gs://BUCKET/FOLDER, or a folder on a disk")
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{text} needs gcsfs: pip install 'trm_jax[gcs]'")
  # It has the methods of `pathlib.Path` without being one.
  return cast(pathlib.Path, epath.Path(text))


def is_remote(path: pathlib.Path) -> bool:
  """Whether a path is in a bucket."""
  return os.fspath(path).startswith("gs://")


def write_text(path: pathlib.Path, text: str):
  """Writes text so that a reader sees the old file or the new, never half.

  Raises:
    UserError: if it cannot be written.
  """
  if is_remote(path):
    try:
      path.write_text(text)  # objects are replaced whole
    except Exception as error:  # gcsfs and what is below it raise many kinds
      raise UserError(
        f"cannot write {path}: {str(error) or type(error).__name__}. See that "
        "the bucket is there and that you may write to it (gcloud auth "
        "application-default login, or the service account of the machine)"
      ) from error
    return
  unfinished = path.with_name(path.name + ".tmp")
  try:
    unfinished.write_text(text)
    unfinished.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      unfinished.unlink()
    raise UserError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def written_locally(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write a file for those who can write to a disk alone.

  Args:
    path: where it shall be in the end.

  Yields:
    `path` itself, or one on this disk, that is copied into the bucket.
  """
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    here = pathlib.Path(folder) / path.name
    yield here
    path.write_bytes(here.read_bytes())


def card_path(path: pathlib.Path) -> pathlib.Path:
  """Where the card of a format lies that has no room inside: `PATH.json`."""
  return path.with_name(path.name + ".json")


def to_json(value: Any) -> bytes:
  """JSON for people to read."""
  return (json.dumps(value, indent=2) + "\n").encode()


def refuse_existing(overwrite: bool, *paths: pathlib.Path):
  """Refuses to write where something lies that must not be lost.

  Args:
    overwrite: whether what lies there may go.
    *paths: what is about to be written.

  Raises:
    UserError: if it may not.
  """
  for path in paths:
    if os.path.lexists(path) and not overwrite:
      raise UserError(
        f"{path} exists already; choose another name, or overwrite it"
      )


def write(contents: Mapping[pathlib.Path, bytes]):
  """Writes some files that belong together, in place of any before them.

  All are complete before the first gets its name.

  Raises:
    UserError: if one cannot be written; then none is.
  """
  unfinished = {path: path.with_name(path.name + ".tmp") for path in contents}
  path = None
  try:
    for path, content in contents.items():
      path.parent.mkdir(parents=True, exist_ok=True)
      unfinished[path].write_bytes(content)
    for path, complete in unfinished.items():
      complete.replace(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from error
  finally:
    for rest in unfinished.values():
      with contextlib.suppress(OSError):
        rest.unlink()
