"""The model of `trm_jax.core` as an ONNX graph, in float32.

Functions have the names of those in `core.layers`, `core.network` and
`core.recursion`. An ONNX `Loop` replaces each scan, so the size of a graph does
not depend on T or n.
"""

import functools
import math
from typing import Any

import jax
import numpy as np

from trm_jax.core import layers as core_layers
from trm_jax.core.model import Latents, ModelConfig, Params, Weights
from trm_jax.export.onnx.graph import Graph, Value

Rotary = tuple[Value, Value] | None

_INT8_MAX = 127
_HEADS = ("lm_head/", "q_head/")


def build(params: Params, config: ModelConfig, precision: str) -> Graph:
  """The graph of a model that solves a batch of puzzles.

  Args:
    params: the model.
    config: its config, of a family with the standard cycle.
    precision: of stored matrices, "float32" or "int8".

  Returns:
    A graph with the inputs and outputs of `export.onnx_file`.
  """
  graph = Graph()
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  row = ("batch", config.seq_len)
  inputs = graph.input("inputs", np.int32, row)
  puzzle_ids = graph.input("puzzle_ids", np.int32, ("batch",))
  depth = graph.input("depth", np.int64, ())
  threshold = graph.input("threshold", np.float32, ())
  weights = store(graph, params.weights, precision)
  rows = None
  if config.puzzle_emb_ndim:
    table = np.asarray(params.puzzle_table)
    rows = store_table(graph, table, puzzle_ids, precision)
  x = embed(weights, rows, inputs, config)
  y, steps = refine(weights, params.initial, x, depth, threshold, config)
  q_halt, _ = read_halting(weights, y)
  logits = read_answer(weights, y, config)
  answers = graph.op("ArgMax", logits, axis=-1, keepdims=0)
  graph.output("answers", graph.cast(answers, np.int32), np.int32, row)
  graph.output("logits", logits, np.float32, (*row, config.vocab_size))
  graph.output("q_halt", q_halt, np.float32, ("batch",))
  graph.output("steps", steps, np.int32, ("batch",))
  return graph


def refine(
  weights: Weights, initial: Latents, x: Value, depth: Value,
  threshold: Value, config: ModelConfig,
) -> tuple[Value, Value]:  # fmt: skip
  """Makes supervision steps until every puzzle has halted, at most `depth`.

  From embedded questions x `[B, L, D]`, depth int64 [] and threshold float32 []
  it computes `y` after each puzzle's last step, `[B, L, D]`, and the steps
  taken, int32 `[B]`.
  """
  graph = x.graph
  table = rotary(graph, config)
  batch = graph.op("Shape", x, end=1)
  if not config.is_recursive:
    once = graph.op("Expand", graph.constant(1, np.int32), batch)
    return apply_blocks(weights["blocks"], x, table, config), once

  def step(_, carry):
    latents, halted, steps = carry
    refined = supervision_step(weights, latents, x, table, config)
    # A halted puzzle keeps y, and so its margin; its z has no further effect.
    rows = graph.op("Unsqueeze", halted, graph.sizes(1, 2))
    y = graph.op("Where", rows, latents.y, refined.y)
    steps = steps + graph.cast(graph.op("Not", halted), np.int32)
    margin = config.kind.halting_margin(*read_halting(weights, y))
    halted = graph.op("Greater", margin, threshold)
    return Latents(y=y, z=refined.z), halted, steps

  def any_running(carry):
    running = graph.cast(graph.op("Not", carry[1]), np.int32)
    count = graph.op("ReduceSum", running, graph.sizes(0), keepdims=0)
    return graph.cast(count, np.bool_)

  start = (
    initial_latents(graph, initial, batch, config),
    graph.op("Expand", graph.constant(False, np.bool_), batch),
    graph.op("Expand", graph.constant(0, np.int32), batch),
  )
  latents, _, steps = graph.loop(depth, step, start, any_running)
  return latents.y, steps


# As in core.recursion.


def initial_latents(
  graph: Graph, initial: Latents, batch: Value, config: ModelConfig
) -> Latents:
  """The initial vectors, broadcast to `[B, ..., L, D]`."""

  def start(path, vector: np.ndarray) -> Value:
    *leading, width = vector.shape
    value = graph.weight(f"initial/{_name(path)}", vector[..., None, :])
    shape = graph.sizes(*leading, config.length, width)
    return graph.op("Expand", value, graph.op("Concat", batch, shape, axis=0))

  return jax.tree_util.tree_map_with_path(start, initial)


def supervision_step(
  weights: Weights, latents: Latents, x: Value, table: Rotary,
  config: ModelConfig,
) -> Latents:  # fmt: skip
  """One supervision step of a recursive family."""

  def net(stack: str, h: Value) -> Value:
    return apply_blocks(weights[stack], h, table, config)

  *_, last = config.kind.stacks(config)
  think_net = functools.partial(net, "blocks")
  answer_net = functools.partial(net, last)
  if "cycles" in config.kind.unread:  # the transformer
    return Latents(y=answer_net(latents.y + x), z=None)

  def cycle(_, latents: Latents) -> Latents:
    return answer(answer_net, think(think_net, latents, x, config), config)

  return x.graph.loop(config.cycles, cycle, latents)


def think(net, latents: Latents, x: Value, config: ModelConfig) -> Latents:
  """The latent steps of a cycle."""
  graph, y, z = x.graph, latents.y, latents.z
  n = config.latent_steps
  if z is None:
    y = graph.loop(n, lambda _, y: net(y + x), y)
    return Latents(y=y, z=None)
  injected = y + x

  def latent_step(i: Value, z: Value) -> Value:
    new = net(_total(z, config) + injected)
    if not _has_many_latents(config):
      return new
    numbers = graph.constant(np.arange(n).reshape(n, 1, 1), np.int64)
    new = graph.op("Unsqueeze", new, graph.sizes(1))
    return graph.op("Where", graph.op("Equal", numbers, i), new, z)

  return Latents(y=y, z=graph.loop(n, latent_step, z))


def answer(net, latents: Latents, config: ModelConfig) -> Latents:
  """The update of the answer at the end of a cycle."""
  y, z = latents.y, latents.z
  return Latents(y=net(y if z is None else y + _total(z, config)), z=z)


def _has_many_latents(config: ModelConfig) -> bool:
  """Whether z is `[B, n, L, D]`, with one latent per latent step."""
  return len(config.kind.latents(config).get("z", ())) > 1


def _total(z: Value, config: ModelConfig) -> Value:
  if not _has_many_latents(config):
    return z
  return z.graph.op("ReduceSum", z, z.graph.sizes(1), keepdims=0)


# As in core.network.


def embed(
  weights: Weights, puzzle_rows: Value | None, inputs: Value,
  config: ModelConfig,
) -> Value:  # fmt: skip
  """Embeds questions: `[B, S]` and `[B, E]` to `[B, L, D]`."""
  graph, width = inputs.graph, config.width
  x = graph.op("Gather", weights["embed"]["tokens"], inputs)
  if config.prefix:
    shape = graph.sizes(config.prefix, width)
    if puzzle_rows is None:
      batch = graph.op("Shape", inputs, end=1)
      shape = graph.op("Concat", batch, shape, axis=0)
      rows = graph.op("Expand", weights["embed"]["registers"], shape)
    else:
      missing = config.prefix * width - config.puzzle_emb_ndim
      padding = graph.sizes(0, 0, 0, missing)
      padded = graph.op("Pad", puzzle_rows, padding) if missing else puzzle_rows
      # In ONNX, a size of 0 keeps the input's size.
      rows = graph.op("Reshape", padded, graph.sizes(0, config.prefix, width))
    x = graph.op("Concat", rows, x, axis=1)
  if config.positions == "learned":
    x = (x + weights["embed"]["positions"]) * math.sqrt(0.5)
  return x * math.sqrt(width)


def rotary(graph: Graph, config: ModelConfig) -> Rotary:
  """Cosines and sines, `[L, K]` each, or None without rotary positions."""
  if config.positions != "rotary":
    return None
  cos, sin = core_layers.rotary_table(
    config.length, config.width // config.heads, config.rope_theta,
    np.dtype(np.float32),
  )  # fmt: skip
  return (
    graph.weight("rotary/cos", np.asarray(cos)[:, 0]),
    graph.weight("rotary/sin", np.asarray(sin)[:, 0]),
  )


def apply_blocks(
  blocks: Weights, h: Value, table: Rotary, config: ModelConfig
) -> Value:
  """The network `net(h)`, `[B, L, D]` to the same."""
  graph, eps = h.graph, config.norm_eps
  for i in range(len(blocks)):
    block = blocks[f"block_{i}"]
    if config.mixer == "mlp":
      tokens_last = graph.op("Transpose", h, perm=(0, 2, 1))  # [B, D, L]
      h = rms_norm(tokens_last + swiglu(tokens_last, block["mixer"]), eps)
      h = graph.op("Transpose", h, perm=(0, 2, 1))
    else:
      h = rms_norm(h + attention(h, block["mixer"], table, config), eps)
    h = rms_norm(h + swiglu(h, block["mlp"]), eps)
  return h


def read_answer(weights: Weights, y: Value, config: ModelConfig) -> Value:
  """Logits of the answer's tokens, `[B, S, V]`."""
  if config.prefix:
    first, last = y.graph.sizes(config.prefix), y.graph.sizes(config.length)
    y = y.graph.op("Slice", y, first, last, y.graph.sizes(1))
  return linear(y, weights["lm_head"])


def read_halting(weights: Weights, y: Value) -> tuple[Value, Value]:
  """Logits of (halt, continue), `[B]` each."""
  first = y.graph.op("Gather", y, y.graph.constant(0, np.int64), axis=1)
  halt, proceed = y.graph.split(linear(first, weights["q_head"]), 2, axis=1)
  last = y.graph.sizes(1)
  return (
    y.graph.op("Squeeze", halt, last),
    y.graph.op("Squeeze", proceed, last),
  )


# As in core.layers.


def rms_norm(h: Value, eps: float) -> Value:
  """Root-mean-square normalisation over the last axis."""
  graph = h.graph
  mean_square = graph.op("ReduceMean", h * h, graph.sizes(-1), keepdims=1)
  return h / graph.op("Sqrt", mean_square + eps)


def linear(h: Value, weights: Weights) -> Value:
  """`h @ kernel (+ bias)`."""
  out = h @ weights["kernel"]
  return out + weights["bias"] if "bias" in weights else out


def swiglu(h: Value, weights: Weights) -> Value:
  """`down(silu(gate(h)) * up(h))` over the last axis."""
  gate, up = h.graph.split(h @ weights["gate_up"], 2, axis=-1)
  silu = gate * h.graph.op("Sigmoid", gate)
  return (silu * up) @ weights["down"]


def attention(
  h: Value, weights: Weights, table: Rotary, config: ModelConfig
) -> Value:
  """Bidirectional multi-head attention, `[B, L, D]` to the same."""
  graph = h.graph
  head_dim = config.width // config.heads
  qkv = graph.op(
    "Reshape", h @ weights["qkv"], graph.sizes(0, 0, 3, config.heads, head_dim)
  )
  qkv = graph.op("Transpose", qkv, perm=(2, 0, 3, 1, 4))  # [3, B, H, L, K]
  q, k, v = (
    graph.op("Squeeze", part, graph.sizes(0))
    for part in graph.split(qkv, 3, axis=0)
  )
  if table is not None:
    q, k = rotate(q, table), rotate(k, table)
  scores = q @ graph.op("Transpose", k, perm=(0, 1, 3, 2))
  scores = scores / math.sqrt(head_dim)
  mixed = graph.op("Softmax", scores, axis=-1) @ v
  mixed = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))  # [B, L, H, K]
  mixed = graph.op("Reshape", mixed, graph.sizes(0, 0, config.width))
  return mixed @ weights["out"]


def rotate(heads: Value, table: tuple[Value, Value]) -> Value:
  """Rotates `[B, H, L, K]` by position, pairing first with second half."""
  graph, (cos, sin) = heads.graph, table
  first, second = graph.split(heads, 2, axis=-1)
  rotated = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
  return heads * cos + rotated * sin


# Stored weights.


def store(graph: Graph, weights: Weights, precision: str) -> Weights:
  """Stores the network's weights, matrices as `[inputs, outputs]`.

  As "int8" each output (of an embedding: each row) has a scale, and the graph
  dequantizes once per run, outside of all loops. The heads stay float32: they
  are small, and answers and halting depend on them directly.
  """

  def put(path, array: np.ndarray) -> Value:
    name = _name(path)
    matrix = array.reshape(_matrix_shape(name, array.shape))
    is_exact = array.ndim < 2 or name.startswith(_HEADS)
    if precision == "float32" or is_exact:
      return graph.weight(name, matrix)
    axis = 0 if name.startswith("embed/") else 1
    stored, scales = quantize(matrix, axis)
    return graph.op(
      "DequantizeLinear",
      graph.weight(f"{name}/int8", stored),
      graph.weight(f"{name}/scales", scales),
      axis=axis,
    )

  return jax.tree_util.tree_map_with_path(put, weights)


def store_table(
  graph: Graph, table: np.ndarray, puzzle_ids: Value, precision: str
) -> Value:
  """Stores the puzzle table and gathers its rows: ids `[B]` to `[B, E]`."""
  if precision == "float32":
    return graph.op("Gather", graph.weight("puzzle_table", table), puzzle_ids)
  stored, scales = quantize(table, axis=0)
  return graph.op(
    "DequantizeLinear",
    graph.op("Gather", graph.weight("puzzle_table/int8", stored), puzzle_ids),
    graph.op("Gather", graph.weight("puzzle_table/scales", scales), puzzle_ids),
    axis=0,
  )


def quantize(matrix: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  """Rounds `[N, M]` to int8, with a float32 scale for each index of an axis.

  The error is at most half a scale.
  """
  largest = np.max(np.abs(matrix), axis=1 - axis, keepdims=True)
  scales = np.where(largest > 0, largest / _INT8_MAX, 1).astype(np.float32)
  return np.rint(matrix / scales).astype(np.int8), scales.reshape(-1)


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if name.endswith("/out"):  # [H, K, D]
    return (-1, shape[-1])
  return shape if len(shape) < 2 else (shape[0], -1)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
