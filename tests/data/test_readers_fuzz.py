"""A thousand damaged files: each is read or refused, and nothing else.

Readers run in a process whose memory is bounded: one that takes more than the
file can justify fails there, not on the machine.
"""

import functools
import gzip
import json
import lzma
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile

import jax
import numpy as np
import pytest
from programs import ROOT, environment

ROOM = 2**30  # bytes beyond what the process has when it begins
SLOWEST = 5.0  # seconds for one file

# Where the package and what the tests share are found.
PATHS = [str(ROOT / folder) for folder in ("", "tests", "tests/run")]

# What stands in for any value of JSON.
NASTY = (
  None, True, False, 0, -1, 1, 7, 10**9, 10**18, -(10**30), 2**63, 0.0, -0.5,
  1e-300, 1e300, float("inf"), float("nan"), "", "x", "é\u2028\x00", "9" * 5000,
  "../../x", [], {}, [[]], [1, 2], [0, 10**12], {"x": 1}, "F8_E4M3", "BF16",
  "I64", "mlp", "attention", "hrm", "multi_latent", "autoregressive",
  "rotary", "learned", "float64", "bfloat16", "arc", "maze",
)  # fmt: skip


def mutate_bytes(content: bytes, random: np.random.Generator) -> bytes:
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


def mutate_value(value, random: np.random.Generator):
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
      value[index] = mutate_value(value[index], random)
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
    value[key] = mutate_value(value[key], random)
  return value


def mutate_json(text: str, random: np.random.Generator) -> str:
  """Damages JSON as text, or what it says."""
  if random.random() < 0.1:
    return random.choice(["[", '{"a":', "1", '"']) * 60_000
  if random.random() < 0.3:
    damaged = mutate_bytes(text.encode(), random)
    return damaged.decode("utf-8", "replace")
  value = json.loads(text)
  for _ in range(random.integers(1, 3)):
    value = mutate_value(value, random)
  return json.dumps(value)


def mutate_safetensors(content: bytes, random: np.random.Generator) -> bytes:
  """Damages the bytes, the header, or the JSON that lies in its metadata."""
  if random.random() < 0.4:
    return mutate_bytes(content, random)
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:end])
  metadata = header.get("__metadata__", {})
  if metadata and random.random() < 0.7:
    name = str(random.choice(["config", "config", "facts", "format"]))
    if name == "format":
      metadata[name] = str(NASTY[random.integers(len(NASTY))])
    else:
      metadata[name] = mutate_json(metadata[name], random)
  else:
    header = mutate_value(header, random)
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + content[end:]


def readers(folder: pathlib.Path):
  """Name -> how often, a good file, how to damage it and how to read it."""
  from conftest import tiny_model
  from safetensors.numpy import save_file
  from test_weights import CONFIG

  from trm_jax import config as config_lib
  from trm_jax.core import network
  from trm_jax.data import csv_rows
  from trm_jax.data.sudoku.rows import csv_format
  from trm_jax.errors import UserError
  from trm_jax.export import published, reference
  from trm_jax.run import weights
  from trm_jax.run.folder import RunFolder
  from trm_jax.solve import calibration

  # Damage elsewhere leaves the model as it was: it is described once.
  network.shapes = functools.cache(network.shapes)
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jax.numpy.asarray(random.normal(size=leaf.shape), leaf.dtype),
    network.shapes(tiny_model()),
  )
  path = folder / "good.safetensors"
  weights.save_weights(path, params, CONFIG, {"step": 7, "names": ["<blank>"]})
  whole = path.read_bytes()
  arrays = reference.params_to_reference(params, tiny_model())
  save_file({f"model.{name}": a for name, a in arrays.items()}, path)
  theirs = path.read_bytes()
  with zipfile.ZipFile(path, "w") as archive:
    for name in ("data.pkl", "version", "data/0"):
      archive.writestr(f"x/{name}", random.bytes(30))
  archived = path.read_bytes()

  def read_published(path):
    read = published.read_arrays(path)
    config, _ = published.complete_config(CONFIG, read)
    read, config, _ = published.arrange_table(
      read, config, None, None, ["<blank>"]
    )
    reference.params_from_reference(read, config_lib.read(config).model)

  def in_folder(name, read):
    def read_as(path):
      path.replace(folder / name)
      read(RunFolder(folder))

    return read_as

  def calibrated(path):
    try:
      value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
      raise UserError(f"no JSON: {error}") from error
    calibration.read(value)(np.array([-1e9, 0.0, 3.0]))

  def as_text(mutate):
    return lambda content, random: mutate(content.decode(), random).encode()

  rng = np.random.default_rng(0)
  q = rng.normal(size=60)
  sample = (ROOT / "tests/recorded/sudoku_sample.csv").read_bytes()
  sudokus = csv_format(9)
  right = rng.random(60) < 1 / (1 + np.exp(-q))
  names = json.dumps(["<blank>", *(f"task{i}" for i in range(5))]).encode()
  in_json = as_text(mutate_json)
  return {
    "weights": (330, whole, mutate_safetensors, weights.load_weights),
    "published": (280, theirs, mutate_safetensors, read_published),
    "archive": (100, archived, mutate_bytes,
                lambda path: published.read_arrays(path.rename(folder / "x"))),
    **{
      name: (80, pack(sample), mutate_bytes,
             lambda path: csv_rows.read(path, sudokus, True))
      for name, pack in (("rows", bytes), ("gz", gzip.compress),
                         ("xz", lzma.compress))
    },
    "names": (60, names, in_json, published.read_names),
    "identifiers": (60, names, in_json,
                    in_folder("identifiers.json", RunFolder.read_identifiers)),
    "config": (120, json.dumps(CONFIG).encode(), in_json, in_folder(
      "config.json", lambda run: config_lib.read(run.read_config()))),
    **{
      kind: (60, json.dumps(calibration.fit(q, right, kind).to_json()).encode(),
             in_json, calibrated)
      for kind in ("temperature", "isotonic")
    },
  }  # fmt: skip


def main():
  """Damages and reads; prints what became of it as JSON."""
  from trm_jax.errors import UserError

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    jobs = readers(folder)
    for _, good, _, read in jobs.values():  # nothing is new to memory then
      path = folder / "good.safetensors"
      path.write_bytes(good)
      try:
        read(path)
      except UserError as error:
        assert "PyTorch" in str(error), error
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    told = {}
    for number, (job, (count, good, mutate, read)) in enumerate(jobs.items()):
      counts = {"read": 0, "refused": 0}
      slowest, crashes = 0.0, []
      for k in range(count):
        path = folder / "damaged.safetensors"
        path.write_bytes(mutate(good, np.random.default_rng((number, k))))
        started = time.perf_counter()
        try:
          read(path)
          counts["read"] += 1
        except UserError:
          counts["refused"] += 1
        except BaseException:  # what the test is about
          crashes.append(f"case {(number, k)}: {traceback.format_exc()}")
        slowest = max(slowest, time.perf_counter() - started)
      told[job] = counts | {"slowest": slowest, "crashes": crashes[:3]}
  print(json.dumps(told))


pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def told():
  done = subprocess.run(
    [sys.executable, "-c", "import test_readers_fuzz as fuzz; fuzz.main()"],
    env=environment(devices=1) | {"PYTHONPATH": os.pathsep.join(PATHS)},
    cwd=pathlib.Path(__file__).parent,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_damaged_files_are_read_or_refused(told):
  for job, found in told.items():
    assert not found["crashes"], job + "\n" + "\n".join(found["crashes"])
  assert sum(f["read"] + f["refused"] for f in told.values()) >= 1000


def test_the_damage_is_neither_all_fatal_nor_all_harmless(told):
  for job, found in told.items():
    # A bad row is left out; a bad byte spoils what is compressed.
    assert found["refused"] > 20 or job == "rows", job
    assert found["read"] > 0 or job in ("archive", "gz", "xz"), job


def test_no_damage_makes_a_reader_hang(told):
  for job, found in told.items():
    assert found["slowest"] < SLOWEST, job
