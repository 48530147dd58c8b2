"""The profiler's traces, read back: what the devices did, and for which code.

A trace says when each instruction of a program ran, and holds the compiled
programs, which say from which of our lines an instruction comes. A fusion
counts as the largest matrix product in it, or if it has none as its result.

An accelerator has a plane of its own in the trace, with a line "XLA Ops" (TPU)
or a line for each stream (GPU). The devices of a CPU are threads of the host,
and share them.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from trm_jax.errors import UserError
from trm_jax.inspect import cost, hlo
from trm_jax.inspect.hlo import Module

# Parts of the model, by the named scopes and functions around an instruction;
# the first match counts.
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
# `transpose(jvp(block_0))`, which differentiation makes of a scope's name.
_WRAPPED = re.compile(r"(?:transpose|jvp|vmap|shmap|remat|checkpoint)\((.*)\)")
_STRUCTURE = re.compile(
  r"(?:jit|pjit)\(.*\)|while|body|cond|closed_call|checkpoint|custom_\w+_call|"
  r"rematted_computation|branch_\d+_fun|shard_map|"
)


@dataclasses.dataclass(frozen=True)
class Source:
  """What an instruction is there for."""

  part: str  # of the model, of `PARTS` or a few others
  backward: bool = False  # whether it belongs to the backward pass
  path: str = ""  # its named scopes and the operation, as "mixer/mul"
  lines: tuple[tuple[str, int], ...] = ()  # (file, line), the innermost first
  flops: float = 0.0  # of the matrix products in it
  bytes: int = 0  # of memory, that it reads and writes


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction as it ran, on all devices together."""

  module: str  # the program's name; empty where the trace does not tell
  name: str  # of the instruction
  seconds: float  # in itself and not in what it calls
  calls: int


@dataclasses.dataclass(frozen=True)
class Trace:
  """What the devices did."""

  operations: tuple[Operation, ...]  # the costliest first
  devices: int
  seconds: float  # from the first operation to the end of the last
  busy: float  # fraction of it in which a device ran anything, the mean
  programs: tuple[Module, ...] = ()  # that the trace holds, the largest first

  def source(self, operation: Operation) -> Source:
    """What an operation is there for; without lines if no program has it.

    Where the trace does not name the program (TPU), the largest that has such
    an instruction is taken.
    """
    for program in self.programs:
      is_its = operation.module in ("", program.name)
      if is_its and operation.name in program.places:
        return read_source(program, operation.name)
    # A GPU's copies to and from the host are of no program.
    is_copy = operation.name.lower().startswith("memcpy")
    return Source("copies" if is_copy else "other")


class _Event(NamedTuple):
  start: float
  end: float
  module: str
  name: str


def read(path: pathlib.Path) -> Trace:
  """Adds up what ran on the devices.

  Args:
    path: an `.xplane.pb` file, as the profiler writes it.

  Raises:
    UserError: if nothing in it ran on a device.
  """
  written = path.read_bytes()
  found = add_up(ProfileData.from_serialized_xspace(written))
  programs = sorted(_programs(written), key=lambda one: -len(one.places))
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


def read_source(program: Module, name: str) -> Source:
  """What an instruction of a program is there for."""
  home, one = program.places[name]
  products = list(cost.products(program, home, one))
  _, named = max(products, key=lambda pair: pair[0], default=(0.0, one))
  stack, scope = program.stack(named), named.metadata.op_name
  path = _path(scope)
  around = {part for _, name, _ in stack for part in name.split(".")}
  return Source(
    part=_part(one.opcode, around | set(path)),
    backward="transpose(" in scope,
    path="/".join(path),
    lines=tuple((file, line) for file, _, line in stack),
    flops=sum(flops for flops, _ in products),
    bytes=cost.traffic(program, home, one),
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
  """The names in JAX's path, as "jit(f)/while/body/jvp(mixer)/mul"."""
  names = []
  for name in scope.split("/"):
    while wrapped := _WRAPPED.fullmatch(name):
      name = wrapped[1]
    if not _STRUCTURE.fullmatch(name):
      names.append(name)
  return names


def _programs(written: bytes) -> Iterator[Module]:
  trace = hlo.message("Trace")()
  trace.ParseFromString(written)
  for plane in trace.planes:
    if plane.name == "/host:metadata":
      for entry in plane.event_metadata:
        for stat in entry.value.stats:
          if stat.bytes_value:
            file = hlo.message("ModuleFile")()
            file.ParseFromString(stat.bytes_value)
            yield Module(file.module)


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
      device, found = _event(event)
      if device is not None:
        shared[f"CPU {device}"].append(found)
    yield from shared.items()


def _event(event: Any) -> tuple[int | None, _Event]:
  """An event; before it the number of the device if it is a CPU's."""
  stats = dict(event.stats)
  # On a TPU the name is the instruction's text: "%fusion.3 = f32[8] fusion(".
  name = stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%")
  module = stats.get("hlo_module", "")
  device = stats.get("device_ordinal", 0) if "hlo_op" in stats else None
  return device, _Event(event.start_ns, event.end_ns, module, name)


def _own_times(events: Sequence[_Event]) -> Iterator[tuple[_Event, float]]:
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


def _union(intervals: Sequence[tuple[float, float]]) -> float:
  """The length of what intervals cover together."""
  covered, reached = 0.0, -math.inf
  for start, end in sorted(intervals):
    covered += max(end - max(start, reached), 0)
    reached = max(reached, end)
  return covered
