"""Cards of exported models, and checks of an exported file against its card.

A card is a JSON object: `Pretrained.card`, the format's own fields, and a
SHA-256 of the contents, which is checked before they are used.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax.data import checks
from trm_jax.errors import UserError
from trm_jax.run import files


def write(path: pathlib.Path, content: bytes, card: Mapping[str, Any]):
  """Writes a file, and beside it its card with a fingerprint."""
  card = dict(card) | {"sha256": fingerprint(content)}
  files.write({path: content, files.card_path(path): files.to_json(card)})


def read(
  path: pathlib.Path, format: str, limit: int
) -> tuple[dict[str, Any], bytes]:
  """Reads the card and the contents of a file that `write` wrote.

  Raises:
    UserError: if a file is missing, damaged, larger than `limit` bytes, or of
      another format.
  """
  card_path = files.card_path(path)
  try:
    card = checks.parse_json(read_bytes(card_path, limit))
    if not isinstance(card, dict):
      raise ValueError("not an object")
  except (ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{card_path} is damaged: {error}") from error
  check_format(card_path, card.get("format"), format)
  content = read_bytes(path, limit)
  check_fingerprint(path, fingerprint(content), card.get("sha256"))
  return card, content


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
  """The contents of a regular file; a UserError if it exceeds the limit."""
  try:
    if not path.is_file():  # reading a pipe would block
      raise UserError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size > limit:
      raise UserError(
        f"{path}: {size:,} bytes; its format has {limit:,} at most"
      )
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error


def fingerprint(content: bytes | Mapping[str, np.ndarray]) -> str:
  """The SHA-256 of bytes, or of arrays in the order of their names."""
  if isinstance(content, bytes):
    return hashlib.sha256(content).hexdigest()
  digest = hashlib.sha256()
  for name in sorted(content):
    array = np.ascontiguousarray(content[name])
    digest.update(f"{name} {array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def check_fingerprint(path: pathlib.Path, found: Any, expected: Any):
  """Raises a `UserError` if contents differ from those that were written."""
  if found != expected:
    raise UserError(
      f"{path} is damaged or was edited: its contents are not those of its "
      "fingerprint; export the model again"
    )


def check_format(path: pathlib.Path, found: Any, expected: str):
  """Raises a `UserError` if a file has another format or version."""
  if found != expected:
    raise UserError(
      f"{path}: format is {found!r:.60}, expected {expected!r}; export the "
      "model again with this version"
    )


def check_arrays(
  path: pathlib.Path, found: Mapping[str, str], expected: Mapping[str, str]
):
  """Compares a file's arrays with those of its config.

  Both are given as `checkpoint.described` returns them.

  Raises:
    UserError: naming the first array that differs.
  """
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise UserError(
        f"{path}: array {name!r} is {found.get(name, 'missing')}, but its "
        f"config makes it {expected.get(name, 'absent')}"
      )
