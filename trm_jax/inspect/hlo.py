"""Reads XLA's optimised modules from a `Compiled` or from a profiler's trace.

They are protocol buffers of XLA's `hlo.proto`, `xla_data.proto` and
`xplane.proto`. No package has Python classes for these, so the fields that are
read are declared here.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Iterator
from typing import Any

import jax
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message -> field -> (number, type); a list is a repeated field.
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
  "Module": {
    "name": (1, str), "computations": (3, ["Computation"]),
    "entry_computation_id": (6, int), "stack_frame_index": (17, "Frames"),
  },
  "Computation": {
    "instructions": (2, ["Instruction"]), "id": (5, int), "root_id": (6, int),
  },
  "Instruction": {
    "name": (1, str), "opcode": (2, str), "shape": (3, "Shape"),
    "metadata": (7, "Metadata"), "literal": (8, "Literal"),
    "parameter_number": (9, int), "tuple_index": (13, int),
    "window": (15, "Window"), "convolution": (16, "Convolution"),
    "custom_call_target": (28, str), "dot": (30, "Dot"), "id": (35, int),
    "operand_ids": (36, [int]), "called_computation_ids": (38, [int]),
    "backend_config": (43, bytes), "replica_groups": (49, ["Numbers"]),
    "source_target_pairs": (52, ["Numbers"]), "batch_group_count": (58, int),
    "comparison_direction": (63, str), "device_list": (87, "DeviceList"),
    "iota_groups": (92, "IotaGroups"), "mesh_groups": (93, "MeshGroups"),
  },
  "Shape": {
    "element_type": (2, int), "dimensions": (3, [int]),
    "tuple_shapes": (4, ["Shape"]), "layout": (5, "Layout"),
  },
  "Layout": {
    "minor_to_major": (1, [int]), "tiles": (6, ["Numbers"]),
    "memory_space": (8, int),
  },
  "Numbers": {"values": (1, [int])},
  "Metadata": {"op_name": (2, str), "stack_frame_id": (15, int)},
  "Literal": {
    "preds": (2, [int]), "s32s": (4, [int]), "s64s": (5, [int]),
    "u32s": (6, [int]), "u64s": (7, [int]),
  },
  "Window": {"dimensions": (1, ["WindowDimension"])},
  "WindowDimension": {
    "size": (1, int), "stride": (2, int), "padding_low": (3, int),
    "window_dilation": (5, int), "base_dilation": (6, int),
  },
  "Convolution": {
    "input_batch": (7, int), "input_spatial": (11, [int]),
    "kernel_input_feature": (3, int), "kernel_output_feature": (4, int),
    "output_spatial": (12, [int]),
  },
  "Dot": {"lhs_contracting": (1, [int])},
  "DeviceList": {"groups": (1, ["Numbers"])},
  "IotaGroups": {"count": (1, int), "size": (2, int)},
  "MeshGroups": {"mesh": (1, "Mesh"), "axes": (2, ["AxisRef"])},
  "Mesh": {"axes": (1, ["Axis"])},
  "Axis": {"size": (2, int)},
  "AxisRef": {"index": (1, int), "part": (2, "Axis")},
  "Frames": {
    "file_names": (1, [str]), "function_names": (2, [str]),
    "file_locations": (3, ["Location"]), "stack_frames": (4, ["Frame"]),
  },
  "Location": {
    "file_name_id": (1, int), "function_name_id": (2, int), "line": (3, int),
  },
  "Frame": {"file_location_id": (1, int), "parent_frame_id": (2, int)},
  # A trace; the programs are in the metadata of one of its planes.
  "Trace": {"planes": (1, ["Plane"])},
  "Plane": {"name": (2, str), "event_metadata": (4, ["Entry"])},
  "Entry": {"value": (2, "EventMetadata")},
  "EventMetadata": {"name": (2, str), "stats": (5, ["Stat"])},
  "Stat": {"bytes_value": (6, bytes)},
  "ModuleFile": {"module": (1, "Module")},
}  # fmt: skip

# XLA's element types: number -> (name, bits).
_DTYPES = {
  1: ("pred", 8), 2: ("s8", 8), 3: ("s16", 16), 4: ("s32", 32),
  5: ("s64", 64), 6: ("u8", 8), 7: ("u16", 16), 8: ("u32", 32),
  9: ("u64", 64), 10: ("f16", 16), 11: ("f32", 32), 12: ("f64", 64),
  15: ("c64", 64), 16: ("bf16", 16), 18: ("c128", 128), 19: ("f8e5m2", 8),
  20: ("f8e4m3fn", 8), 21: ("s4", 4), 22: ("u4", 4),
}  # fmt: skip
_TUPLE = 13

# Opcodes whose result has the value of their first operand.
_SAME_VALUE = {
  "bitcast", "reshape", "copy", "convert", "copy-start", "copy-done",
}  # fmt: skip
# Opcode, or direction of a comparison -> operation on two integers.
_OPERATIONS = {
  "add": operator.add, "subtract": operator.sub,
  "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt,
  "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip
_MAX_TRIPS = 100_000  # longer loops are not simulated


@functools.cache
def message(name: str) -> Any:
  """The Python class of a message in `_MESSAGES`."""
  field_type = descriptor_pb2.FieldDescriptorProto
  types = {
    int: field_type.TYPE_INT64,
    str: field_type.TYPE_STRING,
    bytes: field_type.TYPE_BYTES,
  }
  file = descriptor_pb2.FileDescriptorProto(
    name="trm_jax/hlo.proto", package="trm_jax", syntax="proto3"
  )
  for declared, fields in _MESSAGES.items():
    added = file.message_type.add(name=declared)
    for field, (number, kind) in fields.items():
      label = field_type.LABEL_OPTIONAL
      if isinstance(kind, list):
        label, (kind,) = field_type.LABEL_REPEATED, kind
      entry = added.field.add(name=field, number=number, label=label)
      if isinstance(kind, str):
        entry.type = field_type.TYPE_MESSAGE
        entry.type_name = f".trm_jax.{kind}"
      else:
        entry.type = types[kind]
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName(f"trm_jax.{name}")
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """Instructions (`op` below) by id, in order; the root is the result."""

  instructions: dict[int, Any]
  root: Any

  def operands(self, op: Any) -> list[Any]:
    """The instructions whose results an instruction reads."""
    return [self.instructions[i] for i in op.operand_ids]

  def inputs(self, op: Any) -> list[Any]:
    """The arrays that an instruction reads."""
    return [a for o in self.operands(op) for a in arrays(o.shape)]

  @functools.cached_property
  def parameters(self) -> list[Any]:
    """The parameters, in order."""
    found = [i for i in self.instructions.values() if i.opcode == "parameter"]
    return sorted(found, key=lambda op: op.parameter_number)

  @functools.cached_property
  def users(self) -> dict[int, list[tuple[Any, int]]]:
    """Instruction's id -> (user, index of the operand) of each use."""
    found: dict[int, list[tuple[Any, int]]] = {}
    for op in self.instructions.values():
      for index, operand in enumerate(op.operand_ids):
        found.setdefault(operand, []).append((op, index))
    return found


class Module:
  """A compiled program.

  Args:
    proto: a message `Module`.
    devices: number of devices that run it.
  """

  def __init__(self, proto: Any, devices: int = 1):
    self.name = proto.name
    self.devices = devices
    self.computations: dict[int, Computation] = {}
    for each in proto.computations:
      ops = {op.id: op for op in each.instructions}
      self.computations[each.id] = Computation(ops, ops[each.root_id])
    self.entry = self.computations[proto.entry_computation_id]
    self._frames = proto.stack_frame_index

  @classmethod
  def of(cls, compiled: jax.stages.Compiled) -> "Module":
    """The module of a compiled program."""
    executable: Any = compiled.runtime_executable()
    (module,) = executable.hlo_modules()
    proto = message("Module").FromString(
      module.as_serialized_hlo_module_proto()
    )
    placed: Any = jax.tree.leaves(compiled.output_shardings)
    return cls(proto, placed[0].num_devices if placed else 1)

  @functools.cached_property
  def places(self) -> dict[str, tuple[Computation, Any]]:
    """Instruction's name -> its computation, and the instruction."""
    return {
      op.name: (computation, op)
      for computation in self.computations.values()
      for op in computation.instructions.values()
    }

  def called(self, op: Any) -> list[Computation]:
    """The computations that an instruction calls."""
    return [self.computations[i] for i in op.called_computation_ids]

  def stack(self, op: Any) -> list[tuple[str, str, int]]:
    """Source (file, function, line) of an instruction, the innermost first."""
    found, number, frames = [], op.metadata.stack_frame_id, self._frames
    while number:  # all ids start at 1
      frame = frames.stack_frames[number - 1]
      at = frames.file_locations[frame.file_location_id - 1]
      file = frames.file_names[at.file_name_id - 1]
      function = frames.function_names[at.function_name_id - 1]
      found.append((file, function, at.line))
      number = frame.parent_frame_id
    return found

  def where(self, op: Any) -> str:
    """The innermost frame, as in "core/layers.py:143 SwiGLU.__call__"."""
    for file, function, line in self.stack(op):
      return f"{'/'.join(file.split('/')[-2:])}:{line} {function}"
    return ""

  def trips(self, around: Computation, loop: Any) -> int | None:
    """The trip count of a loop; None if it depends on data.

    The TPU's compiler does not write it down, so the integers that the loop
    carries are simulated.
    """
    known = re.search(rb'"known_trip_count":\{"n":"(\d+)"', loop.backend_config)
    if known:
      return int(known[1])
    body, condition = self.called(loop)
    (state,) = (self._value(around, o, ()) for o in around.operands(loop))
    for trip in range(_MAX_TRIPS):
      proceed = self._value(condition, condition.root, (state,))
      if not proceed:
        return None if proceed is None else trip
      state = self._value(body, body.root, (state,))
    return None

  def _value(self, scope: Computation, op: Any, arguments: tuple) -> Any:
    """An instruction's integer, list (of a tuple) or None (depends on data).

    `arguments` are the values of the parameters of its computation, `scope`.
    """
    if op.shape.element_type != _TUPLE and op.shape.dimensions:
      return None  # an array; also keeps the recursion short
    operands = scope.operands(op)

    def value(index: int) -> Any:
      return self._value(scope, operands[index], arguments)

    if op.opcode == "constant":
      numbers = next((list(n) for _, n in op.literal.ListFields() if n), [None])
      return numbers[0]
    if op.opcode == "parameter":
      number = op.parameter_number
      return arguments[number] if number < len(arguments) else None
    if op.opcode == "tuple":
      return [value(index) for index in range(len(operands))]
    if op.opcode == "get-tuple-element":
      whole = value(0)
      return whole[op.tuple_index] if whole else None
    if op.opcode in _SAME_VALUE:
      return value(0)
    if op.opcode == "fusion":
      (fused,) = self.called(op)
      inputs = tuple(value(index) for index in range(len(operands)))
      return self._value(fused, fused.root, inputs)
    operation = _OPERATIONS.get(op.comparison_direction or op.opcode)
    if operation is None:
      return None
    left, right = value(0), value(1)
    return None if left is None or right is None else operation(left, right)


def arrays(shape: Any) -> Iterator[Any]:
  """Yields the arrays of a shape, a tuple's in order."""
  if shape.element_type != _TUPLE:
    yield shape
  for part in shape.tuple_shapes:
    yield from arrays(part)


def dtype(array: Any) -> str:
  """XLA's name of an array's type, such as "bf16"."""
  return _DTYPES.get(array.element_type, ("opaque", 0))[0]


def data_bytes(array: Any) -> int:
  """Bytes without padding."""
  return _bytes(array, array.dimensions)


def padded_bytes(array: Any) -> int:
  """Bytes with the padding of the layout's tiles."""
  layout = array.layout
  dims = [array.dimensions[i] for i in reversed(layout.minor_to_major)]
  tile = layout.tiles[0].values if layout.tiles else ()
  for i, size in enumerate(reversed(tile), start=1):
    if i <= len(dims):
      dims[-i] = -(-dims[-i] // size) * size
  return _bytes(array, dims)


def _bytes(array: Any, dims: Any) -> int:
  return math.prod(dims) * _DTYPES.get(array.element_type, ("", 0))[1] // 8
