"""Cards and fingerprints: what an exported file says of itself, checked.

A card is a JSON object: `Pretrained.card` and what its format adds. Every
format also has a fingerprint of its contents, which is compared before
anything else reads them.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax.errors import UserError


def parse(
  path: pathlib.Path, text: str | bytes, fields: Mapping[str, type]
) -> dict[str, Any]:
  """Reads a card.

  Args:
    path: where it is from.
    text: the JSON.
    fields: fields that it must have, and their types.

  Raises:
    UserError: if it is no such card.
  """
  try:
    card = json.loads(text)
    if not isinstance(card, dict):
      raise ValueError("it is not an object")
    for name, kind in fields.items():
      if not isinstance(card.get(name), kind):
        raise ValueError(f"{name} is {card.get(name)!r:.40}")
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: its card: {error}") from error
  return card


def check_format(path: pathlib.Path, found: Any, expected: str):
  """Refuses a file of another format or version.

  Raises:
    UserError: naming both.
  """
  if found != expected:
    raise UserError(
      f"{path}: format is {found!r:.60}, expected {expected!r}; export the "
      "model again with this version"
    )


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
  """Refuses contents that are not those that were written.

  Raises:
    UserError: naming the file.
  """
  if found != expected:
    raise UserError(
      f"{path} is damaged or was edited: its contents are not those of its "
      "fingerprint; export the model again"
    )


def check_arrays(
  path: pathlib.Path, found: Mapping[str, str], expected: Mapping[str, str]
):
  """Refuses arrays that are not those of the config.

  Args:
    path: where they are.
    found: name -> dtype and shape, as of `checkpoint.described`.
    expected: the same by the config.

  Raises:
    UserError: naming the first array that differs.
  """
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise UserError(
        f"{path}: array {name!r} is {found.get(name, 'missing')}, but its "
        f"config makes it {expected.get(name, 'absent')}"
      )


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
  """All of a file that has `limit` bytes at most.

  Raises:
    UserError: if there is none, it is larger, or it cannot be read.
  """
  try:
    if not path.is_file():  # a pipe would be waited for
      raise UserError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size > limit:
      raise UserError(
        f"{path}: {size:,} bytes; this format has {limit:,} at most"
      )
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
