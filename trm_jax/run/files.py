"""Files that appear whole or not at all, on a disk or in a bucket."""

import contextlib
import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
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


def write(contents: Mapping[pathlib.Path, bytes]):
  """Writes some files that belong together, in place of any before them.

  On a disk all are complete before the first gets its name.

  Raises:
    UserError: if one cannot be written; on a disk then none is.
  """
  unfinished: dict[pathlib.Path, pathlib.Path] = {}
  path = None
  try:
    for path, content in contents.items():
      if is_remote(path):
        path.write_bytes(content)  # objects are replaced whole
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      unfinished[path] = path.with_name(path.name + ".tmp")
      unfinished[path].write_bytes(content)
    for path, complete in unfinished.items():
      complete.replace(path)
  except Exception as error:  # gcsfs and what is below it raise many kinds
    if path and is_remote(path):
      raise UserError(
        f"cannot write {path}: {str(error) or type(error).__name__}. See that "
        "the bucket is there and that you may write to it (gcloud auth "
        "application-default login, or the service account of the machine)"
      ) from error
    if not isinstance(error, OSError):
      raise
    raise UserError(f"cannot write {path}: {error.strerror}") from error
  finally:
    for rest in unfinished.values():
      with contextlib.suppress(OSError):
        rest.unlink()


def write_text(path: pathlib.Path, text: str):
  """`write` of one text."""
  write({path: text.encode()})


def write_json(path: pathlib.Path, value: Any):
  """`write` of one value as JSON."""
  write({path: to_json(value)})


def to_json(value: Any) -> bytes:
  """JSON for people to read."""
  return (json.dumps(value, indent=2) + "\n").encode()


def read_json(
  path: pathlib.Path,
  is_right: Callable[[Any], bool],
  expected: str,
  cure: str,
) -> Any:
  """A value from a JSON file; None if there is no file.

  Args:
    path: the file.
    is_right: whether a value is of the right form.
    expected: that form, for the message.
    cure: what to do about a damaged file, for the message.

  Raises:
    UserError: if the file is damaged.
  """
  try:
    value = json.loads(path.read_text())
    if not is_right(value):
      raise ValueError(f"not {expected}")
    return value
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged ({error}); {cure}") from error


def read_optional(path: pathlib.Path) -> dict[str, Any]:
  """An object from a JSON file; an empty one if there is no file.

  Raises:
    UserError: if the file is damaged.
  """
  cure = "delete it, or give the command that made it again"
  is_object = lambda value: isinstance(value, dict)  # noqa: E731
  return read_json(path, is_object, "an object", cure) or {}


@contextlib.contextmanager
def written_locally(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write a file with a library that can write to a disk alone.

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
  """The file with the card of an exported model, if it is not inside it."""
  return path.with_name(path.name + ".json")


def refuse_existing(overwrite: bool, *paths: pathlib.Path):
  """Refuses to write where something lies that must not be lost.

  Raises:
    UserError: if one of the paths exists and may not be overwritten.
  """
  for path in paths:
    if os.path.lexists(path) and not overwrite:
      raise UserError(
        f"{path} exists already; choose another name, or overwrite it"
      )
