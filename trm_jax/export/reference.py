"""Converts parameters from and to the reference PyTorch implementation.

Its linear weights are `[out, in]`; ours are `[in, ...]` with the output split
by meaning (q, k, v and heads; gate and up). `layout` lists all arrays for both
directions.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.core import network
from trm_jax.core.family import FAMILIES, ReferenceNames
from trm_jax.core.model import ModelConfig, Params
from trm_jax.errors import UserError

# Keys, attributes and indices.
Path = tuple[Any, ...]

TABLE = "inner.puzzle_emb.weights"
TOKENS = "inner.embed_tokens.embedding_weight"
POSITIONS = "inner.embed_pos.embedding_weight"

# Our stack of blocks -> the field of `ModelConfig` that counts them.
LAYER_FIELDS = {"blocks": "layers", "answer_blocks": "answer_layers"}


class Entry(NamedTuple):
  """One array."""

  name: str  # the reference's parameter name, without a checkpoint's prefix
  path: Path  # keys and indices from `Params` down to the array
  shape: tuple[int, ...]  # in the reference

  @property
  def is_transposed(self) -> bool:
    """Whether it is a linear layer's matrix, `[out, in]` in the reference."""
    return self.name.endswith(".weight")


def names(config: ModelConfig) -> ReferenceNames:
  """The reference's names; a UserError for a family that it does not have."""
  if config.kind.reference is None:
    known = [name for name, each in FAMILIES.items() if each.reference]
    raise UserError(
      f"family={config.family!r}: the reference implementation has no such "
      f"model; it has {', '.join(known)}"
    )
  return config.kind.reference


def layout(config: ModelConfig) -> Iterator[Entry]:
  """Yields every array of a model, in the reference's order."""
  theirs = names(config)
  width, vocab, weights = config.width, config.vocab_size, ("weights",)
  for name, path in theirs.latents(config):
    yield Entry(f"inner.{name}_init", ("initial", *path), (width,))
  yield Entry(TOKENS, (*weights, "embed", "tokens"), (vocab, width))
  for head, outputs in (("lm_head", vocab), ("q_head", 2)):
    path = (*weights, head, "kernel")
    yield Entry(f"inner.{head}.weight", path, (outputs, width))
  yield Entry("inner.q_head.bias", (*weights, "q_head", "bias"), (2,))
  if config.puzzle_emb_ndim:
    shape = (config.num_puzzle_ids, config.puzzle_emb_ndim)
    yield Entry(TABLE, ("puzzle_table",), shape)
  if config.positions == "learned":
    path = (*weights, "embed", "positions")
    yield Entry(POSITIONS, path, (config.length, width))
  layers = config.kind.stacks(config)
  for their_stack, stack in theirs.stacks:
    for i in range(layers[stack]):
      path = (*weights, stack, f"block_{i}")
      yield from _block(f"inner.{their_stack}.layers.{i}", path, config)


def _block(name: str, path: Path, config: ModelConfig) -> Iterator[Entry]:
  width, mixer = config.width, (*path, "mixer")
  if config.mixer == "mlp":
    inner = config.token_inner
    yield from _swiglu(f"{name}.mlp_t", mixer, config.length, inner)
  else:
    attention = f"{name}.self_attn"
    qkv, out = (*mixer, "qkv"), (*mixer, "out")
    yield Entry(f"{attention}.qkv_proj.weight", qkv, (3 * width, width))
    yield Entry(f"{attention}.o_proj.weight", out, (width, width))
  yield from _swiglu(f"{name}.mlp", (*path, "mlp"), width, config.mlp_inner)


def _swiglu(name: str, path: Path, width: int, inner: int) -> Iterator[Entry]:
  gate_up, down = (*path, "gate_up"), (*path, "down")
  yield Entry(f"{name}.gate_up_proj.weight", gate_up, (2 * inner, width))
  yield Entry(f"{name}.down_proj.weight", down, (width, inner))


def mismatch(
  shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> str | None:
  """A sentence about the first array that does not fit a model, or None.

  Args:
    shapes: name -> shape in the reference's layout.
    config: the model.
  """
  needed = {entry.name: entry.shape for entry in layout(config)}
  for name, shape in needed.items():
    if name not in shapes:
      return (
        f"array {name!r} is missing; the model described by the config needs "
        f"it with shape {shape}"
      )
    if shapes[name] != shape:
      return (
        f"array {name!r} has shape {shapes[name]}; the model described by the "
        f"config needs {shape}"
      )
  extra = min(shapes.keys() - needed.keys(), default=None)
  if extra is not None:
    return (
      f"array {extra!r} of shape {shapes[extra]} has no place in the model "
      "described by the config"
    )
  return None


def params_from_reference(
  arrays: Mapping[str, np.ndarray], config: ModelConfig
) -> Params:
  """Builds parameters from the reference's arrays, in `config.param_dtype`.

  Args:
    arrays: name -> array in the reference's layout.
    config: the model.

  Raises:
    UserError: naming an array that is missing, unexpected or of a wrong shape.
  """
  # Checks all shapes before allocating memory.
  shapes = {name: np.shape(array) for name, array in arrays.items()}
  if found := mismatch(shapes, config):
    raise UserError(found)
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes(config)
  )
  for entry in layout(config):
    array, ours = np.asarray(arrays[entry.name]), _lookup(params, entry.path)
    array = array.T if entry.is_transposed else array
    ours[...] = array.reshape(ours.shape)
  return jax.tree.map(jnp.asarray, params)


def params_to_reference(
  params: Params, config: ModelConfig
) -> dict[str, np.ndarray]:
  """The reference's arrays, name -> array, from our parameters."""
  arrays = {}
  for entry in layout(config):
    array = np.asarray(_lookup(params, entry.path))
    if entry.is_transposed:
      array = array.reshape(entry.shape[::-1]).T
    arrays[entry.name] = np.ascontiguousarray(array)
  return arrays


def _lookup(tree: Any, path: Path) -> Any:
  """The value at a path of keys, attributes and indices."""
  for key in path:
    is_attribute = isinstance(key, str) and not isinstance(tree, dict)
    tree = getattr(tree, key) if is_attribute else tree[key]
  return tree
