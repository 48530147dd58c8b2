"""Checks of settings; errors name the field, its value and the expectation."""

import dataclasses
import json
import os
import pathlib
import reprlib
import stat
import types
import typing
from typing import Any

from trm_jax.errors import UserError

_LONGEST_JSON = 2**28  # bytes


def convert_fields(settings: Any) -> None:
  """Checks the types of a frozen dataclass's fields, see `convert`."""
  hints = typing.get_type_hints(type(settings))
  for name in (field.name for field in dataclasses.fields(settings)):
    value = convert(name, getattr(settings, name), hints[name])
    object.__setattr__(settings, name, value)


def convert(where: str, value: Any, hint: Any) -> Any:
  """Returns a value as exactly the type `hint`, which may be a union.

  An int may be given for a float, and a list for a tuple. Anything else
  raises a `UserError`, in which `where` is the value's name.
  """
  is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  options = typing.get_args(hint) if is_union else (hint,)
  for option in options:
    if option is type(None) and value is None:
      return None
    if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
      parts = typing.get_args(option)
      if parts[-1] is Ellipsis:
        parts = (parts[0],) * len(value)
      if len(parts) == len(value):
        return tuple(
          convert(f"{where}[{i}]", part, parts[i])
          for i, part in enumerate(value)
        )
    if option is float and type(value) is int:
      return float(value)
    if isinstance(option, type) and type(value) is option:
      return value
  expected = " or ".join(
    str(o) if typing.get_args(o) else getattr(o, "__name__", str(o))
    for o in options
  )
  raise UserError(
    f"{where}={value!r}: must be {expected}, not {type(value).__name__}"
  )


def require_whole(
  settings: Any, *names: str, least: int = 1, most: int = 2**31 - 1
) -> None:
  """Raises a `UserError` unless whole numbers are within their bounds."""
  for name in names:
    value = getattr(settings, name)
    if not least <= value <= most:
      bounds = f"from {least} to {most}"
      if most == 2**31 - 1:
        bounds = f"at least {least}" if value < least else f"at most {most}"
      raise UserError(f"{name}={value!r}: must be {bounds}")


def require_range(settings: Any, name: str, least: float, most: float) -> None:
  """Raises a `UserError` unless two numbers are ordered and in bounds."""
  low, high = getattr(settings, name)
  if not least <= low <= high <= most:
    raise UserError(
      f"{name}={(low, high)}: must be two numbers from {least} to {most}, the "
      "lower first"
    )


def require_choice(settings: Any, name: str, allowed: tuple[str, ...]) -> None:
  """Raises a `UserError` unless a field has one of the values."""
  value = getattr(settings, name)
  if value not in allowed:
    raise UserError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def require_multiple(settings: Any, *names: str, of: str) -> None:
  """Raises a `UserError` unless fields are multiples of another field."""
  divisor = getattr(settings, of)
  for name in names:
    value = getattr(settings, name)
    if value % divisor:
      raise UserError(f"{name}={value}: must be a multiple of {of}={divisor}")


def read_json(path: str | os.PathLike, wanted: str) -> Any:
  """Reads a JSON file; refuses objects with duplicate keys."""
  try:
    return parse_json(read_bytes(pathlib.Path(path), _LONGEST_JSON))
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); expected {wanted}. Check "
      f"the path."
    ) from error
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{path}: not JSON ({error}); expected {wanted}. Copy it again."
    ) from error


def parse_json(content: str | bytes) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: if it is not JSON, or an object has a key twice.
    RecursionError: if it is nested too deeply.
  """
  return json.loads(content, object_pairs_hook=_object)


def read_bytes(path: pathlib.Path, most: int) -> bytes:
  """The content of a file.

  Raises:
    ValueError: if it is a pipe or a device, or has more than `most` bytes.
    OSError: if it cannot be read.
  """
  if isinstance(path, pathlib.Path):
    require_file(path)
  with path.open("rb") as file:
    content = file.read(most + 1)
  if len(content) > most:
    raise ValueError(f"more than {most:,} bytes")
  return content


def require_file(path: str | os.PathLike) -> None:
  """Raises a `ValueError` for pipes and devices, which may block or not end."""
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise ValueError("not a regular file")


def _object(items: list[tuple]) -> dict:
  content = dict(items)
  if len(content) < len(items):
    keys = [key for key, _ in items]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {shorten(twice)} stands twice in an object")
  return content


def shorten(value: Any) -> str:
  """Abbreviates a value from a file for a message."""
  return reprlib.repr(value)
