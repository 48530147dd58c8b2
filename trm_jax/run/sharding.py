"""The mesh, and ordered rules from paths of arrays to shardings.

A mesh has axes "data", which splits the batch, and "model", which splits
weight matrices; with several seeds, "member" comes first and splits those.
The first rule whose pattern matches an array's path applies. An axis that does
not divide its dimension is dropped, so that the rules suit any mesh.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.errors import UserError

RULES: tuple[tuple[str, P], ...] = (
  (r"carry/", P("data")),
  (r"puzzle_table$", P(("data", "model"), None)),
  (r"/gate_up$", P(None, None, "model")),
  (r"/down$", P("model", None)),
  (r"/qkv$", P(None, None, "model", None)),
  (r"/out$", P("model", None, None)),
  (r"", P()),
)


# `(shared, slots) -> (sums, results)`, see `split_slots`.
SlotFunction = Callable[[Any, Any], tuple[Any, Any]]
SplitSlots = Callable[[SlotFunction], SlotFunction]


def make_mesh(
  data: int = -1,
  model: int = 1,
  members: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Lays out all devices of all processes.

  Args:
    data: devices that split the batch; -1 for all devices / `model`.
    model: devices that split each weight matrix.
    members: seeds trained together. Their axis has size gcd(members, data),
      and splits the "data" devices.
    devices: other devices, which may be only described, for compiling.

  Returns:
    A mesh with axes ("data", "model"), or for several members ("member",
    "data", "model").

  Raises:
    UserError: if data x model is not the number of devices.
  """
  count = jax.device_count() if devices is None else len(devices)
  if data == -1 and count % model == 0:
    data = count // model
  if data * model != count:
    raise UserError(
      f"config.mesh asks for data={data} x model={model}, but there are "
      f"{count} devices; their product must be {count} (data=-1 takes "
      "what model leaves)"
    )
  shape = {"data": data, "model": model}
  if members > 1:
    size = math.gcd(members, data)
    shape = {"member": size, "data": data // size, "model": model}
  # An axis of 8 on a slice of 16 x 16 chips needs a split side.
  laid_out = mesh_utils.create_device_mesh(
    tuple(shape.values()),
    jax.devices() if devices is None else devices,
    allow_split_physical_axes=True,
  )
  return Mesh(laid_out, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def inference_mesh(model: int) -> Mesh:
  """All devices; the "model" axis has size `model` if that divides them."""
  return make_mesh(model=model if jax.device_count() % model == 0 else 1)


def check_batch(name: str, batch: int, mesh: Mesh, shared: bool = False):
  """Raises a `UserError` if devices do not divide a batch, by field `name`.

  With `shared`, the devices of all members split it, not those of one.
  """
  axes = _batch_axes(mesh) if shared else ("data",)
  count = math.prod(mesh.shape[name] for name in axes)
  if batch % count:
    below, above = batch // count * count, -(-batch // count) * count
    near = f"{below} or {above}" if below else f"{above}"
    raise UserError(
      f"{name}={batch}: must be a multiple of the {count} devices that share "
      f"it; try {near}"
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def by_batch(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all mesh axes but "model"."""
  return NamedSharding(mesh, P(_batch_axes(mesh)))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
  return tuple(name for name in mesh.axis_names if name != "model")


def shardings(tree: Any, mesh: Mesh, stacked: bool = False) -> Any:
  """The `NamedSharding` of every array or shape of a tree, by `RULES`.

  If `stacked`, arrays have a leading axis of members.
  """

  def by_path(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if stacked:
      spec = P("member", *spec)
    return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(by_path, tree)


def all_at_once(function: SlotFunction) -> SlotFunction:
  """A `SplitSlots` that does not split: one device, one microbatch."""
  return function


def split_slots(mesh: Mesh, microbatches: int) -> SplitSlots:
  """Splits a function of batch slots over devices and microbatches.

  Each device of "data" computes some of the slots, and one reduction at the
  end adds up all sums. The compiler splits over "model".

  Args:
    mesh: the devices.
    microbatches: number of equal parts of a device's slots, computed one after
      another to save memory.

  Returns:
    A transformation of a function `(shared, slots) -> (sums, results)`, where
    leaves of `slots` and `results` are [slots, ...].
  """

  def split(function: SlotFunction) -> SlotFunction:
    one_device = functools.partial(_accumulate, function, microbatches)
    if mesh.size == 1:
      return one_device
    # "model" is manual too if it has one device: the compiler refuses kernels
    # where any axis is automatic.
    manual = set(mesh.axis_names)
    if mesh.shape["model"] > 1:
      manual.remove("model")

    def reduced(shared, slots):
      sums, results = one_device(shared, slots)
      return jax.lax.psum(sums, "data"), results

    return jax.shard_map(
      reduced,
      mesh=mesh,
      in_specs=(P(), P("data")),
      out_specs=(P(), P("data")),
      axis_names=manual,  # `vmap` over members adds "member" to the specs
      check_vma=False,
    )

  return split


def _accumulate(
  function: SlotFunction, microbatches: int, shared: Any, slots: Any
):
  """Scans `function` over microbatches and adds up its sums."""
  if microbatches == 1:
    return function(shared, slots)

  def body(sums, microbatch):
    more, results = function(shared, microbatch)
    return jax.tree.map(jnp.add, sums, more), results

  divided = jax.tree.map(
    lambda leaf: leaf.reshape(microbatches, -1, *leaf.shape[1:]), slots
  )
  first = jax.tree.map(lambda leaf: leaf[0], divided)
  shapes, _ = jax.eval_shape(function, shared, first)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  sums, results = jax.lax.scan(body, zeros, divided)
  return sums, jax.tree.map(
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results
  )


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Puts host arrays on devices; each process puts only its own shards."""

  def place(array):
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(place, tree)


def put_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """Splits the rows of a host array over all devices; pads them with zeros.

  The array may be memory-mapped: each process reads only its devices' rows.
  """
  rows = -(-len(array) // mesh.size) * mesh.size

  def part(index):
    found = array[index]
    first, last, _ = index[0].indices(rows)
    missing = (last - first) - len(found)
    return np.pad(found, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

  return jax.make_array_from_callback(
    (rows, *array.shape[1:]), NamedSharding(mesh, P(mesh.axis_names)), part
  )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Drops the axes of a spec that do not divide the array's dimensions."""
  kept = []
  for size, axes in zip(shape, spec, strict=False):
    names = (axes,) if isinstance(axes, str) else axes or ()
    devices = math.prod(mesh.shape[name] for name in names)
    kept.append(axes if size % devices == 0 else None)
  return P(*kept)
