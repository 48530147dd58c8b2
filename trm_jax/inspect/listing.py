"""The text of a compiled program, taken apart: arrays, instructions, frames."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

_BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
  "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16,
  "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
  """An array as the program holds it.

  Attributes:
    dtype: in XLA's words, as "bf16".
    dims: its shape.
    order: dimensions from the one that is contiguous outwards.
    tile: what the last dimensions in memory are padded to.
    space: memory that it is in; 0 is the main one.
  """

  dtype: str
  dims: tuple[int, ...]
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def bytes(self) -> int:
    """Of the values alone."""
    return math.prod(self.dims) * _BITS.get(self.dtype, 0) // 8

  @property
  def padded_bytes(self) -> int:
    """With the padding of its tiles."""
    if not self.tile or not self.dims:
      return self.bytes
    order = self.order or tuple(reversed(range(len(self.dims))))
    dims = [self.dims[i] for i in reversed(order)]
    for i, size in enumerate(reversed(self.tile), start=1):
      if i <= len(dims):
        dims[-i] = -(-dims[-i] // size) * size
    return math.prod(dims) * _BITS.get(self.dtype, 0) // 8

  @property
  def traffic(self) -> int:
    """Bytes of main memory that reading or writing it moves."""
    return self.padded_bytes if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction; `arrays` are the parts of its value, flattened."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  inside: str
  attributes: str

  def attribute(self, name: str) -> str | None:
    """The value of an attribute that names computations or numbers."""
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
    return found[1] if found else None

  def called(self, name: str) -> list[str]:
    """The computations that an attribute names."""
    return re.findall(r"[\w.\-]+", self.attribute(name) or "")

  @property
  def frame(self) -> int:
    """Where it stands in the table of stack frames; 0 if nowhere."""
    found = re.search(r"stack_frame_id=(\d+)", self.attributes)
    return int(found[1]) if found else 0

  @property
  def op_name(self) -> str:
    """What JAX calls it."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in their order; the root is what they amount to."""

  name: str
  instructions: Mapping[str, Instruction]
  root: Instruction

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """By their numbers."""
    found = [i for i in self.instructions.values() if i.opcode == "parameter"]
    return sorted(found, key=lambda one: int(one.inside))

  @functools.cached_property
  def users(self) -> Mapping[str, list[tuple[Instruction, int]]]:
    """Who takes an instruction as which operand."""
    found: dict[str, list[tuple[Instruction, int]]] = {}
    for one in self.instructions.values():
      for place, operand in enumerate(one.operands):
        found.setdefault(operand, []).append((one, place))
    return found


def computations(text: str) -> tuple[dict[str, Computation], Computation]:
  """Every computation by its name, and the one that is the program.

  Raises:
    ValueError: the text is not that of a compiled program.
  """
  found: dict[str, Computation] = {}
  entry = None
  name, is_entry, instructions, root = "", False, {}, None
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
      name, is_entry, instructions, root = head[2], bool(head[1]), {}, None
    elif line.startswith("}") and name and root:
      found[name] = Computation(name, instructions, root)
      entry = found[name] if is_entry else entry
      name = ""
    elif name and (parts := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
      one = _instruction(parts[2], parts[3])
      instructions[one.name] = one
      root = one if parts[1] else root
  if entry is None:
    raise ValueError("this is no text of a compiled program: it has no ENTRY")
  return found, entry


def _instruction(name: str, text: str) -> Instruction:
  text = re.sub(r"/\*.*?\*/", "", text)
  end = _close(text, 0) + 1 if text.startswith("(") else text.index(" ")
  shape, rest = text[:end], text[end:].lstrip()
  at = rest.index("(")
  end = _close(rest, at)
  inside, attributes = rest[at + 1 : end], rest[end + 1 :]
  operands = ()
  if rest[:at] not in ("constant", "parameter"):
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(
    name, rest[:at], _arrays(shape), operands, inside, attributes
  )


def _close(text: str, start: int) -> int:
  """The place of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i
  raise ValueError(f"a bracket is not closed: {text:.80}")


def _arrays(shape: str) -> tuple[Array, ...]:
  found = []
  for dtype, dims, layout in re.findall(
    r"([a-z]\w*)\[([\d,<=\s]*)\](?:\{([^}]*)\})?", shape
  ):
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    found.append(
      Array(
        dtype,
        _numbers(dims),
        _numbers(order),
        _numbers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
      )
    )
  return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, re.findall(r"\d+", text)))


def frames(text: str) -> dict[int, tuple[str, str, int, int]]:
  """Stack frames: number -> (file, function, line, number of the caller)."""
  tables: dict[str, dict[int, str]] = {}
  current = None
  for line in text.splitlines():
    if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
      current = tables.setdefault(line, {})
    elif current is not None and (row := re.match(r"(\d+) (.*)", line)):
      current[int(row[1])] = row[2]
    elif re.match(r"(ENTRY )?%", line):
      break
  names = {
    kind: {number: json.loads(value) for number, value in rows.items()}
    for kind, rows in tables.items()
    if kind in ("FileNames", "FunctionNames")
  }

  def field(row: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", row)
    return int(found[1]) if found else 0

  rows = tables.get("StackFrames", {})
  parents = {n: field(row, "parent_frame_id") for n, row in rows.items()}
  # Callers come first, and none is its own: where the numbers say so, they
  # are written plus one.
  shift = any(parent == number for number, parent in parents.items())
  found = {}
  for number, row in rows.items():
    place = tables["FileLocations"][field(row, "file_location_id")]
    found[number] = (
      names["FileNames"][field(place, "file_name_id")],
      names["FunctionNames"][field(place, "function_name_id")],
      field(place, "line"),
      parents[number] - shift,
    )
  return found


def dot_flops(computation: Computation, one: Instruction) -> float:
  """Multiplications and additions of a matrix product."""
  left = computation.instructions[one.operands[0]].arrays[0]
  axes = one.attribute("lhs_contracting_dims") or ""
  summed = math.prod(left.dims[int(i)] for i in re.findall(r"\d+", axes))
  return 2.0 * math.prod(one.arrays[0].dims) * summed


def convolution_flops(computation: Computation, one: Instruction) -> float:
  """Those of a convolution, which is a TPU's matrix product.

  As XLA counts: places in the padding and between dilations are free.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
  assert labels, one.attributes
  left, right = (computation.instructions[n].arrays[0] for n in one.operands)
  out = one.arrays[0]
  window = one.attribute("window") or ""

  def field(name: str, default: Callable[[int], str]) -> list[str]:
    found = re.search(rf"\b{name}=(\S+?)(?=[\s}}])", window)
    rank = sum(letter.isdigit() for letter in labels[1])
    return found[1].split("x") if found else [default(i) for i in range(rank)]

  sizes = field("size", lambda _: "1")
  strides = field("stride", lambda _: "1")
  pads = field("pad", lambda _: "0_0")
  left_gaps = field("lhs_dilate", lambda _: "1")
  right_gaps = field("rhs_dilate", lambda _: "1")
  places = 1
  for i in range(len(sizes)):
    length = left.dims[labels[1].index(str(i))]
    outputs = out.dims[labels[3].index(str(i))]
    gap = int(left_gaps[i])
    at = (
      np.arange(outputs)[:, None] * int(strides[i])
      + np.arange(int(sizes[i])) * int(right_gaps[i])
      - int(pads[i].split("_")[0])
    )
    inside = (at >= 0) & (at <= (length - 1) * gap) & (at % gap == 0)
    places *= int(inside.sum())
  groups = int(one.attribute("batch_group_count") or 1)
  batch = left.dims[labels[1].index("b")] // groups
  summed = right.dims[labels[2].index("i")]
  features = right.dims[labels[2].index("o")]
  return 2.0 * batch * features * summed * places
