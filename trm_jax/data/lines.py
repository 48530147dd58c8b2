"""Opens puzzle files and reads their lines: plain, gz, bz2, xz or zip.

The first bytes of a file decide what it is, not its name. Lines are held one
at a time, and compressed files are unpacked as they are read, within a bound:
the input is not trusted.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from trm_jax.errors import UserError

LONGEST = 1_000_000  # characters of a line; longer ones are cut one beyond

_MOST = 1_000_000_000  # characters of one line, and bytes of a zip in a pipe
# A file may unpack to this many bytes, and beyond to so many times its size.
_MOST_UNPACKED, _MOST_RATIO = 16_000_000, 100

_ENCODINGS = {
  b"\xff\xfe\0\0": "utf-32",
  b"\0\0\xfe\xff": "utf-32",
  b"\xff\xfe": "utf-16",
  b"\xfe\xff": "utf-16",
}
_PACKED: dict[bytes, Callable[[Any], Any]] = {
  b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
  b"BZh": bz2.BZ2File,
  b"\xfd7zXZ\0": lzma.LZMAFile,
}
_ZIP = (b"PK\3\4", b"PK\5\6")
_UNPACK = "unpack it first"
_AS_CSV = "write its table as csv, with columns question and answer"
_AS_TEXT = (
  "write its boards as text, or give a folder in the reference's layout"
)
_BINARY = {
  b"PAR1": ("a parquet file", _AS_CSV),
  b"ARROW1": ("an Arrow file", _AS_CSV),
  b"\x89HDF": ("an HDF5 file", _AS_CSV),
  b"SQLite format 3\0": ("an SQLite database", _AS_CSV),
  b"\x93NUMPY": ("a numpy array (npy)", _AS_TEXT),
  b"(\xb5/\xfd": ("compressed with zstd", _UNPACK),
  b"7z\xbc\xaf'\x1c": ("a 7z archive", _UNPACK),
  b"Rar!": ("a rar archive", _UNPACK),
}
_DAMAGE = (
  OSError, EOFError, MemoryError, NotImplementedError, RuntimeError,
  zlib.error, lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip


def open_file(path: str | os.PathLike, wanted: str) -> io.BufferedReader:
  """Opens a regular file; what may block or never end is refused.

  Raises a `UserError` that names what is `wanted` if it cannot be read.
  """
  try:
    file = None
    # Opening a FIFO would wait for its writer.
    if stat.S_IFMT(os.stat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
      file = open(path, "rb")  # noqa: SIM115 - the caller closes it
  except (OSError, ValueError) as error:  # ValueError for a NUL in the path
    reason = getattr(error, "strerror", None) or error
    raise UserError(
      f"{path}: cannot be read ({reason}); expected {wanted}. Check the path."
    ) from error
  if file is None:
    raise UserError(
      f"{path}: a pipe or a device, not a file; expected {wanted}. `trm solve` "
      "reads pipes as standard input: trm solve ... - < PIPE"
    )
  return file


def unpack(stream: BinaryIO, name: str, wanted: str) -> BinaryIO:
  """The content of a file or pipe, decompressed while it is read.

  Raises a `UserError` for what is no text, saying what it looks like.
  """
  packed: Any = (
    stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
  )
  head = _peek(packed, name)
  content: Any = packed
  with _refusing(name, "damaged, or not what its first bytes say"):
    if head.startswith(_ZIP):
      content = _Unpacked(*_open_zip(packed, name), name)
    for magic, kind in _PACKED.items():
      if head.startswith(magic):
        counted = _Counted(packed)
        content = _Unpacked(kind(counted), counted, name)
  if content is not packed:
    content = io.BufferedReader(content)
    head = _peek(content, name)
    if head.startswith((*_PACKED, *_ZIP)):
      raise UserError(f"{name}: compressed twice; {_UNPACK}.")
  _refuse_binary(head, name, wanted)
  return content


def read(
  stream: BinaryIO, name: str, wanted: str, most: int | None = None
) -> Iterator[tuple[int, str]]:
  r"""Yields (number, line) as lines arrive; `\n`, `\r\n` and `\r` end a line.

  Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark; invalid bytes
  become U+FFFD. A line of more than `LONGEST` characters is cut one beyond it.

  Args:
    stream: the bytes, which may be compressed.
    name: a path or another name, for messages.
    wanted: what is expected, for messages.
    most: the most characters in all; None for any number.
  """
  content = unpack(stream, name, wanted)
  head = _peek(content, name)
  encoding = next(
    (e for mark, e in _ENCODINGS.items() if head.startswith(mark)), "utf-8-sig"
  )
  text = io.TextIOWrapper(
    cast(Any, content), encoding, errors="replace", newline=None
  )
  left = most
  try:
    for number in itertools.count(1):
      line = rest = text.readline(LONGEST + 1)
      if not line:
        return
      size, allowed = len(line), _MOST if left is None else left
      while len(rest) > LONGEST and rest[-1] != "\n" and size <= allowed:
        rest = text.readline(LONGEST + 1)
        size += len(rest)
      if size > allowed:
        raise UserError(
          f"{name}: more than {most or _MOST:,} characters"
          f"{' in a line' * (left is None)}; split it into smaller files."
        )
      if left is not None:
        left -= size
      yield number, line.removesuffix("\n")
  except OSError as error:
    raise unreadable(name, error) from error
  finally:
    # The stream is the caller's, who may have closed it already.
    with contextlib.suppress(ValueError):
      text.detach()


def _peek(stream: Any, name: str) -> bytes:
  """The first bytes, as many as have arrived."""
  try:
    return stream.peek(512)[:512]
  except OSError as error:
    raise unreadable(name, error) from error


def unreadable(name: str, error: OSError) -> UserError:
  """The error to raise for a file whose reading failed."""
  return UserError(
    f"{name}: cannot be read ({error.strerror or error}); check the path."
  )


@contextlib.contextmanager
def _refusing(name: str, why: str):
  try:
    yield
  except _DAMAGE as error:
    raise UserError(
      f"{name}: cannot be unpacked ({error or type(error).__name__}); {why}. "
      "Copy or download it again."
    ) from error


def _open_zip(packed: Any, name: str) -> tuple[BinaryIO, "_Counted"]:
  """The only member of a zip, and the size of the zip."""
  if not packed.seekable():
    packed = io.BytesIO(packed.read(_MOST))
  size = packed.seek(0, os.SEEK_END)
  archive = zipfile.ZipFile(packed)
  members = [
    member
    for member in archive.infolist()
    if not (member.is_dir() or member.filename.startswith("__MACOSX/"))
  ]
  if any(member.filename.endswith(".npy") for member in members):
    raise UserError(f"{name}: numpy arrays (npz); {_AS_TEXT}.")
  if len(members) != 1:
    raise UserError(
      f"{name}: a zip of {len(members):,} files; expected one. Unpack it, and "
      "name the file of puzzles."
    )
  return cast(BinaryIO, archive.open(members[0])), _Counted(packed, size)


class _Counted:
  """A stream that counts the bytes read from it."""

  def __init__(self, stream: Any, taken: int = 0):
    self._stream = stream
    self.taken = taken

  def read(self, size: int = -1) -> bytes:
    data = self._stream.read(size)
    self.taken += len(data)
    return data


class _Unpacked(io.RawIOBase):
  """Decompressed bytes; refuses what unpacks to far more than its size."""

  def __init__(self, source: Any, packed: _Counted, name: str):
    self._source, self._packed, self._name = source, packed, name
    self._given = 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    with _refusing(self._name, "damaged"):
      data = self._source.read1(len(buffer))
    self._given += len(data)
    allowed = max(_MOST_UNPACKED, _MOST_RATIO * self._packed.taken)
    if self._given > allowed:
      raise UserError(
        f"{self._name}: unpacks to more than {allowed:,} bytes, which no file "
        "of puzzles of its size does; unpack it yourself if you trust it."
      )
    buffer[: len(data)] = data
    return len(data)


def _refuse_binary(head: bytes, name: str, wanted: str):
  """Raises a `UserError` if a file does not begin as text does."""
  if head.startswith(tuple(_ENCODINGS)):
    return
  for magic, (kind, advice) in _BINARY.items():
    if head.startswith(magic):
      raise UserError(
        f"{name}: {kind}; expected {wanted}. To use it, {advice}."
      )
  if head[257:262] == b"ustar":
    raise UserError(f"{name}: a tar archive; {_UNPACK}.")
  if 4 * head.count(0) >= max(len(head), 1):
    even, odd = head[::2].count(0), head[1::2].count(0)
    if min(even, odd) == 0 and len(head) > 1:
      raise UserError(
        f"{name}: UTF-16 text without a byte-order mark; convert it with "
        f"iconv -f UTF-16{'BE' if even else 'LE'} -t UTF-8."
      )
    raise UserError(f"{name}: binary data; expected {wanted}.")
