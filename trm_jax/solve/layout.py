"""The engine over many devices: each has slots and a queue of its own.

No device waits for another, and nothing moves between them but the count of
what is done. Scalars of a device are arrays `[1]` outside of it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.run import sharding
from trm_jax.solve import engine
from trm_jax.solve.engine import Plan, State


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

  def start() -> State:
    return _boxed(engine.start(slots, capacity, marks, plan))

  def advance(weights, initial, queue, halting, noise, marks, shrink_at, state):
    queue = queue.replace(count=queue.count[0])
    state = engine.advance(
      weights, initial, queue, halting, noise, marks, shrink_at,
      _unboxed(state), plan,
    )  # fmt: skip
    return _boxed(state), engine.left(queue, state, plan)[None]

  own, same = P("device"), P()
  mapped = jax.shard_map(
    advance,
    mesh=mesh,
    in_specs=(same, same, own, same, same, same, same, own),
    out_specs=(own, own),
    check_vma=False,
  )

  def go_on(*arguments):
    state, left = mapped(*arguments)
    return state, (jnp.sum(state.found.finished), jnp.max(left))

  placed = shared(mesh)
  begin = jax.shard_map(
    start, mesh=mesh, in_specs=(), out_specs=own, check_vma=False
  )
  return (
    jax.jit(begin, out_shardings=placed),
    jax.jit(
      go_on,
      out_shardings=(placed, sharding.replicated(mesh)),
      donate_argnums=7,
    ),
  )


@functools.cache
def compactor(mesh: Mesh, slots: int) -> Callable:
  """Compiles `engine.compact` to so many slots of each device."""
  own = P("device")
  mapped = jax.shard_map(
    lambda state: _boxed(engine.compact(_unboxed(state), slots)),
    mesh=mesh, in_specs=own, out_specs=own, check_vma=False,
  )  # fmt: skip
  return jax.jit(mapped, out_shardings=shared(mesh))


def _boxed(state: State) -> State:
  return jax.tree.map(lambda x: x[None] if x.ndim == 0 else x, state)


def _unboxed(state: State) -> State:
  slots, found = state.slots, state.found
  scalars = ("finished", "spent", "passes")
  return State(
    slots.replace(next=slots.next[0]),
    found.replace(**{name: getattr(found, name)[0] for name in scalars}),
  )
