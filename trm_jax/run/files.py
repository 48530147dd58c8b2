"""Atomic writes and JSON files, on a disk or in a bucket."""

import contextlib
import importlib.util
import json
import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from etils import epath

from trm_jax.data import checks
from trm_jax.errors import UserError


def locate(path: str | os.PathLike) -> pathlib.Path:
  """The path object of a folder on a disk (~ is home) or gs://BUCKET/FOLDER.

  Raises:
    UserError: for other buckets, or if gcsfs is not installed.
  """
  text = os.fspath(path)
  scheme, found, _ = text.partition("://")
  if not found:
    return pathlib.Path(path).expanduser()
  if scheme != "gs":
    raise UserError(f"{text}: only gs://BUCKET/FOLDER, or a folder on a disk")
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{text} needs gcsfs: pip install 'trm_jax[gcs]'")
  # Has the methods of `pathlib.Path` but is not a subclass.
  return cast(pathlib.Path, epath.Path(text))


def refuse_patterns(path: pathlib.Path):
  """Raises a `UserError` if Orbax would read a folder's path as a pattern."""
  text = os.fspath(path if is_remote(path) else path.absolute())
  if found := sorted(set(text) & set("[]*?\\")):
    raise UserError(
      f"{text}: Orbax cannot read back a folder with {' '.join(found)} in its "
      "path; name another"
    )


def refuse_irregular(folder: pathlib.Path):
  """Raises a `UserError` if a folder that Orbax will read would block it."""
  for path in () if is_remote(folder) else folder.rglob("*"):
    if not path.is_file() and not path.is_dir() and path.exists():
      raise UserError(f"{path} is a pipe or a device, not a file; delete it")


def is_remote(path: pathlib.Path) -> bool:
  """Whether a path is in a bucket."""
  return os.fspath(path).startswith("gs://")


def write(contents: Mapping[pathlib.Path, bytes]):
  """Writes files that belong together, replacing existing ones.

  On a disk, all are written under temporary names before any is renamed.

  Raises:
    UserError: if one cannot be written; then no file on a disk is changed.
  """
  unfinished: dict[pathlib.Path, pathlib.Path] = {}
  path = None
  try:
    for path, content in contents.items():
      if is_remote(path):
        path.write_bytes(content)  # atomic in a bucket
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      unfinished[path] = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
      unfinished[path].touch(exist_ok=False)  # follows no link
      unfinished[path].write_bytes(content)
    for path, complete in unfinished.items():
      complete.replace(path)
  except Exception as error:  # gcsfs and its dependencies raise many types
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
  """`write` for one text."""
  write({path: text.encode()})


def write_json(path: pathlib.Path, value: Any):
  """`write` for one value as JSON."""
  write({path: to_json(value)})


def to_json(value: Any) -> bytes:
  """Indented JSON."""
  return (json.dumps(value, indent=2) + "\n").encode()


def read_json(
  path: pathlib.Path,
  is_valid: Callable[[Any], bool],
  expected: str,
  cure: str,
  most: int = 2**24,
) -> Any:
  """The value in a JSON file; None if the file does not exist.

  Raises:
    UserError: if the file is damaged, has more than `most` bytes, or its value
      is not valid; the message contains the `expected` form and the `cure`.
  """
  try:
    content = checks.read_bytes(path, most)
    value = checks.parse_json(content)
    if not is_valid(value):
      raise ValueError(f"not {expected}")
    return value
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged ({error}); {cure}") from error


def read_optional(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; empty if the file does not exist.

  Raises:
    UserError: if the file is damaged.
  """
  cure = "delete it, or give the command that made it again"
  value = read_json(path, lambda v: isinstance(v, dict), "an object", cure)
  return value or {}


@contextlib.contextmanager
def written_locally(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path on a disk to write to; copies the file to `path` afterwards.

  For libraries that cannot write to a bucket.
  """
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder) / path.name
    yield local
    path.write_bytes(local.read_bytes())


def card_path(path: pathlib.Path) -> pathlib.Path:
  """The file with an exported model's card, where it is a separate file."""
  return path.with_name(path.name + ".json")


def refuse_existing(overwrite: bool, *paths: pathlib.Path):
  """Raises a `UserError` if a path exists and `overwrite` is false."""
  for path in paths:
    if os.path.lexists(path) and not overwrite:
      raise UserError(
        f"{path} exists already; choose another name, or overwrite it"
      )
