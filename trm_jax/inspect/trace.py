"""The profiler's traces, read back: what a device did, and for which code.

A trace says when each instruction of a compiled program ran; the program's text
says from which of our lines the instruction comes. A fusion counts as the
largest matrix product in it, or if it has none as what it ends in.

An accelerator has a plane of its own in the trace, with a line "XLA Ops" (TPU)
or a line for each stream (GPU). The devices of a CPU are threads of the host,
and share them.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from trm_jax.errors import UserError
from trm_jax.inspect import hlo, listing

# Ordered: the first whose names meet those around an instruction, which are its
# named scopes and the functions that it was traced in.
PARTS: tuple[tuple[str, frozenset[str]], ...] = tuple(
  (part, frozenset(names.split()))
  for part, names in (
    ("norms", "rms_norm"),
    ("mixer", "mixer Attention project attend rotate"),
    ("mlp", "mlp"),
    ("blocks, the rest", "apply_blocks"),
    ("drawing puzzles", "draw_puzzles"),
    ("loss and metrics", "losses_and_metrics step_weights"),
    ("heads", "read_answer read_halting"),
    ("embedding", "embed embed_tokens place initial_latents"),
    ("halting", "refill finish_step draw_minimum_steps wants_to_halt"),
    ("puzzle table", "puzzle_table sign_sgd_rows"),
    ("optimizer", "optimizer update_fn apply_updates incremental_update"),
    ("recursion, the rest", "supervision_step"),
  )
)
_TPU_LINE = "XLA Ops"
_MOVES = "between devices"
_COPIES = "copies"
_LOOPS = "loops and calls"
_OTHER = "other"

_COLLECTIVE = re.compile(
  r"all-|reduce-scatter|collective-|send|recv|ragged-all"
)
_CALLS = ("while", "call", "conditional", "async-start", "async-done")

# A GPU's matrix products are calls of a library, told of in JSON.
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
# `transpose(jvp(block_0))`, which differentiation makes of a scope's name.
_WRAPPED = re.compile(r"(?:transpose|jvp|vmap|shmap|remat|checkpoint)\((.*)\)")
_STRUCTURE = re.compile(
  r"(?:jit|pjit)\(.*\)|while|body|cond|closed_call|checkpoint|custom_\w+_call|"
  r"rematted_computation|branch_\d+_fun|shard_map|"
)


class Frame(NamedTuple):
  """A place in the code."""

  file: str
  function: str
  line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a compiled program, and what it is there for.

  Attributes:
    opcode: as "fusion".
    scope: JAX's path to the operation, as "jit(f)/while/body/mixer/mul".
    frames: where it was traced, the innermost first.
    flops: of the matrix products in it; 0 where there are none.
    bytes: of memory, that it reads and writes.
  """

  opcode: str = ""
  scope: str = ""
  frames: tuple[Frame, ...] = ()
  flops: float = 0.0
  bytes: int = 0

  @property
  def is_backward(self) -> bool:
    """Whether it belongs to the backward pass."""
    return "transpose(" in self.scope

  @property
  def path(self) -> str:
    """The scopes in it that were named, and the operation, as "mixer/mul"."""
    names = []
    for name in self.scope.split("/"):
      while wrapped := _WRAPPED.fullmatch(name):
        name = wrapped[1]
      if not _STRUCTURE.fullmatch(name):
        names.append(name)
    return "/".join(names)

  @property
  def part(self) -> str:
    """The part of the model that it belongs to, of `PARTS` or a few others."""
    if _COLLECTIVE.match(self.opcode):
      return _MOVES
    if self.opcode.startswith("copy"):
      return _COPIES
    if self.opcode in _CALLS:
      return _LOOPS
    around = set(self.path.split("/"))
    for frame in self.frames:
      around.update(frame.function.split("."))
    for part, names in PARTS:
      if around & names:
        return part
    return _OTHER


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction as it ran.

  Attributes:
    module: the program's name; empty where the trace does not tell.
    name: of the instruction.
    seconds: in itself and not in what it calls, of all devices together.
    calls: how often it ran, on all devices together.
  """

  module: str
  name: str
  seconds: float
  calls: int


@dataclasses.dataclass(frozen=True)
class Trace:
  """What the devices did.

  Attributes:
    operations: the costliest first.
    devices: how many there were.
    seconds: from the first operation to the end of the last.
    busy: the share of it for which a device ran anything, the devices' mean.
  """

  operations: tuple[Operation, ...]
  devices: int
  seconds: float
  busy: float


class _Event(NamedTuple):
  start: float
  end: float
  module: str
  name: str


def read(path: pathlib.Path) -> Trace:
  """Adds up what ran on the devices.

  Args:
    path: an `.xplane.pb` file, as the profiler writes it.

  Returns:
    Its sums.

  Raises:
    UserError: if nothing in it ran on a device.
  """
  return add_up(ProfileData.from_file(str(path)))


def add_up(data: Any) -> Trace:
  """`read` of a `jax.profiler.ProfileData`."""
  intervals = collections.defaultdict(list)  # device -> (start, end), ns
  seconds, calls = collections.defaultdict(float), collections.Counter()
  for device, events in _lines(data):
    intervals[device] += [(event.start, event.end) for event in events]
    for event, own in _own_times(events):
      seconds[event.module, event.name] += own / 1e9
      calls[event.module, event.name] += 1
  if not intervals:
    raise UserError(
      "the trace holds no operation of a device: was another profiler running, "
      "or the trace cut short?"
    )
  every = [interval for own in intervals.values() for interval in own]
  window = max(end for _, end in every) - min(start for start, _ in every)
  busy = sum(_union(own) for own in intervals.values()) / len(intervals)
  return Trace(
    operations=tuple(
      Operation(module, name, own, calls[module, name])
      for (module, name), own in sorted(
        seconds.items(), key=lambda item: -item[1]
      )
    ),
    devices=len(intervals),
    seconds=window / 1e9,
    busy=busy / window if window else 1.0,
  )


class Program:
  """A compiled program's instructions, by their names.

  Args:
    text: what `compiled.as_text()` gives.
  """

  def __init__(self, text: str):
    self.name = text.split(None, 2)[1].rstrip(",")
    self._module = hlo.Module(text)
    self._homes = {
      name: computation
      for computation in self._module.computations.values()
      for name in computation.instructions
    }

  def __contains__(self, name: str) -> bool:
    return name in self._homes

  def __getitem__(self, name: str) -> Instruction:
    home = self._homes[name]
    one = home.instructions[name]
    products = list(self._products(home, one))
    _, named = max(products, key=lambda pair: pair[0], default=(0.0, one))
    return Instruction(
      opcode=one.opcode,
      scope=named.op_name,
      frames=tuple(Frame(*at) for at in self._module.stack(named.frame)),
      flops=sum(flops for flops, _ in products),
      bytes=self._module.traffic(home, one),
    )

  def _products(
    self, home: listing.Computation, one: listing.Instruction
  ) -> Iterator[tuple[float, listing.Instruction]]:
    """The matrix products in an instruction, and the FLOPs of each."""
    if one.opcode == "fusion":
      for name in one.called("calls"):
        fused = self._module.computations[name]
        for inner in fused.instructions.values():
          yield from self._products(fused, inner)
    elif one.opcode == "dot":
      yield listing.dot_flops(home, one), one
    elif one.opcode == "convolution":  # a TPU's products
      yield listing.convolution_flops(home, one), one
    elif found := _CONTRACTED.search(one.attributes):
      left = home.instructions[one.operands[0]].arrays[0]
      axes = re.findall(r"\d+", found[1])
      summed = math.prod(left.dims[int(axis)] for axis in axes)
      yield 2.0 * math.prod(one.arrays[0].dims) * summed, one


def find(operation: Operation, programs: Iterable[Program]) -> Instruction:
  """The instruction that ran; one without a source if no program has it.

  A trace that does not name the program (TPU) is taken to be of any of them.
  """
  for program in programs:
    if operation.module in ("", program.name) and operation.name in program:
      return program[operation.name]
  # A GPU's copies to and from the host are of no program.
  is_copy = operation.name.lower().startswith("memcpy")
  return Instruction(opcode="copy" if is_copy else "")


def _lines(data: Any) -> Iterator[tuple[str, list[_Event]]]:
  """The events of each line, and the device that it belongs to."""
  on_accelerator = False
  for plane in data.planes:
    if not plane.name.startswith("/device:"):
      continue
    lines = list(plane.lines)
    has_ops = any(line.name == _TPU_LINE for line in lines)
    for line in lines:
      if not line.name.startswith(_TPU_LINE if has_ops else "Stream"):
        continue
      if events := [_event(event)[1] for event in line.events]:
        on_accelerator = True
        yield plane.name, events
  host = data.find_plane_with_name("/host:CPU")
  if on_accelerator or host is None:
    return
  for line in host.lines:
    if line.name == "python":
      continue
    shared = collections.defaultdict(list)  # a thread serves many devices
    for event in line.events:
      device, read = _event(event)
      if device is not None:
        shared[f"CPU {device}"].append(read)
    yield from shared.items()


def _event(event: Any) -> tuple[int | None, _Event]:
  """An event; before it the number of the device if it is a CPU's."""
  stats = dict(event.stats)
  # On a TPU the name is the instruction's text: "%fusion.3 = f32[8] fusion(".
  name = stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%")
  module = stats.get("hlo_module", "")
  device = stats.get("device_ordinal", 0) if "hlo_op" in stats else None
  return device, _Event(event.start_ns, event.end_ns, module, name)


def _own_times(events: list[_Event]) -> Iterator[tuple[_Event, float]]:
  """Each event of a line, and its ns without those of the events within."""
  around: list[list[Any]] = []  # [event, ns], the outermost first
  for event in sorted(events, key=lambda event: (event.start, -event.end)):
    while around and around[-1][0].end <= event.start:
      yield tuple(around.pop())
    length = event.end - event.start
    if around:
      around[-1][1] -= length
    around.append([event, length])
  yield from map(tuple, around)


def _union(intervals: list[tuple[float, float]]) -> float:
  """The length of what intervals cover together."""
  covered, reached = 0.0, -math.inf
  for start, end in sorted(intervals):
    covered += max(end - max(start, reached), 0)
    reached = max(reached, end)
  return covered
