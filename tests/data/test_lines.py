"""Puzzle files are opened by content; what is no text is refused in a line."""

import bz2
import gzip
import io
import lzma
import os
import time
import zipfile

import numpy as np
import pytest

from trm_jax.data import csv_rows, datasets, lines, questions
from trm_jax.data.sudoku.rows import csv_format
from trm_jax.data.sudoku.task import SudokuData, sudoku_task
from trm_jax.errors import UserError

TASK = sudoku_task(4)
PUZZLE, ANSWER = "12..3.1..1.34..1", "1234341221434321"
TEXT = f"# easy\r\n{PUZZLE}\r{PUZZLE}\n\n{PUZZLE}"
NUMBERED = list(enumerate(["# easy", PUZZLE, PUZZLE, "", PUZZLE], 1))


def zipped(*members):
  made = io.BytesIO()
  with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return made.getvalue()


def saved(save, *arrays):
  made = io.BytesIO()
  save(made, *arrays)
  return made.getvalue()


PACKED = {
  "plain": lambda data: data,
  "bom": lambda data: b"\xef\xbb\xbf" + data,
  "gz": gzip.compress,
  "two gz": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
  "bz2": bz2.compress,
  "xz": lzma.compress,
  "zip": lambda data: zipped(("a/", b""), ("a/b.txt", data)),
  "zip of a mac": lambda data: zipped(("b", data), ("__MACOSX/b", b"\0")),
  "utf-16": lambda data: data.decode().encode("utf-16"),
  "utf-32": lambda data: data.decode().encode("utf-32"),
}


class Pipe(io.RawIOBase):
  """Bytes that arrive in small parts, and cannot be sought."""

  def __init__(self, data):
    self.data = io.BytesIO(data)

  def readable(self):
    return True

  def readinto(self, buffer):
    return self.data.readinto(memoryview(buffer)[:100])


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("pipe", [io.BytesIO, Pipe])
def test_lines_of_any_container(kind, pipe):
  stream = pipe(PACKED[kind](TEXT.encode()))
  assert list(lines.read(stream, "file", "text")) == NUMBERED


def test_lines_come_as_they_arrive():
  reader, writer = os.pipe()
  with open(reader, "rb", buffering=0) as stream:
    found = questions.arriving(stream, TASK, "pipe")
    for ending in (b"\n", b"\r\n", b"\n"):
      os.write(writer, PUZZLE.encode() + ending)
      assert TASK.render(next(found).tokens) == PUZZLE
    os.close(writer)
    assert not list(found)


REFUSED = {
  "parquet": (b"PAR1\x15\4", r"a parquet file; .*write its table as csv"),
  "npy": (saved(np.save, np.zeros(3)), r"a numpy array"),
  "npz": (saved(np.savez, np.zeros(3)), r"npz"),
  "zstd": (b"(\xb5/\xfd\4", r"zstd.*unpack it first"),
  "tar": (b"a" * 257 + b"ustar\x0000", r"a tar archive; unpack it first"),
  "two files": (zipped(("a", b""), ("b", b"")), r"a zip of 2 files"),
  "no file": (zipped(), r"a zip of 0 files"),
  "twice": (gzip.compress(gzip.compress(b"1")), r"compressed twice"),
  "utf-16": (PUZZLE.encode("utf-16-le"), r"iconv -f UTF-16LE -t UTF-8"),
  "utf-16be": (PUZZLE.encode("utf-16-be"), r"iconv -f UTF-16BE -t UTF-8"),
  "zeros": (bytes(1000), r"binary data; expected a Sudoku"),
  "cut gz": (gzip.compress(os.urandom(99))[:-9], r"cannot be unpacked.*damag"),
  "cut bz2": (bz2.compress(os.urandom(99))[:-9], r"cannot be unpacked.*damag"),
  "cut xz": (lzma.compress(os.urandom(99))[:-9], r"cannot be unpacked.*damag"),
  "cut zip": (zipped(("a", b"1" * 99))[:60], r"cannot be unpacked.*damaged"),
  "bent gz": (b"\x1f\x8b" + os.urandom(99), r"cannot be unpacked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused(name):
  data, message = REFUSED[name]
  with pytest.raises(UserError, match=rf"^file: .*{message}"):
    questions.read(io.BytesIO(data), TASK, "file")


@pytest.mark.parametrize(
  ("pack", "line", "told"),
  [
    (gzip.compress, b"a\n", "more than 10,000 lines are no puzzle"),
    (bz2.compress, b"a" * 99 + b"\n", "more than 10,000 lines are no puzzle"),
    (gzip.compress, b"#" * 99 + b"\n", "unpacks to more than 16,000,000 bytes"),
    (lzma.compress, b"#", "unpacks to more than 16,000,000 bytes"),
    (
      lambda data: zipped(("a", data)),
      b"#" * 9999 + b"\n",
      "unpacks to more than 16,000,000 bytes",
    ),
  ],
  ids=["gz", "bz2", "comments", "a line", "zip"],
)
def test_bombs_end_soon(tmp_path, pack, line, told):
  path = tmp_path / "bomb"
  head = f"question,answer\n{PUZZLE},{ANSWER}\n".encode()
  path.write_bytes(pack(head + line * (17_000_000 // len(line))))
  started = time.perf_counter()
  with pytest.raises(UserError, match=told):
    csv_rows.read(path, csv_format(4), skip_bad_rows=True)
  with pytest.raises(UserError, match=told), open(path, "rb") as stream:
    questions.read(stream, TASK, "file")
  assert time.perf_counter() - started < 20


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_pipes_and_devices_are_no_files(tmp_path, kind):
  path = tmp_path / kind
  if kind == "fifo":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to(os.devnull)
  else:
    path.mkdir()
  told = "Is a directory" if kind == "folder" else "a pipe or a device"
  data = SudokuData(size=4, train=str(path), test="", cache_dir=str(tmp_path))
  with pytest.raises(UserError, match=told):
    csv_rows.read(path, csv_format(4), skip_bad_rows=True)
  with pytest.raises(UserError, match=told):
    datasets.prepare(data, print)
