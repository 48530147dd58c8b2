"""Seeded damage to files: each function takes bytes and a generator."""

import functools
import gzip
import io
import json
import os
import pathlib
import zipfile

import numpy as np

# What stands in for any value of JSON.
NASTY = (
  None, True, False, 0, -1, 1, 7, 10**9, 10**18, -(10**30), 2**63, 0.0, -0.5,
  1e-300, 1e300, float("inf"), float("nan"), "", "x", "é\u2028\x00", "9" * 5000,
  "../../x", "$\\frac$", "[/b]", [], {}, [[]], [1, 2], [0, 10**12], {"x": 1},
  "F8_E4M3", "BF16", "I64", "mlp", "attention", "hrm", "multi_latent",
  "autoregressive", "rotary", "learned", "float64", "bfloat16", "arc", "maze",
)  # fmt: skip


def of_bytes(content: bytes, random: np.random.Generator) -> bytes:
  """Flips, cuts, inserts, repeats or moves some of the bytes."""
  data = bytearray(content)
  for _ in range(random.integers(1, 4)):
    # Damage at the beginning is where the structure is.
    end = len(data) if random.random() < 0.3 else min(len(data), 600)
    start = int(random.integers(0, max(end, 1)))
    length = int(random.integers(1, 40))
    noise = random.integers(0, 256, length, np.uint8).tobytes()
    kind = random.integers(0, 7)
    if kind == 0 and data:
      start = min(start, len(data) - 1)
      data[start] ^= 1 << int(random.integers(0, 8))
    elif kind == 1:
      del data[start:]
    elif kind == 2:
      data[start:start] = noise
    elif kind == 3:
      del data[start : start + length]
    elif kind == 4:
      data[start : start + length] = noise
    elif kind == 5:
      data[start:start] = data[start : start + length]
    else:
      near = int.from_bytes(data[:8], "little") + int(random.integers(-9, 9))
      sizes = (0, 7, 1000, 10**8, 2**31, 2**63, 2**64 - 1, near, near, near)
      size = sizes[random.integers(len(sizes))] % 2**64
      data[:8] = size.to_bytes(8, "little")
  return bytes(data)


def of_text(content: bytes, random: np.random.Generator) -> bytes:
  """Damages lines of text: quotes, lengths, order, ends, encoding."""
  lines = content.split(b"\n")
  at = int(random.integers(len(lines)))
  kind = random.integers(0, 10)
  if kind == 0:
    lines.insert(at, lines[at])
  elif kind == 1:
    del lines[at]
  elif kind == 2:
    lines[at] = b'"' + lines[at]
  elif kind == 3:
    lines[at] = lines[at] * int(
      random.integers(2, 200_000 // (len(lines[at]) + 1) + 3)
    )
  elif kind == 4:
    lines[at] = random.choice([b"nan", b"1e999", b"-1", b"9" * 5000, b"\x00"])
  elif kind == 5:
    cut = int(random.integers(len(lines[at]) + 1))
    lines[at] = lines[at][cut:] + lines[at - 1][:cut]
  elif kind == 6:
    end = random.choice([b"\r", b"\r\n", b"\x0b", b"\n\n"])
    return bytes(end).join(lines)
  elif kind == 7:
    encoding = str(random.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return content.decode("latin-1").encode(encoding)
  else:
    return of_bytes(content, random)
  return b"\n".join(lines)


@functools.cache
def _zeros(size: int) -> bytes:
  return gzip.compress(bytes(size), 1)


def of_gzip(content: bytes, random: np.random.Generator) -> bytes:
  """Damages compressed text, before or behind its compression."""
  if random.random() < 0.05:
    return content + _zeros(10**8) * 20  # two gigabytes
  if random.random() < 0.5:
    return of_bytes(content, random)
  return gzip.compress(of_text(gzip.decompress(content), random), 1)


def of_value(value, random: np.random.Generator):
  """Replaces, drops, renames or adds something in a value of JSON."""
  inside = isinstance(value, (dict, list)) and value
  if not inside or random.random() < 0.15:
    return NASTY[random.integers(len(NASTY))]
  if isinstance(value, list):
    value = list(value)
    index = int(random.integers(len(value)))
    kind = random.integers(0, 4)
    if kind == 0:
      del value[index]
    elif kind == 1:
      value.insert(index, value[index])
    else:
      value[index] = of_value(value[index], random)
    return value
  value = dict(value)
  key = list(value)[random.integers(len(value))]
  kind = random.integers(0, 8)
  if kind == 0:
    del value[key]
  elif kind == 1:
    value[str(NASTY[random.integers(len(NASTY))])] = value.pop(key)
  elif kind == 2:
    value["more"] = value[key]
  else:
    value[key] = of_value(value[key], random)
  return value


def of_json(content: bytes, random: np.random.Generator) -> bytes:
  """Damages JSON, or JSON lines, as text, or what it says."""
  kind = random.random()
  if kind < 0.1:
    return str(random.choice(["[", '{"a":', "1", '"', "-"])).encode() * 60_000
  if kind < 0.2:  # a long number, or a key twice
    piece = random.choice([b": " + b"9" * 5000, b': 1, "step": 2, "step": 3'])
    return content.replace(b":", bytes(piece) + b", :", 1).replace(b", :", b",")
  if kind < 0.4:
    return of_bytes(content, random)
  lines = content.decode().splitlines()
  try:
    at = int(random.integers(len(lines)))
    values, ends = [json.loads(lines[at])], "\n"
    lines = [lines[:at], lines[at + 1 :]]
  except ValueError:
    values, ends, lines = [json.loads(content)], "", [[], []]
  for _ in range(random.integers(1, 3)):
    values = [of_value(values[0], random)]
  return (
    ends.join([*lines[0], json.dumps(values[0]), *lines[1]]) + ends
  ).encode()


def of_safetensors(content: bytes, random: np.random.Generator) -> bytes:
  """Damages the bytes, the header, or the JSON that lies in its metadata."""
  if random.random() < 0.4:
    return of_bytes(content, random)
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:end])
  metadata = header.get("__metadata__", {})
  if metadata and random.random() < 0.7:
    name = str(random.choice(["config", "config", "facts", "format"]))
    if name == "format":
      metadata[name] = str(NASTY[random.integers(len(NASTY))])
    else:
      damaged = of_json(metadata[name].encode(), random)
      metadata[name] = damaged.decode("utf-8", "replace")
  else:
    header = of_value(header, random)
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + content[end:]


class Plant:
  """Code within a pickle, which makes a folder if it is ever run."""

  path = "planted"

  def __reduce__(self):
    return os.mkdir, (self.path,)


def of_npz(content: bytes, random: np.random.Generator) -> bytes:
  """Damages an archive of arrays, or one of the arrays."""
  if random.random() < 0.3:
    return of_bytes(content, random)
  with np.load(io.BytesIO(content)) as archive:
    arrays = dict(archive)
  name = list(arrays)[random.integers(len(arrays))]
  kind, file = random.integers(0, 4), io.BytesIO()
  if kind == 0:
    del arrays[name]
  elif kind == 1:
    arrays[name] = of_array(arrays[name], random)
  np.savez(file, **arrays)
  if kind > 1:  # what the header says is not what follows
    name = "more.npy" if kind == 2 else f"{name}.npy"
    with (
      zipfile.ZipFile(
        file, "a", zipfile.ZIP_DEFLATED, compresslevel=1
      ) as whole,
      whole.open(name, "w") as member,
    ):
      member.write(npy_header(random))
      if random.random() < 0.05:
        for _ in range(1500):  # megabytes
          member.write(bytes(10**6))
  return file.getvalue()


def npy_header(random: np.random.Generator) -> bytes:
  """The header of an array that is far larger than its file."""
  file = io.BytesIO()
  shape = [(10**12,), (1500, 10**6), (2**62, 8), (0, 2**40), ()]
  np.lib.format.write_array_header_1_0(
    file,
    {
      "descr": str(random.choice(["|u1", "<f8", "<i4", "|O", "<U100000"])),
      "fortran_order": bool(random.integers(2)),
      "shape": shape[random.integers(len(shape))],
    },
  )
  return file.getvalue()


def of_array(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Another dtype, shape or value."""
  kind = random.integers(0, 6)
  if kind == 0 and array.size:
    array = array.copy()
    values = [np.nan, np.inf, -1, 255, 2**31 - 1]
    value = np.float64(values[random.integers(len(values))])
    with np.errstate(all="ignore"):
      if array.dtype.kind in "iufb":
        array.flat[random.integers(array.size)] = value.astype(array.dtype)
    return array
  if kind == 1:
    kinds = [bool, np.float16, np.int64, np.complex64, "U3", "S3"]
    with np.errstate(all="ignore"):
      return array.astype(kinds[random.integers(len(kinds))], casting="unsafe")
  if kind == 2:
    return array[..., None]
  if kind == 3:
    return array[: len(array) // 2] if array.ndim else np.zeros(3)
  if kind == 4:
    return np.array([Plant()], object)
  return np.empty(0)


def of_npy(content: bytes, random: np.random.Generator) -> bytes:
  """Damages a file of one array."""
  if random.random() < 0.4:
    return of_bytes(content, random)
  if random.random() < 0.3:
    return npy_header(random)
  file = io.BytesIO()
  np.save(file, of_array(np.load(io.BytesIO(content)), random))
  return file.getvalue()


BY_SUFFIX = {
  ".json": of_json, ".jsonl": of_json, ".csv": of_text, ".txt": of_text,
  ".gz": of_gzip, ".npz": of_npz, ".npy": of_npy,
  ".safetensors": of_safetensors,
}  # fmt: skip


def of_file(
  path: pathlib.Path, random: np.random.Generator, damage=None, rename=True
):
  """Damages a file in place, or puts something else there."""
  if random.random() > 0.06 or not rename:
    damage = damage or BY_SUFFIX.get(path.suffix, of_bytes)
    path.write_bytes(damage(path.read_bytes(), random))
    return
  path.unlink()
  kind = random.integers(0, 6)
  if kind == 0:
    path.mkdir()
  elif kind == 1:
    os.mkfifo(path)
  elif kind == 2:
    path.symlink_to(path.with_name("nowhere"))
  elif kind == 3:
    path.symlink_to(path)
  elif kind == 4:
    path.symlink_to("/dev/zero")
  else:
    path.touch()


def of_tree(
  folder: pathlib.Path, random: np.random.Generator, damage=None, rename=True
):
  """Damages or deletes one of the files of a folder.

  Args:
    folder: the folder.
    random: the generator.
    damage: of bytes; by default that of the file's suffix.
    rename: whether a file may be missing, or something else be there.
  """
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  path = files[random.integers(len(files))]
  if len(files) > 1 and rename and random.random() < 0.1:
    path.unlink()
  else:
    of_file(path, random, damage, rename)
