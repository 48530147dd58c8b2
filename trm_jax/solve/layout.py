"""The engine on many devices, each with its slots and its queue.

Only counts of finished rollouts move between devices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.run import sharding
from trm_jax.solve import engine
from trm_jax.solve.engine import Plan


def shared(mesh: Mesh) -> NamedSharding:
  """Sharding of the leading axis over the devices."""
  return NamedSharding(mesh, P("device"))


@functools.cache
def whole(mesh: Mesh) -> Callable:
  """Compiles the identity with replicated results: whole arrays everywhere."""
  return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))


@functools.cache
def programs(
  mesh: Mesh, plan: Plan, slots: int, capacity: int, marks: int
) -> tuple[Callable, Callable]:
  """Compiles `engine.start` and `engine.advance` for a mesh.

  `slots` and `capacity` (puzzles) are per device.

  Returns:
    `() -> state`, and `(..., state) -> (state, (finished, most left))`: the
    finished rollouts of all devices, and the most unfinished ones on a device.
  """

  def advance(weights, initial, queue, settings, shrink_at, state):
    state = engine.advance(
      weights, initial, queue, settings, shrink_at, state, plan
    )
    return state, engine.left(queue, state, plan)

  def go_on(*arguments):
    state, left = mapped(*arguments)
    return state, (jnp.sum(state.found.finished), jnp.max(left))

  split, same = P("device"), P()
  mapped = jax.shard_map(
    advance, mesh=mesh, in_specs=(same, same, split, same, same, split),
    out_specs=(split, split), check_vma=False,
  )  # fmt: skip
  begin = jax.shard_map(
    functools.partial(engine.start, slots, capacity, marks, plan),
    mesh=mesh, in_specs=(), out_specs=split, check_vma=False,
  )  # fmt: skip
  outputs = (shared(mesh), sharding.replicated(mesh))
  return (
    jax.jit(begin, out_shardings=shared(mesh)),
    jax.jit(go_on, out_shardings=outputs, donate_argnums=5),
  )


@functools.cache
def compactor(mesh: Mesh, slots: int) -> Callable:
  """Compiles `engine.compact` to `slots` slots per device."""
  mapped = jax.shard_map(
    functools.partial(engine.compact, slots=slots),
    mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False,
  )  # fmt: skip
  return jax.jit(mapped, out_shardings=shared(mesh))
