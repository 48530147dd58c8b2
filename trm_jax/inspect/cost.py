"""FLOPs, memory traffic and collectives of a compiled program, with its loops.

`Compiled.cost_analysis` counts the body of a loop once, counts a TPU's vector
memory as main memory, and counts an array as read whole where one row is read.
Here each instruction counts as often as it runs. Bytes are those of main
memory, with the padding of tiles; of an array that is sliced, gathered from or
updated in part, only that part counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from trm_jax.inspect import hlo
from trm_jax.inspect.hlo import Computation, Module

# Opcodes that run another computation, some of them on the SparseCore.
_CALLS = {"call", "call-start", "async-start"}
# Opcodes that move no bytes themselves.
_FREE = _CALLS | {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency",
  "while", "conditional",
}  # fmt: skip
# Custom calls of the TPU's compiler that move no bytes.
_FREE_CALLS = {"ConcatBitcast", "AllocateBuffer", "SliceBitcast"}
_SLICES = {"slice", "dynamic-slice", "gather"}
# opcode -> index of the operand that is written into the first one.
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
_COLLECTIVES = {
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of a program."""

  where: str  # source line
  trips: int | None  # None if they depend on data; then the body counts once
  recursive: bool  # whether it is a scan of the recursion


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation."""

  kind: str  # such as "all-reduce"
  dtypes: tuple[str, ...]  # of the operands
  bytes: int  # of the operands on one device; of an all-gather the result
  sent: float  # bytes that each device must send
  groups: int  # number of groups of devices
  group_size: int  # devices in each
  times: int  # runs in one call of the program
  recursive: bool  # whether it is inside a scan of the recursion
  where: str  # source line, or else JAX's name of the operation


@dataclasses.dataclass(frozen=True)
class Counts:
  """The work of one call of a program on one device."""

  flops: float = 0.0  # multiplications and additions of matrix products
  bytes: float = 0.0  # of main memory, read and written
  cycles: float = 0.0  # the compiler's estimates, where it gives one
  collectives: tuple[Collective, ...] = ()
  loops: tuple[Loop, ...] = ()

  def __add__(self, other: "Counts") -> "Counts":
    ours, theirs = vars(self), vars(other)
    return Counts(**{name: ours[name] + theirs[name] for name in ours})

  def repeat(self, times: int, recursive: bool) -> "Counts":
    """The counts of `times` runs of a loop's body."""
    collectives = tuple(
      dataclasses.replace(
        each, times=each.times * times, recursive=each.recursive or recursive
      )
      for each in self.collectives
    )
    return Counts(
      self.flops * times, self.bytes * times, self.cycles * times,
      collectives, self.loops,
    )  # fmt: skip


def count(
  program: jax.stages.Compiled | Module, recursion: str = "core/recursion.py"
) -> Counts:
  """Adds up the work of one call; of a conditional the costliest branch.

  Args:
    program: the program.
    recursion: suffix of the path of the file whose loops are the recursion.
  """
  module = program if isinstance(program, Module) else Module.of(program)

  def run(computation: Computation) -> Counts:
    return sum(
      (step(computation, op) for op in computation.instructions.values()),
      Counts(),
    )

  def step(computation: Computation, op: Any) -> Counts:
    called = module.called(op)
    if op.opcode == "while":
      body, condition = called
      trips = module.trips(computation, op)
      times = 1 if trips is None else trips
      files = [file for file, *_ in module.stack(op)]
      recursive = any(file.endswith(recursion) for file in files)
      loop = Loop(module.where(op) or op.name, trips, recursive)
      return (
        Counts(loops=(loop,))
        + run(body).repeat(times, recursive)
        + run(condition).repeat(times + 1, recursive)
      )
    if op.opcode == "conditional":
      return max(map(run, called), key=lambda found: (found.flops, found.bytes))
    if op.opcode in _CALLS:
      return sum(map(run, called), Counts())
    return Counts(
      sum(flops for flops, _ in products(module, computation, op)),
      traffic(module, computation, op),
      _cycles(op),
      tuple(_collectives(module, computation, op)),
    )

  return run(module.entry)


def products(
  module: Module, computation: Computation, op: Any
) -> Iterator[tuple[float, Any]]:
  """Yields (FLOPs, instruction) of each matrix product in an instruction."""
  if op.opcode == "fusion":
    for fused in module.called(op):
      for inner in fused.instructions.values():
        yield from products(module, fused, inner)
    return
  # On a GPU, products are library calls, described in JSON.
  call = re.search(
    rb'"lhs_contracting_dimensions":\[([^\]]*)\]', op.backend_config
  )
  if op.opcode == "dot":
    summed = list(op.dot.lhs_contracting)
  elif op.opcode == "custom-call" and call:
    summed = [int(axis) for axis in re.findall(rb"\d+", call[1])]
  else:
    if op.opcode == "convolution":  # matrix products on a TPU
      yield _convolution_flops(computation, op), op
    return
  left = computation.operands(op)[0].shape.dimensions
  out = next(hlo.arrays(op.shape)).dimensions
  yield 2.0 * math.prod(out) * math.prod(left[i] for i in summed), op


def _convolution_flops(computation: Computation, op: Any) -> float:
  """Counts as XLA does: without positions in padding or dilation."""
  left, right = (i.shape.dimensions for i in computation.operands(op))
  axes, places = op.convolution, 1
  for window, source, target in zip(
    op.window.dimensions, axes.input_spatial, axes.output_spatial, strict=True
  ):
    gap = window.base_dilation
    at = (
      np.arange(op.shape.dimensions[target])[:, None] * window.stride
      + np.arange(window.size) * window.window_dilation
      - window.padding_low
    )
    inside = (at >= 0) & (at <= (left[source] - 1) * gap) & (at % gap == 0)
    places *= int(inside.sum())
  batch = left[axes.input_batch] // max(op.batch_group_count, 1)
  summed = right[axes.kernel_input_feature]
  return 2.0 * batch * right[axes.kernel_output_feature] * summed * places


def traffic(module: Module, computation: Computation, op: Any) -> int:
  """Bytes of main memory moved by one run of an instruction."""
  opcode, to = op.opcode, list(hlo.arrays(op.shape))
  if opcode in _FREE or opcode.endswith(("-done", "-update")):
    return 0
  if opcode == "custom-call" and op.custom_call_target in _FREE_CALLS:
    return 0
  if opcode == "fusion":
    (fused,) = module.called(op)
    read = sum(
      min(_read(module, fused, parameter), _moved(array))
      for parameter in fused.parameters
      for array in [*hlo.arrays(parameter.shape)][:1]
    )
    return read + _written(module, fused, fused.root, to)
  sources = computation.inputs(op)
  if opcode in _SLICES:
    return _part(sources[0], to[0]) + _moved(to[0])
  if opcode in ("copy-start", "slice-start"):
    # (destination, source, context) and ((source), destination, context).
    target = to[0 if opcode == "copy-start" else 1]
    return _part(sources[0], target) + _moved(target)
  if opcode in _UPDATES:
    update = sources[_UPDATES[opcode]]
    return _moved(update) + 2 * _part(to[0], update)
  if opcode.endswith("-start"):
    return sum(map(_moved, sources)) * 2
  return sum(map(_moved, sources + to))


def _read(module: Module, fused: Computation, op: Any) -> int:
  """Bytes that a fusion reads of its parameter `op`."""
  total, whole = 0, next(hlo.arrays(op.shape))
  for user, place in fused.users.get(op.id, []):
    if user.opcode in ("bitcast", "reshape", "get-tuple-element"):
      total += _read(module, fused, user)
    elif user.opcode in _SLICES and place == 0:
      total += _part(whole, user.shape)
    elif user.opcode == "dynamic-update-slice" and place == 0:
      continue  # updated in place
    elif user.opcode == "scatter" and place == 0:
      total += _part(whole, fused.operands(user)[-1].shape)
    elif user.opcode == "fusion":
      (inner,) = module.called(user)
      total += _read(module, inner, inner.parameters[place])
    else:
      return _moved(whole)
  return total


def _written(
  module: Module, fused: Computation, root: Any, to: Sequence[Any]
) -> int:
  """Bytes that a fusion writes."""
  operands = fused.operands(root)
  if root.opcode == "tuple":
    return sum(
      _written(module, fused, part, [array])
      for part, array in zip(operands, to, strict=False)
    )
  if root.opcode in ("bitcast", "reshape"):
    return _written(module, fused, operands[0], to)
  if root.opcode in _UPDATES:
    return _part(to[0], operands[_UPDATES[root.opcode]].shape)
  if root.opcode == "fusion":
    (inner,) = module.called(root)
    return _written(module, inner, inner.root, to)
  return sum(map(_moved, to))


def _moved(array: Any) -> int:
  """Bytes of an array, if it is in main memory."""
  return _part(array, array)


def _part(whole: Any, part: Any) -> int:
  """Bytes of a part of an array, if the array is in main memory."""
  return 0 if whole.layout.memory_space else hlo.padded_bytes(part)


def _cycles(op: Any) -> int:
  """The compiler's estimate; 0 if unknown, written as the largest number."""
  found = re.search(rb'"estimated_cycles":"(\d+)"', op.backend_config)
  cycles = int(found[1]) if found else 0
  return cycles if cycles < 2**62 else 0


def _collectives(
  module: Module, computation: Computation, op: Any
) -> Iterator[Collective]:
  kind = op.opcode.removesuffix("-start")
  if op.opcode == "fusion":
    for fused in module.called(op):
      for part in fused.instructions.values():
        yield from _collectives(module, fused, part)
  if kind not in _COLLECTIVES:
    return
  given = computation.inputs(op)
  groups, size = device_groups(op, module.devices)
  whole = sum(map(hlo.data_bytes, given))
  sent = whole * (size - 1) / size
  if kind == "all-reduce":
    sent *= 2
  elif kind == "all-gather":
    whole, sent = whole * size, whole * (size - 1.0)
  elif kind in ("collective-permute", "collective-broadcast"):
    sent = float(whole)
  yield Collective(
    kind=kind,
    dtypes=tuple(dict.fromkeys(map(hlo.dtype, given))),
    bytes=whole,
    sent=sent,
    groups=groups,
    group_size=size,
    times=1,
    recursive=False,
    where=module.where(op) or op.metadata.op_name,
  )


def device_groups(op: Any, devices: int) -> tuple[int, int]:
  """The number of groups of a collective, and the devices in each."""
  if op.source_target_pairs:
    return len(op.source_target_pairs), 2
  mesh = [axis.size for axis in op.mesh_groups.mesh.axes]
  if mesh:
    size = math.prod(
      ref.part.size or mesh[ref.index] for ref in op.mesh_groups.axes
    )
    return math.prod(mesh) // size, size
  if op.iota_groups.count:
    return op.iota_groups.count, op.iota_groups.size
  groups = [*op.device_list.groups, *op.replica_groups]
  if groups and groups[0].values:
    return len(groups), len(groups[0].values)
  return 1, devices
