"""Where arrays live: the mesh, and ordered rules from paths to shardings.

A mesh has two axes: "data" splits the batch, "model" splits weight matrices.
Where several seeds are trained together, "member" before them splits those.
The first rule whose pattern is found in an array's path holds. An axis that
does not divide its dimension is dropped, so that the same rules serve a laptop
and a pod.
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
    data: devices that share the batch; -1 for all that `model` leaves.
    model: devices that share each weight matrix.
    members: seeds trained together, which the "data" devices divide among
      them as evenly as goes before they share each member's batch.
    devices: to lay out instead; they may be only described, for compiling.

  Returns:
    A mesh with axes ("data", "model"), or for several members ("member",
    "data", "model").

  Raises:
    UserError: if the numbers do not fit the devices there are.
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
    ways = math.gcd(members, data)
    shape = {"member": ways, "data": data // ways, "model": model}
  # On a slice of 16 x 16 chips no axis has 8: one of its sides is split.
  laid_out = mesh_utils.create_device_mesh(
    tuple(shape.values()),
    jax.devices() if devices is None else devices,
    allow_split_physical_axes=True,
  )
  return Mesh(laid_out, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def inference_mesh(model: int) -> Mesh:
  """All devices, with a "model" axis of that size if it divides them."""
  return make_mesh(model=model if jax.device_count() % model == 0 else 1)


def check_batch(name: str, batch: int, mesh: Mesh, shared: bool = False):
  """Refuses a batch that its devices do not divide.

  Args:
    name: of the config's field.
    batch: its value.
    mesh: the devices.
    shared: whether the devices of all members share it, not of one alone.
  """
  axes = _batch_axes(mesh) if shared else ("data",)
  ways = math.prod(mesh.shape[name] for name in axes)
  if batch % ways:
    below, above = batch // ways * ways, -(-batch // ways) * ways
    near = f"{below} or {above}" if below else f"{above}"
    raise UserError(
      f"{name}={batch}: must be a multiple of the {ways} devices that share "
      f"it; try {near}"
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, P())


def by_batch(mesh: Mesh) -> NamedSharding:
  """The leading axis is split over all axes but "model"."""
  return NamedSharding(mesh, P(_batch_axes(mesh)))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
  return tuple(name for name in mesh.axis_names if name != "model")


def shardings(tree: Any, mesh: Mesh, stacked: bool = False) -> Any:
  """The sharding of every array of a tree, by `RULES`.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: the devices.
    stacked: whether every array has a leading axis of members; the rules then
      hold for the axes after it.

  Returns:
    The same tree of `NamedSharding`.
  """

  def of(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if stacked:
      spec = P("member", *spec)
    return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, tree)


def all_at_once(function: SlotFunction) -> SlotFunction:
  """The `SplitSlots` of one device and one microbatch."""
  return function


def split_slots(mesh: Mesh, microbatches: int) -> SplitSlots:
  """Splits a function of batch slots over devices and microbatches.

  Each device of "data" computes slots of its own, and all sums are added up by
  one reduction at the end. "model" is left to the compiler.

  Args:
    mesh: the devices.
    microbatches: equal parts of a device's slots, computed one after another
      to save memory.

  Returns:
    A transformation of `(shared, slots) -> (sums, results)`, where leaves of
    `slots` and `results` are [slots, ...], to one that computes the same.
  """

  def split(function: SlotFunction) -> SlotFunction:
    one_device = functools.partial(_accumulate, function, microbatches)
    if mesh.size == 1:
      return one_device
    # An axis of one device is not left to the compiler either: it refuses
    # kernels where there is anything that it might divide.
    manual = {
      name
      for name in mesh.axis_names
      if name != "model" or mesh.shape[name] == 1
    }

    def reduced(shared, slots):
      sums, results = one_device(shared, slots)
      return jax.lax.psum(sums, "data"), results

    return jax.shard_map(
      reduced,
      mesh=mesh,
      in_specs=(P(), P("data")),
      out_specs=(P(), P("data")),
      # A population's members are a mapped axis of arrays in here.
      axis_names=manual,
      check_vma=False,
    )

  return split


def _accumulate(
  function: SlotFunction, microbatches: int, shared: Any, slots: Any
):
  """Scans a function over microbatches and adds up its sums."""
  if microbatches == 1:
    return function(shared, slots)

  def body(sums, microbatch):
    more, results = function(shared, microbatch)
    return jax.tree.map(jnp.add, sums, more), results

  divided = jax.tree.map(
    lambda leaf: leaf.reshape(microbatches, -1, *leaf.shape[1:]), slots
  )
  first = jax.tree.map(lambda leaf: leaf[0], divided)
  like, _ = jax.eval_shape(function, shared, first)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
  sums, results = jax.lax.scan(body, zeros, divided)
  return sums, jax.tree.map(
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results
  )


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Host arrays onto devices; each process places only what is its own."""

  def place(array):
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(place, tree)


def put_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
  """A host array whose rows are split over all devices.

  Args:
    array: [N, ...]; may be memory-mapped, for each process reads only the
      rows of its own devices.
    mesh: the devices.

  Returns:
    The array with rows of zeros after its own, so that all devices have
    equally many.
  """
  rows = -(-len(array) // mesh.size) * mesh.size

  def part(index):
    own = array[index]
    first, last, _ = index[0].indices(rows)
    missing = (last - first) - len(own)
    return np.pad(own, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

  return jax.make_array_from_callback(
    (rows, *array.shape[1:]), NamedSharding(mesh, P(mesh.axis_names)), part
  )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Drops the axes of a spec that do not divide the array's dimensions."""
  kept = []
  for size, axes in zip(shape, spec, strict=False):
    names = (axes,) if isinstance(axes, str) else axes or ()
    ways = np.prod([mesh.shape[name] for name in names], dtype=int)
    kept.append(axes if size % ways == 0 else None)
  return P(*kept)
