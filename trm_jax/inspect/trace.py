"""Reads the profiler's traces: seconds of each instruction, and its source.

A trace has the time of each instruction's runs, and the compiled programs with
the source lines. A fusion is attributed to its largest matrix product, or else
to its result.

Each accelerator has a plane in the trace, with one line "XLA Ops" (TPU) or one
line per stream (GPU). CPU devices share the threads of the host's plane.
"""

import collections
import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from trm_jax.errors import UserError
from trm_jax.inspect import cost, hlo
from trm_jax.inspect.hlo import Module

# Part of the model -> named scopes and functions around its instructions. The
# first match counts.
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
_COLLECTIVE = re.compile(
  r"all-|reduce-scatter|collective-|send|recv|ragged-all"
)
_CALLS = ("while", "call", "conditional", "async-start", "async-done")
# Transformations in a scope's name, as in `transpose(jvp(block_0))`.
_WRAPPED = re.compile(r"(?:transpose|jvp|vmap|shmap|remat|checkpoint)\((.*)\)")
_STRUCTURE = re.compile(
  r"(?:jit|pjit)\(.*\)|while|body|cond|closed_call|checkpoint|custom_\w+_call|"
  r"rematted_computation|branch_\d+_fun|shard_map|"
)


@dataclasses.dataclass(frozen=True)
class Source:
  """The origin and cost of an instruction."""

  part: str  # of the model: in `PARTS`, or one of `_part`
  backward: bool = False  # whether it belongs to the backward pass
  path: str = ""  # named scopes and the operation, as "mixer/mul"
  lines: tuple[tuple[str, int], ...] = ()  # (file, line), the innermost first
  flops: float = 0.0  # of its matrix products
  bytes: int = 0  # of memory, read and written


@dataclasses.dataclass(frozen=True)
class Operation:
  """All runs of an instruction, on all devices together."""

  module: str  # the program's name; empty if it is not in the trace
  name: str  # of the instruction
  seconds: float  # without the operations that it calls
  calls: int


@dataclasses.dataclass(frozen=True)
class Trace:
  """The operations of a trace."""

  operations: tuple[Operation, ...]  # the costliest first
  devices: int
  seconds: float  # from the start of the first operation to the end of the last
  busy: float  # fraction of that time in which a device ran, the mean
  programs: tuple[Module, ...] = ()  # in the trace, the largest first

  def source(self, operation: Operation) -> Source:
    """The source of an operation; without lines if no program contains it.

    Where the trace does not name the program (TPU), the largest one with such
    an instruction is used.
    """
    for program in self.programs:
      is_module = operation.module in ("", program.name)
      if is_module and operation.name in program.places:
        return read_source(program, operation.name)
    # A GPU's copies to and from the host belong to no program.
    is_copy = operation.name.lower().startswith("memcpy")
    return Source("copies" if is_copy else "other")


class _Event(NamedTuple):
  start: float
  end: float
  module: str
  name: str


def read(path: pathlib.Path) -> Trace:
  """Reads an `.xplane.pb` file with operations of a device."""
  content = path.read_bytes()
  found = add_up(ProfileData.from_serialized_xspace(content))
  programs = sorted(
    _programs(content), key=lambda program: -len(program.places)
  )
  return dataclasses.replace(found, programs=tuple(programs))


def add_up(data: Any) -> Trace:
  """`read` of a `jax.profiler.ProfileData`, without programs."""
  intervals = collections.defaultdict(list)  # device -> (start, end), ns
  seconds = collections.defaultdict(float)
  calls = collections.Counter()
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
  starts, ends = zip(*itertools.chain(*intervals.values()), strict=True)
  window = max(ends) - min(starts)
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


def read_source(program: Module, name: str) -> Source:
  """The source of an instruction of a program."""
  home, op = program.places[name]
  products = list(cost.products(program, home, op))
  _, named = max(products, key=lambda pair: pair[0], default=(0.0, op))
  stack, scope = program.stack(named), named.metadata.op_name
  path = _path(scope)
  around = {part for _, name, _ in stack for part in name.split(".")}
  return Source(
    part=_part(op.opcode, around | set(path)),
    backward="transpose(" in scope,
    path="/".join(path),
    lines=tuple((file, line) for file, _, line in stack),
    flops=sum(flops for flops, _ in products),
    bytes=cost.traffic(program, home, op),
  )


def _part(opcode: str, around: set[str]) -> str:
  if _COLLECTIVE.match(opcode):
    return "between devices"
  if opcode.startswith("copy"):
    return "copies"
  if opcode in _CALLS:
    return "loops and calls"
  return next((part for part, names in PARTS if around & names), "other")


def _path(scope: str) -> list[str]:
  """The scopes in a path of JAX such as "jit(f)/while/body/jvp(mixer)/mul"."""
  names = []
  for name in scope.split("/"):
    while wrapped := _WRAPPED.fullmatch(name):
      name = wrapped[1]
    if not _STRUCTURE.fullmatch(name):
      names.append(name)
  return names


def _programs(content: bytes) -> Iterator[Module]:
  for plane in hlo.message("Trace").FromString(content).planes:
    if plane.name == "/host:metadata":
      for entry in plane.event_metadata:
        for stat in entry.value.stats:
          if stat.bytes_value:
            file = hlo.message("ModuleFile").FromString(stat.bytes_value)
            yield Module(file.module)


def _lines(data: Any) -> Iterator[tuple[str, list[_Event]]]:
  """Yields the device and the events of each line."""
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
    by_device = collections.defaultdict(list)  # a thread serves many devices
    for event in line.events:
      device, found = _event(event)
      if device is not None:
        by_device[f"CPU {device}"].append(found)
    yield from by_device.items()


def _event(event: Any) -> tuple[int | None, _Event]:
  """The number of the device if it is a CPU, and the event."""
  stats = dict(event.stats)
  # On a TPU the name is the HLO text: "%fusion.3 = f32[8] fusion(".
  name = stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%")
  module = stats.get("hlo_module", "")
  device = stats.get("device_ordinal", 0) if "hlo_op" in stats else None
  return device, _Event(event.start_ns, event.end_ns, module, name)


def _own_times(events: Sequence[_Event]) -> Iterator[tuple[_Event, float]]:
  """Each event of a line, and its ns without those of nested events."""
  stack: list[list[Any]] = []  # [event, ns], the outermost first
  for event in sorted(events, key=lambda event: (event.start, -event.end)):
    while stack and stack[-1][0].end <= event.start:
      yield tuple(stack.pop())
    length = event.end - event.start
    if stack:
      stack[-1][1] -= length
    stack.append([event, length])
  yield from map(tuple, stack)


def _union(intervals: Sequence[tuple[float, float]]) -> float:
  """The total length that the intervals cover."""
  covered, reached = 0.0, -math.inf
  for start, end in sorted(intervals):
    covered += max(end - max(start, reached), 0)
    reached = max(reached, end)
  return covered
