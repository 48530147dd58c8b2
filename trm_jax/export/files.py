"""Files that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from trm_jax.errors import UserError


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
