"""What a compiled program does: what runs, how often, and what it moves.

XLA's own `cost_analysis` counts the body of a loop once. Here every
instruction counts as often as it runs: the trip counts of loops are read from
the text, from their `known_trip_count` or from their conditions.

Bytes are those of the device's main memory, with the padding of its tiles.
Arrays that the compiler placed in faster memory (`S(1)` is a TPU's vector
memory) cost nothing; of an array that is only sliced, gathered from or updated
in part, the part counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from trm_jax.inspect import listing
from trm_jax.inspect.listing import (
  Array,
  Computation,
  Instruction,
  convolution_flops,
  dot_flops,
)

# Name things and move none.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier", "while",
  "conditional", "add-dependency",
}  # fmt: skip

# Run another computation as it stands, some of them on the SparseCore.
_CALLS = {"call", "call-start", "async-start"}

# Custom calls of the TPU's compiler that only name memory.
_FREE_CALLS = {"ConcatBitcast", "AllocateBuffer", "SliceBitcast"}

_COLLECTIVES = {
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
}  # fmt: skip

# Same bits, other name.
_RENAMES = {"bitcast", "reshape", "copy", "convert", "copy-done", "copy-start"}


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of the program.

  Attributes:
    name: of its instruction.
    trips: how often its body runs each time; None if data decide.
    where: the line of Python that it comes from.
    recursive: whether it is one of the recursion's scans.
  """

  name: str
  trips: int | None
  where: str
  recursive: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the program.

  Attributes:
    kind: as "all-reduce".
    dtypes: of what it moves.
    bytes: of its value on one device: of a gather the whole.
    sent: bytes that each device must send.
    groups: how many groups of devices talk among themselves.
    group_size: devices in each.
    times: how often a call of the program runs it.
    recursive: whether it is inside a scan of the recursion.
    op_name: what JAX calls what it was made of.
    where: the line of Python, likewise.
  """

  kind: str
  dtypes: tuple[str, ...]
  bytes: int
  sent: float
  groups: int
  group_size: int
  times: int
  recursive: bool
  op_name: str
  where: str


@dataclasses.dataclass(frozen=True)
class Counts:
  """What one call of a program does on one device.

  Attributes:
    flops: multiplications and additions of matrix products.
    bytes: of main memory, read and written.
    fusions: in the text.
    fusions_run: as they run.
    cycles: what the compiler itself takes its work to cost, in cycles of the
      chip, as far as it says.
    collectives: all of them.
    loops: all of them.
  """

  flops: float
  bytes: float
  fusions: int
  fusions_run: int
  cycles: float
  collectives: tuple[Collective, ...]
  loops: tuple[Loop, ...]


@dataclasses.dataclass(frozen=True)
class _Run:
  """A computation, how often it runs, and the loops that it is inside of."""

  computation: Computation
  times: int
  loops: tuple[Loop, ...]


class Module:
  """A program, from the text of `jax.stages.Compiled.as_text`.

  Args:
    text: of an optimised module.
    recursion: end of the path of the Python file whose loops are recursion.
  """

  def __init__(self, text: str, recursion: str = "core/recursion.py"):
    self._recursion = recursion
    self.computations, self.entry = listing.computations(text)
    self._frames = listing.frames(text)
    found = re.search(r"\b(?:num_partitions|replica_count)=(\d+)", text)
    self.devices = int(found[1]) if found else 1

  def count(self) -> Counts:
    """Adds up what one call does; of branches the costliest."""
    flops = moved = cycles = 0.0
    fusions = fusions_run = 0
    collectives, loops = [], {}
    for run in self._runs(self.entry, 1, ()):
      flops += run.times * self._flops(run.computation)
      recursive = any(loop.recursive for loop in run.loops)
      for loop in run.loops:
        loops[loop.name] = loop
      for one in run.computation.instructions.values():
        moved += run.times * self.traffic(run.computation, one)
        fused = one.opcode == "fusion"
        fusions += fused
        fusions_run += run.times * fused
        cycles += run.times * _cycles(one)
        for made in self._collectives(run.computation, one):
          collectives.append(self._describe(made, run.times, recursive))
    return Counts(
      flops, moved, fusions, fusions_run, cycles,
      tuple(collectives), tuple(loops.values()),
    )  # fmt: skip

  def stack(self, frame: int) -> list[tuple[str, str, int]]:
    """(file, function, line) of a stack frame and its callers, inmost first."""
    found = []
    while frame in self._frames and len(found) < len(self._frames):
      *place, frame = self._frames[frame]
      found.append(tuple(place))
    return found

  def _where(self, one: Instruction) -> str:
    stack = self.stack(one.frame)
    if not stack:
      return ""
    file, function, line = stack[0]
    return f"{'/'.join(file.split('/')[-2:])}:{line} {function}"

  def _runs(
    self, computation: Computation, times: int, loops: tuple[Loop, ...]
  ) -> Iterator[_Run]:
    yield _Run(computation, times, loops)
    for one in computation.instructions.values():
      if one.opcode == "while":
        loop = Loop(
          one.name,
          self._trips(computation, one),
          self._where(one),
          any(f.endswith(self._recursion) for f, *_ in self.stack(one.frame)),
        )
        trips = 1 if loop.trips is None else loop.trips
        inside = (*loops, loop)
        body, condition = self._loop(one)
        yield from self._runs(body, times * trips, inside)
        yield from self._runs(condition, times * (trips + 1), inside)
      elif one.opcode == "conditional":
        names = [
          *one.called("branch_computations"),
          *one.called("true_computation"),
          *one.called("false_computation"),
        ]
        branches = [
          list(self._runs(self.computations[name], times, loops))
          for name in names
        ]
        yield from max(branches, key=self._cost)
      elif one.opcode in _CALLS:
        for name in one.called("to_apply") + one.called("calls"):
          yield from self._runs(self.computations[name], times, loops)

  def _cost(self, runs: Sequence[_Run]) -> tuple[float, float]:
    flops = sum(run.times * self._flops(run.computation) for run in runs)
    moved = sum(
      run.times * self.traffic(run.computation, one)
      for run in runs
      for one in run.computation.instructions.values()
    )
    return flops, moved

  def _loop(self, one: Instruction) -> tuple[Computation, Computation]:
    (body,), (condition,) = one.called("body"), one.called("condition")
    return self.computations[body], self.computations[condition]

  def _trips(self, around: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs; None if that is not in the text."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    body, condition = self._loop(loop)
    compared = self._compared(condition)
    if compared is None:
      return None
    place, limit, is_within = compared
    if isinstance(limit, tuple):  # carried along, and the same all the time
      limit = self._invariant(around, loop, body, limit[0])
    first = self._initial(around, loop, place)
    step = self._step(body, place)
    if limit is None or first is None or not step:
      return None
    last = limit + (1 if step > 0 else -1) if is_within else limit
    return max(0, -(-(last - first) // step))

  def _compared(
    self, condition: Computation
  ) -> tuple[int, int | tuple[int], bool] | None:
    """What a condition compares.

    Returns:
      The place of the counter in what the loop carries; the limit, or in a
      tuple its place; and whether the limit itself is still within.
    """
    root, arguments, scope = condition.root, None, condition
    if root.opcode == "fusion":
      arguments = root.operands
      scope = self.computations[root.called("calls")[0]]
      root = scope.root
    if root.opcode != "compare":
      return None
    direction = root.attribute("direction") or ""
    sides = []
    for name in root.operands:
      one = _original(scope, name)
      if arguments is not None and one.opcode == "parameter":
        one = _original(condition, arguments[int(one.inside)])
      if one.opcode == "get-tuple-element":
        sides.append((int(one.attribute("index") or 0),))
      else:
        sides.append(_constant(one))
    mirror = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE", "NE": "NE"}
    if direction not in mirror:
      return None
    left, right = sides
    if not isinstance(left, tuple):
      left, right, direction = right, left, mirror[direction]
    if not isinstance(left, tuple) or right is None:
      return None
    return left[0], right, direction in ("LE", "GE")

  def _initial(
    self, around: Computation, loop: Instruction, place: int
  ) -> int | None:
    start = _original(around, loop.operands[0])
    if start.opcode != "tuple":
      return None
    return _constant(_original(around, start.operands[place]))

  def _invariant(
    self, around: Computation, loop: Instruction, body: Computation, place: int
  ) -> int | None:
    if body.root.opcode != "tuple":
      return None
    after = _original(body, body.root.operands[place])
    same = (
      after.opcode == "get-tuple-element"
      and int(after.attribute("index") or 0) == place
    )
    return self._initial(around, loop, place) if same else None

  def _step(self, body: Computation, place: int) -> int | None:
    """What the body adds to the counter."""
    if body.root.opcode != "tuple":
      return None
    one = _original(body, body.root.operands[place])
    scope, arguments = body, None
    if one.opcode == "fusion":
      arguments = one.operands
      scope = self.computations[one.called("calls")[0]]
      one = scope.root
    if one.opcode != "add":
      return None
    parts = []
    for name in one.operands:
      part = _original(scope, name)
      if arguments is not None and part.opcode == "parameter":
        part = _original(body, arguments[int(part.inside)])
      parts.append(_constant(part))
    known = [part for part in parts if part is not None]
    return known[0] if len(known) == 1 else None

  def _flops(self, computation: Computation) -> float:
    """Of matrix products, in what it fuses too."""
    found = 0.0
    for one in computation.instructions.values():
      if one.opcode == "fusion":
        found += sum(
          self._flops(self.computations[name]) for name in one.called("calls")
        )
      elif one.opcode == "dot":
        found += dot_flops(computation, one)
      elif one.opcode == "convolution":
        found += convolution_flops(computation, one)
    return found

  def traffic(self, computation: Computation, one: Instruction) -> int:
    """Bytes of main memory that one run of an instruction moves."""
    opcode = one.opcode
    if opcode in _FREE | _CALLS or opcode.endswith(("-done", "-update")):
      return 0
    if opcode == "custom-call":
      target = (one.attribute("custom_call_target") or "").strip('"')
      if target in _FREE_CALLS:
        return 0
    if opcode == "fusion":
      (name,) = one.called("calls")
      fused = self.computations[name]
      read = sum(
        min(self._read(fused, parameter), parameter.arrays[0].traffic)
        for parameter in fused.parameters
        if parameter.arrays
      )
      return read + self._written(fused, fused.root, one.arrays)
    operands = [computation.instructions[name] for name in one.operands]
    sources = [array for operand in operands for array in operand.arrays]
    if opcode in ("copy-start", "slice-start"):
      # (destination, source, context) and ((source), destination, context).
      to = one.arrays[0 if opcode == "copy-start" else 1]
      return _part(sources[0], to) + to.traffic
    if opcode in ("slice", "dynamic-slice", "gather"):
      (to,) = one.arrays
      return _part(sources[0], to) + to.traffic
    if opcode in ("dynamic-update-slice", "scatter"):
      update = sources[-1] if opcode == "scatter" else sources[1]
      return update.traffic + 2 * _part(one.arrays[0], update)
    base = opcode.removesuffix("-start")
    if base != opcode:
      return sum(array.traffic for array in sources) * 2
    return sum(array.traffic for array in (*sources, *one.arrays))

  def _read(self, fused: Computation, one: Instruction) -> int:
    """Bytes that a fusion reads of what it is given."""
    total = 0
    for user, place in fused.users.get(one.name, []):
      opcode = user.opcode
      if opcode in ("bitcast", "reshape", "get-tuple-element"):
        total += self._read(fused, user)
      elif opcode in ("dynamic-slice", "slice", "gather") and place == 0:
        total += _part(one.arrays[0], user.arrays[0])
      elif opcode == "dynamic-update-slice" and place == 0:
        continue  # updated in place
      elif opcode == "scatter" and place == 0:
        update = fused.instructions[user.operands[-1]].arrays[0]
        total += _part(one.arrays[0], update)
      elif opcode == "fusion":
        inner = self.computations[user.called("calls")[0]]
        total += self._read(inner, inner.parameters[place])
      else:
        return one.arrays[0].traffic
    return total

  def _written(
    self, fused: Computation, root: Instruction, arrays: Sequence[Array]
  ) -> int:
    """Bytes that a fusion writes."""
    if root.opcode == "tuple":
      parts = [fused.instructions[name] for name in root.operands]
      return sum(
        self._written(fused, part, [array])
        for part, array in zip(parts, arrays, strict=False)
      )
    while root.opcode in ("bitcast", "reshape"):
      root = fused.instructions[root.operands[0]]
    if root.opcode in ("dynamic-update-slice", "scatter"):
      place = -1 if root.opcode == "scatter" else 1
      update = fused.instructions[root.operands[place]].arrays[0]
      return _part(arrays[0], update)
    if root.opcode == "fusion":
      inner = self.computations[root.called("calls")[0]]
      return self._written(inner, inner.root, arrays)
    return sum(array.traffic for array in arrays)

  def _collectives(
    self, computation: Computation, one: Instruction
  ) -> Iterator[tuple[Computation, Instruction]]:
    if one.opcode.removesuffix("-start") in _COLLECTIVES:
      yield computation, one
    elif one.opcode == "fusion":
      for name in one.called("calls"):
        inner = self.computations[name]
        for part in inner.instructions.values():
          yield from self._collectives(inner, part)

  def _describe(
    self, made: tuple[Computation, Instruction], times: int, recursive: bool
  ) -> Collective:
    computation, one = made
    kind = one.opcode.removesuffix("-start")
    given = [
      array
      for name in one.operands
      for array in computation.instructions[name].arrays
    ]
    groups, size = self._groups(one)
    size = max(size, 1)
    bytes_in = sum(array.bytes for array in given)
    whole, sent = bytes_in, bytes_in * (size - 1) / size
    if kind == "all-reduce":
      sent *= 2
    elif kind == "all-gather":
      whole, sent = bytes_in * size, bytes_in * (size - 1)
    elif kind in ("collective-permute", "collective-broadcast"):
      sent = bytes_in
    return Collective(
      kind=kind,
      dtypes=tuple(dict.fromkeys(array.dtype for array in given)),
      bytes=whole,
      sent=float(sent),
      groups=groups,
      group_size=size,
      times=times,
      recursive=recursive,
      op_name=one.op_name,
      where=self._where(one),
    )

  def _groups(self, one: Instruction) -> tuple[int, int]:
    """How many groups of devices, and how large."""
    if one.opcode.startswith("collective-permute"):
      pairs = re.search(
        r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", one.attributes
      )
      return (pairs[1].count("{") if pairs else 0), 2
    text = one.attributes
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
      return int(found[1]), int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
      axes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
      size = 1
      for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2]):
        size *= int(part) if part else axes[name]
      return math.prod(axes.values()) // size, size
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
      groups = re.findall(r"\{([\d,]*)\}", found[1])
      return len(groups), len(groups[0].split(","))
    return 1, self.devices


def _cycles(one: Instruction) -> int:
  """The compiler's estimate; it writes the largest of numbers for unknown."""
  found = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
  cycles = int(found[1]) if found else 0
  return cycles if cycles < 2**62 else 0


def _part(whole: Array, part: Array) -> int:
  """Bytes of main memory that a part of an array takes there."""
  return part.padded_bytes if whole.space == 0 else 0


def _original(computation: Computation, name: str) -> Instruction:
  """The instruction behind copies and other names."""
  one = computation.instructions[name]
  while one.opcode in _RENAMES:
    one = computation.instructions[one.operands[0]]
  return one


def _constant(one: Instruction) -> int | None:
  if one.opcode != "constant" or not re.fullmatch(r"-?\d+", one.inside):
    return None
  return int(one.inside)
