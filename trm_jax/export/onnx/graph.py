"""ONNX graphs, written as arithmetic on values."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

# The lowest that has all that is used here: onnxruntime 1.14 (2023) and any
# later one runs these files.
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
  """A graph that grows by a node with every operation.

  Nodes go where they are called: inside the body of a `loop` into its
  subgraph, which sees all values made outside of it. Weights and constants
  are stored once, outside.
  """

  def __init__(self):
    self._nodes: list[list[onnx.NodeProto]] = [[]]  # innermost loop last
    self._stored: dict[str, np.ndarray] = {}
    self._constants: dict[Any, Value] = {}
    self._inputs: list[onnx.ValueInfoProto] = []
    self._outputs: list[onnx.ValueInfoProto] = []
    self._made = 0

  @property
  def stored_bytes(self) -> int:
    """What its weights take."""
    return sum(array.nbytes for array in self._stored.values())

  def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Value:
    """Adds an input; names in its shape are symbols."""
    self._inputs.append(_info(name, dtype, shape))
    return Value(self, name)

  def output(
    self, name: str, value: Value, dtype: Any, shape: Sequence[int | str]
  ):
    """Adds an output."""
    self._nodes[0].append(helper.make_node("Identity", [value.name], [name]))
    self._outputs.append(_info(name, dtype, shape))

  def weight(self, name: str, array: np.ndarray) -> Value:
    """Stores an array under a name of its own."""
    assert name not in self._stored, name
    self._stored[name] = array
    return Value(self, name)

  def constant(self, value: Any, dtype: Any = np.float32) -> Value:
    """Stores a number or a small array; equal ones share their place."""
    array = np.asarray(value, dtype)
    key = (array.dtype, array.shape, array.tobytes())
    if key not in self._constants:
      name = f"constant_{len(self._constants)}"
      self._constants[key] = self.weight(name, array)
    return self._constants[key]

  def sizes(self, *numbers: int) -> Value:
    """Stores a list of sizes or axes, as operators want them."""
    return self.constant(numbers, np.int64)

  def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
    """Applies an operator with one result."""
    return self.ops(kind, 1, *inputs, **attributes)[0]

  def ops(
    self, kind: str, results: int, *inputs: Value, **attributes: Any
  ) -> list[Value]:
    """Applies an operator with several results."""
    made = [self._new(kind) for _ in range(results)]
    self._add(kind, [value.name for value in inputs], made, attributes)
    return made

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
    """Repeats a part of the graph, as `jax.lax.fori_loop` does.

    Args:
      trips: int64 [], how often.
      body: `(number of the trip, carry) -> carry`, called once.
      carry: a tree of values.
      proceed: `carry -> bool []`, whether to go on after a trip; by default
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
    going = proceed(after) if proceed else condition
    # An output must be the subgraph's own, so what passes through is copied.
    results = [
      self.op("Identity", value)
      for value in (going, *structure.flatten_up_to(after))
    ]
    graph = helper.make_graph(
      self._nodes.pop(),
      self._new("body").name,
      [
        _info(number.name, np.int64, ()),
        _info(condition.name, np.bool_, ()),
        # Their types are those of the values that enter.
        *(onnx.ValueInfoProto(name=value.name) for value in inner),
      ],
      [onnx.ValueInfoProto(name=value.name) for value in results],
    )
    made = [self._new("Loop") for _ in leaves]
    names = [trips.name, "", *(value.name for value in leaves)]
    self._add("Loop", names, made, {"body": graph})
    return structure.unflatten(made)

  def model(self, doc: str, metadata: dict[str, str]) -> onnx.ModelProto:
    """The finished model.

    It is not given to the checker of `onnx`, which would copy all weights.

    Args:
      doc: text for people.
      metadata: text for programs.
    """
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
    self._made += 1
    return Value(self, f"{kind}_{self._made}")

  def _add(self, kind, inputs: list[str], made: list[Value], attributes):
    names = [value.name for value in made]
    node = helper.make_node(kind, inputs, names, **attributes)
    self._nodes[-1].append(node)


def _info(name: str, dtype: Any, shape: Sequence[int | str]):
  return helper.make_tensor_value_info(name, _element(dtype), shape)


def _element(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
