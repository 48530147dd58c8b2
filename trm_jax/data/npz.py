"""Reads `.npz` files, which are not trusted."""

import math
import os
import zipfile
from collections.abc import Collection

import numpy as np

from trm_jax.data import checks
from trm_jax.errors import UserError

_MOST_BYTES = 2**32  # of all arrays together
_MOST_RATIO = 1032  # of deflate


def read(
  path: str | os.PathLike, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads arrays of numbers or text by name, all or those of `names`.

  Raises a `UserError` if one is missing or damaged. Nothing is allocated that
  the file does not hold, and no object is unpickled.
  """
  try:
    checks.require_file(path)
    with zipfile.ZipFile(path) as archive:
      members = {
        member.filename.removesuffix(".npy"): member
        for member in archive.infolist()
      }
      names = members if names is None else names
      missing = [name for name in names if name not in members]
      if not missing:
        members = {name: members[name] for name in names}
        total = sum(member.file_size for member in members.values())
        if total > min(_MOST_BYTES, _MOST_RATIO * os.path.getsize(path)):
          raise ValueError(
            f"its arrays have {total:,} bytes, more than {_MOST_BYTES:,} or "
            "than the file can hold"
          )
        return {
          name: _read_member(archive, member)
          for name, member in members.items()
        }
  except Exception as error:  # damage fails in a dozen ways
    cause = getattr(error, "strerror", None) or str(error)[:300]
    raise UserError(
      f"{path}: cannot be read ({cause}); expected an .npz file of arrays"
    ) from error
  raise UserError(
    f"{path}: lacks {', '.join(missing)}; expected {', '.join(names)}"
  )


def _read_member(archive, member: zipfile.ZipInfo) -> np.ndarray:
  """Reads an array if its header agrees with the size of the member."""
  name = checks.shorten(member.filename)
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"{name} is compressed in another way than by deflate")
  with archive.open(member) as stream:
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
      raise ValueError(f"{name} has version {version} of the format, not 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    size = member.file_size - stream.tell()
  if dtype.kind not in "biufU" or not dtype.itemsize:
    raise ValueError(f"{name} holds {dtype}, neither numbers nor text")
  if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != size:
    raise ValueError(
      f"{name} has shape {checks.shorten(shape)} of {dtype}, but {size:,} bytes"
    )
  with archive.open(member) as stream:
    return np.lib.format.read_array(stream, allow_pickle=False)
