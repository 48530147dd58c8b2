"""The reference PyTorch implementation's names and layouts, both ways.

Linear weights are `[out, in]` there; here they are `[in, ...]` with the output
split by meaning (q, k, v and heads; gate and up). One table, `layout`, says
which array is which; both directions read it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.core import network
from trm_jax.core.family import FAMILIES, ReferenceNames
from trm_jax.core.network import ModelConfig, Params
from trm_jax.errors import UserError

# Keys and attributes, and numbers of rows.
Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array: its name there, its path here, its shapes in both worlds.

  Attributes:
    name: the reference's parameter name, without a checkpoint's prefix.
    path: keys from `Params` down to the array; a number is a row of it.
    there: shape in the reference.
    here: shape in this project.
  """

  name: str
  path: Path
  there: tuple[int, ...]
  here: tuple[int, ...]

  def to_here(self, array: np.ndarray) -> np.ndarray:
    """Reference layout to ours."""
    flipped = array.T if len(self.there) == 2 and self.is_linear else array
    return np.ascontiguousarray(flipped.reshape(self.here))

  def to_there(self, array: np.ndarray) -> np.ndarray:
    """Our layout to the reference's."""
    if not self.is_linear or len(self.there) != 2:
      return np.ascontiguousarray(array)
    return np.ascontiguousarray(array.reshape(self.there[::-1]).T)

  @property
  def is_linear(self) -> bool:
    """Whether this is a linear layer's weight, stored transposed there."""
    return self.name.endswith(".weight")


def names(config: ModelConfig) -> ReferenceNames:
  """What the reference calls a model.

  Raises:
    UserError: for a family that the reference does not have.
  """
  if config.kind.reference is None:
    known = [name for name, each in FAMILIES.items() if each.reference]
    raise UserError(
      f"family={config.family!r}: the reference implementation has no such "
      f"model; it has {', '.join(known)}"
    )
  return config.kind.reference


def layout(config: ModelConfig) -> Iterator[Entry]:
  """Every array of a model, in the reference's order.

  Raises:
    UserError: for a family that the reference does not have.
  """
  called = names(config)
  width, vocab = config.width, config.vocab_size
  weights = ("weights",)
  for name, path in called.latents(config):
    vector = (width,)
    yield Entry(f"inner.{name}_init", ("initial", *path), vector, vector)
  tokens = (vocab, width)
  yield Entry(
    "inner.embed_tokens.embedding_weight",
    (*weights, "embed", "tokens"), tokens, tokens,
  )  # fmt: skip
  yield _linear("inner.lm_head.weight", "lm_head", (width, vocab))
  yield _linear("inner.q_head.weight", "q_head", (width, 2))
  yield Entry("inner.q_head.bias", (*weights, "q_head", "bias"), (2,), (2,))
  if config.puzzle_emb_ndim:
    table = (config.num_puzzle_ids, config.puzzle_emb_ndim)
    yield Entry("inner.puzzle_emb.weights", ("puzzle_table",), table, table)
  if config.positions == "learned":
    places = (config.length, width)
    yield Entry(
      "inner.embed_pos.embedding_weight",
      (*weights, "embed", "positions"), places, places,
    )  # fmt: skip
  layers = config.kind.stacks(config)
  for there, here in called.stacks:
    for i in range(layers[here]):
      path = (*weights, here, f"block_{i}")
      yield from _block(f"inner.{there}.layers.{i}", path, config)


def _block(
  there: str, here: tuple[str, ...], config: ModelConfig
) -> Iterator[Entry]:
  width = config.width
  if config.mixer == "mlp":
    yield from _swiglu(
      f"{there}.mlp_t", (*here, "mixer"), config.length, config.token_inner
    )
  else:
    heads = (config.heads, width // config.heads)
    yield Entry(
      f"{there}.self_attn.qkv_proj.weight", (*here, "mixer", "qkv"),
      (3 * width, width), (width, 3, *heads),
    )  # fmt: skip
    yield Entry(
      f"{there}.self_attn.o_proj.weight", (*here, "mixer", "out"),
      (width, width), (*heads, width),
    )  # fmt: skip
  yield from _swiglu(f"{there}.mlp", (*here, "mlp"), width, config.mlp_inner)


def params_from_reference(
  arrays: Mapping[str, np.ndarray], config: ModelConfig
) -> Params:
  """Builds parameters from the reference's arrays.

  Args:
    arrays: name -> array in the reference's layout.
    config: the model they belong to.

  Returns:
    `Params` in `config.param_dtype`.

  Raises:
    UserError: naming an array that is missing, or whose shape is not the
      model's.
  """
  # All is checked before memory is taken for any of it.
  entries = list(layout(config))
  for entry in entries:
    if entry.name not in arrays:
      raise UserError(
        f"array {entry.name!r} is missing; the model described by the config "
        f"needs it with shape {entry.there}"
      )
    shape = np.shape(arrays[entry.name])
    if shape != entry.there:
      raise UserError(
        f"array {entry.name!r} has shape {shape}; the model described by the "
        f"config needs {entry.there}"
      )
  tree = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes(config)
  )
  for entry in entries:
    array = entry.to_here(np.asarray(arrays[entry.name]))
    tree = _replace(tree, entry.path, array)
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, config.param_dtype), tree)


def params_to_reference(
  params: Params, config: ModelConfig
) -> dict[str, np.ndarray]:
  """The reference's arrays, name -> array, from our parameters."""
  return {
    entry.name: entry.to_there(np.asarray(lookup(params, entry.path)))
    for entry in layout(config)
  }


def _linear(name: str, head: str, here: tuple[int, int]) -> Entry:
  return Entry(name, ("weights", head, "kernel"), here[::-1], here)


def _swiglu(
  name: str, path: tuple[str, ...], width: int, inner: int
) -> Iterator[Entry]:
  yield Entry(
    f"{name}.gate_up_proj.weight", (*path, "gate_up"),
    (2 * inner, width), (width, 2, inner),
  )  # fmt: skip
  yield Entry(
    f"{name}.down_proj.weight", (*path, "down"),
    (width, inner), (inner, width),
  )  # fmt: skip


def lookup(tree, path: Path):
  """What lies at a path of keys, attributes and numbers."""
  for key in path:
    tree = getattr(tree, key) if _is_attribute(tree, key) else tree[key]
  return tree


def _replace(tree, path: Path, leaf):
  if not path:
    return leaf
  key, rest = path[0], path[1:]
  if _is_attribute(tree, key):
    return tree.replace(**{key: _replace(getattr(tree, key), rest, leaf)})
  if isinstance(tree, dict):
    return tree | {key: _replace(tree[key], rest, leaf)}
  tree = tree.copy()
  tree[key] = leaf
  return tree


def _is_attribute(tree, key) -> bool:
  return isinstance(key, str) and not isinstance(tree, dict)
