"""The engine over many devices: each has slots and a queue of its own.

No device waits for another, and nothing moves between them but the count of
what is done.
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
  """Each device holds a part of the leading axis."""
  return NamedSharding(mesh, P("device"))


@functools.cache
def whole(mesh: Mesh) -> Callable:
  """Compiles the identity that gives every process whole arrays."""
  return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))


@functools.cache
def programs(
  mesh: Mesh, plan: Plan, slots: int, capacity: int, marks: int
) -> tuple[Callable, Callable]:
  """Compiles `engine.start` and `engine.advance` for a mesh.

  `slots` and `capacity` (puzzles) are of each device.

  Returns:
    `() -> state`, and `(..., state) -> (state, (finished, most left))`: the
    rollouts that are over, and those that are not on the slowest device.
  """

  def advance(weights, initial, queue, settings, shrink_at, state):
    state = engine.advance(
      weights, initial, queue, settings, shrink_at, state, plan
    )
    return state, engine.left(queue, state, plan)

  def go_on(*arguments):
    state, left = mapped(*arguments)
    return state, (jnp.sum(state.found.finished), jnp.max(left))

  own, same = P("device"), P()
  mapped = jax.shard_map(
    advance, mesh=mesh, in_specs=(same, same, own, same, same, own),
    out_specs=(own, own), check_vma=False,
  )  # fmt: skip
  begin = jax.shard_map(
    functools.partial(engine.start, slots, capacity, marks, plan),
    mesh=mesh, in_specs=(), out_specs=own, check_vma=False,
  )  # fmt: skip
  placed = shared(mesh)
  return (
    jax.jit(begin, out_shardings=placed),
    jax.jit(
      go_on,
      out_shardings=(placed, sharding.replicated(mesh)),
      donate_argnums=5,
    ),
  )


@functools.cache
def compactor(mesh: Mesh, slots: int) -> Callable:
  """Compiles `engine.compact` to so many slots of each device."""
  own = P("device")
  mapped = jax.shard_map(
    functools.partial(engine.compact, slots=slots),
    mesh=mesh, in_specs=own, out_specs=own, check_vma=False,
  )  # fmt: skip
  return jax.jit(mapped, out_shardings=shared(mesh))
