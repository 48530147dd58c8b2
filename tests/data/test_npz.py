"""Archives of arrays that are damaged, or made to take memory or run code."""

import io
import os
import resource
import zipfile

import numpy as np
import pytest

from trm_jax.data import npz
from trm_jax.errors import UserError

GOOD = {"a": np.arange(6).reshape(2, 3), "b": np.array("text"), "c": np.ones(0)}


def header(shape, dtype="<i4", version=(1, 0)):
  stream = io.BytesIO()
  fields = {"descr": dtype, "fortran_order": False, "shape": shape}
  if version == (1, 0):
    np.lib.format.write_array_header_1_0(stream, fields)
  else:
    np.lib.format.write_array_header_2_0(stream, fields)
  return stream.getvalue()


def raw(*content, method=zipfile.ZIP_DEFLATED):
  """An archive with these bytes in place of an array."""

  def write(path):
    with zipfile.ZipFile(path, "w", method) as archive:
      archive.writestr("a.npy", b"".join(content))

  return write


def bomb(path, size=6 * 10**9):
  with (
    zipfile.ZipFile(
      path, "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive,
    archive.open("a.npy", "w", force_zip64=True) as member,
  ):
    member.write(header((size // 4,)))
    for _ in range(3):  # enough for the size in the directory to be changed
      member.write(bytes(1000))
    member._file_size += size - 3000


def objects(path):
  np.savez(path, a=np.array([{"an": "object"}], dtype=object))


class Attack:
  """An object whose pickle makes a folder when it is read."""

  def __reduce__(self):
    return os.mkdir, ("attacked",)


def cut(path):
  np.savez_compressed(path, **GOOD)
  os.truncate(path, path.stat().st_size // 2)


def flipped(path):
  np.savez(path, a=np.arange(999))
  content = bytearray(path.read_bytes())
  content[4000] ^= 1
  path.write_bytes(content)


REFUSED = {
  "bomb": (bomb, r"arrays have 6,000,000,\d+ bytes, more than 4,294,967,296"),
  "more than the file": (
    lambda path: bomb(path, 10**9),
    "than the file can hold",
  ),
  "huge shape": (raw(header((10**9, 10**9))), r"has shape .* but 0 bytes"),
  "many dimensions": (raw(header((1,) * 900)), r"has shape \(1, 1.*\.\.\.\)"),
  "negative shape": (raw(header((-2, -2)), bytes(16)), "has shape"),
  "no bytes an item": (raw(header((10**30,), "<U0")), "neither numbers nor"),
  "long text": (raw(header((), "<U99999999")), "but 0 bytes"),
  "fields": (raw(header((1,), [("a", "<i4")]), bytes(4)), "neither numbers"),
  "another version": (raw(header((1,), version=2), bytes(4)), "version"),
  "deep": (raw(b"\x93NUMPY\1\0\x10\x27" + b"(" * 10_000), "cannot be read"),
  "another method": (
    raw(header((1,)), bytes(4), method=zipfile.ZIP_LZMA),
    "in another way than by deflate",
  ),
  "objects": (objects, "holds object, neither"),
  "a pickle": (
    lambda path: np.savez(path, a=np.array([Attack()])),
    "holds object, neither",
  ),
  "half": (cut, "cannot be read"),
  "a flipped bit": (flipped, "Bad CRC-32"),
  "an array": (
    lambda path: path.write_bytes(header((10**12,))),
    "not a zip file",
  ),
  "a pipe": (os.mkfifo, "not a regular file"),
  "a folder": (os.mkdir, "not a regular file"),
  "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
  "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_archive_of_arrays_is_refused(name, tmp_path):
  write, words = REFUSED[name]
  path = tmp_path / "x.npz"
  write(path)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=words) as error:
    npz.read(path)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 50_000  # kilobytes
  assert str(path) in str(error.value) and len(str(error.value)) < 600
  assert not os.path.exists("attacked")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_by_name(save, tmp_path):
  save(tmp_path / "x.npz", **GOOD)
  found = npz.read(tmp_path / "x.npz")
  assert found.keys() == GOOD.keys()
  for name, array in GOOD.items():
    np.testing.assert_array_equal(found[name], array)
  assert npz.read(tmp_path / "x.npz", ["b"]).keys() == {"b"}
  with pytest.raises(UserError, match="lacks d, e; expected b, d, e"):
    npz.read(tmp_path / "x.npz", ["b", "d", "e"])
