"""Builds ONNX graphs with Python operators."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

# The lowest with all operators used here: needs onnxruntime 1.14 (2023).
OPSET = 18
IR_VERSION = 8


class Value:
  """A tensor of a graph, with Python's operators and numpy's broadcasting."""

  def __init__(self, graph: "Graph", name: str):
    self.graph = graph
    self.name = name

  def __add__(self, other: "Value | float") -> "Value":
    return self.graph.op("Add", self, self._wrap(other))

  def __sub__(self, other: "Value") -> "Value":
    return self.graph.op("Sub", self, other)

  def __mul__(self, other: "Value | float") -> "Value":
    return self.graph.op("Mul", self, self._wrap(other))

  def __truediv__(self, other: "Value | float") -> "Value":
    return self.graph.op("Div", self, self._wrap(other))

  def __matmul__(self, other: "Value") -> "Value":
    return self.graph.op("MatMul", self, other)

  def _wrap(self, other: "Value | float") -> "Value":
    return other if isinstance(other, Value) else self.graph.constant(other)


class Graph:
  """A graph to which every operation adds a node.

  Inside the body of a `loop`, nodes are added to its subgraph, which can read
  all values outside of it. Weights and constants are stored once, outside.
  """

  def __init__(self):
    self._nodes: list[list[onnx.NodeProto]] = [[]]  # innermost loop last
    self._stored: dict[str, np.ndarray] = {}
    self._constants: dict[Any, Value] = {}
    self._inputs: list[onnx.ValueInfoProto] = []
    self._outputs: list[onnx.ValueInfoProto] = []
    self._names = itertools.count(1)

  @property
  def stored_bytes(self) -> int:
    """Bytes of weights and constants."""
    return sum(array.nbytes for array in self._stored.values())

  def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Value:
    """Adds an input; strings in its shape are symbolic sizes."""
    self._inputs.append(_info(name, dtype, shape))
    return Value(self, name)

  def output(
    self, name: str, value: Value, dtype: Any, shape: Sequence[int | str]
  ):
    """Adds an output."""
    self._nodes[0].append(helper.make_node("Identity", [value.name], [name]))
    self._outputs.append(_info(name, dtype, shape))

  def weight(self, name: str, array: np.ndarray) -> Value:
    """Stores an array under a unique name."""
    assert name not in self._stored, name
    self._stored[name] = array
    return Value(self, name)

  def constant(self, value: Any, dtype: Any = np.float32) -> Value:
    """Stores a number or a small array; equal ones are stored once."""
    array = np.asarray(value, dtype)
    key = (array.dtype, array.shape, array.tobytes())
    if key not in self._constants:
      name = f"constant_{len(self._constants)}"
      self._constants[key] = self.weight(name, array)
    return self._constants[key]

  def sizes(self, *numbers: int) -> Value:
    """Stores a list of sizes or axes, int64."""
    return self.constant(numbers, np.int64)

  def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
    """Applies an operator with one result."""
    return self.ops(kind, 1, *inputs, **attributes)[0]

  def ops(
    self, kind: str, results: int, *inputs: Value, **attributes: Any
  ) -> list[Value]:
    """Applies an operator with several results."""
    outputs = [self._new(kind) for _ in range(results)]
    self._add(kind, [value.name for value in inputs], outputs, attributes)
    return outputs

  def cast(self, value: Value, dtype: Any) -> Value:
    """Converts to another type."""
    return self.op("Cast", value, to=_element(dtype))

  def split(self, value: Value, parts: int, axis: int) -> list[Value]:
    """Cuts an axis into equal parts."""
    return self.ops("Split", parts, value, axis=axis, num_outputs=parts)

  def loop(
    self,
    trips: Value | int,
    body: Callable[[Value, Any], Any],
    carry: Any,
    proceed: Callable[[Any], Value] | None = None,
  ) -> Any:
    """Repeats a part of the graph, like `jax.lax.fori_loop`.

    Args:
      trips: int64 [], the maximum number of trips.
      body: `(index of the trip, carry) -> carry`, called once.
      carry: a tree of values.
      proceed: `carry -> bool []`, whether to continue after a trip; by default
        always.

    Returns:
      The last carry.
    """
    if isinstance(trips, int):
      trips = self.constant(trips, np.int64)
    leaves, structure = jax.tree.flatten(carry)
    number, condition = self._new("trip"), self._new("proceed")
    inner = [self._new("carried") for _ in leaves]
    self._nodes.append([])
    after = body(number, structure.unflatten(inner))
    again = proceed(after) if proceed else condition
    # Outputs must be made in the subgraph, so all are copied.
    results = [
      self.op("Identity", value)
      for value in (again, *structure.flatten_up_to(after))
    ]
    graph = helper.make_graph(
      self._nodes.pop(),
      self._new("body").name,
      [
        _info(number.name, np.int64, ()),
        _info(condition.name, np.bool_, ()),
        # ONNX infers the types of the carry.
        *(onnx.ValueInfoProto(name=value.name) for value in inner),
      ],
      [onnx.ValueInfoProto(name=value.name) for value in results],
    )
    outputs = [self._new("Loop") for _ in leaves]
    names = [trips.name, "", *(value.name for value in leaves)]
    self._add("Loop", names, outputs, {"body": graph})
    return structure.unflatten(outputs)

  def model(self, doc: str, metadata: dict[str, str]) -> onnx.ModelProto:
    """The finished model, unchecked: onnx's checker would copy all weights."""
    graph = helper.make_graph(
      self._nodes[0],
      "trm_jax",
      self._inputs,
      self._outputs,
      [numpy_helper.from_array(a, n) for n, a in self._stored.items()],
    )
    model = helper.make_model(
      graph,
      producer_name="trm_jax",
      doc_string=doc,
      ir_version=IR_VERSION,
      opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, metadata)
    return model

  def _new(self, kind: str) -> Value:
    return Value(self, f"{kind}_{next(self._names)}")

  def _add(self, kind, inputs: list[str], outputs: list[Value], attributes):
    names = [value.name for value in outputs]
    node = helper.make_node(kind, inputs, names, **attributes)
    self._nodes[-1].append(node)


def _info(name: str, dtype: Any, shape: Sequence[int | str]):
  return helper.make_tensor_value_info(name, _element(dtype), shape)


def _element(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
