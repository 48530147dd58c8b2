"""Recursion: an answer refined by scans of one small network.

latent step        z <- net(z + y + x)
cycle              n latent steps, then y <- net(y + z)
supervision step   T cycles; only the last one carries gradient

That is TRM. The files of `core/families/` say how its relatives differ, with
the parts that are here.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import hashing, layers, network
from trm_jax.core.model import Latents, ModelConfig, Weights

# Folded into keys for the answer's noise; latent steps fold their number.
_ANSWER = 2**31 - 1

# `(h, keys) -> h`: a stack of blocks, with noise after it where there are keys.
Net = Callable[[jax.Array, jax.Array | None], jax.Array]
Nets = Mapping[str, Net]

# `(latents, cycle) -> latents`: perturbs the latents before each cycle, called
# with the cycle's index, int32 [].
Perturbation = Callable[[Latents, Any], Latents]

# `(nets, latents, x, config, keys) -> latents`
Cycle = Callable[
  [Nets, Latents, jax.Array, ModelConfig, jax.Array | None], Latents
]


@dataclasses.dataclass(frozen=True, eq=False)
class StepInputs:
  """What a family's supervision step works with, besides the latents.

  Attributes:
    config: the model.
    nets: each stack of blocks as a function, with gradient.
    frozen: the same without gradient.
    x: embedded question, `[B, L, D]`.
    x_frozen: the same without gradient.
    keys: typed PRNG keys `[B]` for noise, or None.
    perturb: to be called before each cycle.
  """

  config: ModelConfig
  nets: Nets
  frozen: Nets
  x: jax.Array
  x_frozen: jax.Array
  keys: jax.Array | None
  perturb: Perturbation


def initial_latents(
  initial: Latents,
  batch: int,
  config: ModelConfig,
  key: jax.Array | None = None,
) -> Latents:
  """What recursion starts from, for a batch.

  Args:
    initial: `Params.initial`.
    batch: B.
    config: the model.
    key: typed PRNG key for the random start of a model with `initial_std`.

  Returns:
    `[B, ..., L, D]` in `config.dtype`: the initial vectors repeated, or drawn
    anew for each puzzle and token from a truncated normal.
  """
  vectors, structure = jax.tree.flatten(initial)
  dtype = jnp.dtype(config.dtype)

  def start(i: int, vector: jax.Array) -> jax.Array:
    *several, width = vector.shape
    shape = (batch, *several, config.length, width)
    if config.initial_std and key is not None:
      draw = layers.truncated_normal(config.initial_std)
      return draw(jax.random.fold_in(key, i), shape, dtype)
    return jnp.broadcast_to(vector.astype(dtype)[None, ..., None, :], shape)

  return structure.unflatten(start(i, v) for i, v in enumerate(vectors))


def evaluation_latents(
  initial: Latents, batch: int, config: ModelConfig
) -> Latents:
  """`initial_latents`, deterministic.

  The random start of a model with `initial_std` is one draw for all puzzles,
  so that no answer depends on a puzzle's place in a batch.
  """
  one = initial_latents(initial, 1, config, hashing.base_key(0))
  return jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])), one
  )


def supervision_step(
  weights: Weights,
  latents: Latents,
  x: jax.Array,
  config: ModelConfig,
  keys: jax.Array | None = None,
  perturb: Perturbation | None = None,
) -> Latents:
  """One supervision step of any family that has a `step`.

  Args:
    weights: `Params.weights`.
    latents: what the last step left, or `initial_latents`.
    x: embedded question, `[B, L, D]`.
    config: the model; T is `config.cycles`, n is `config.latent_steps`.
    keys: typed PRNG keys `[B]` for `config.path_noise`, of each puzzle, so
      that its noise does not depend on its place; `None` for no noise.
    perturb: changes the latents before each cycle; for the noise of rollouts.

  Returns:
    The refined `Latents`. Its gradient with respect to `weights` and `x` is
    that of the last cycle alone (in HRM of its last two passes), and zero with
    respect to `latents`.
  """
  chex.assert_shape(x, (None, config.length, config.width))
  family = config.kind
  assert family.step, f"{family.name} has a step"
  table = network.rotary(config)

  def nets_of(weights: Weights, remat: str) -> Nets:
    def net(blocks: Weights) -> Net:
      apply = _rematerialised(
        lambda h: network.apply_blocks(blocks, h, table, config), remat
      )
      return functools.partial(_with_noise, apply, config.path_noise)

    return {stack: net(weights[stack]) for stack in family.stacks(config)}

  # Everything that enters the first T-1 cycles is cut off, not only what
  # leaves them: then differentiation never traces them at all.
  frozen, latents, x_frozen = jax.lax.stop_gradient((weights, latents, x))
  step = StepInputs(
    config=config,
    nets=nets_of(weights, config.remat),
    frozen=nets_of(frozen, "none"),
    x=x,
    x_frozen=x_frozen,
    keys=keys,
    perturb=perturb or (lambda latents, _: latents),
  )
  return family.step(step, latents)


def run_cycles(step: StepInputs, latents: Latents, cycle: Cycle) -> Latents:
  """T cycles, of which the last carries gradient."""
  last = step.config.cycles - 1
  latents = no_grad_cycles(step, latents, cycle)
  latents = step.perturb(latents, jnp.int32(last))
  return cycle(step.nets, latents, step.x, step.config, fold(step.keys, last))


def no_grad_cycles(step: StepInputs, latents: Latents, cycle: Cycle) -> Latents:
  """The first T - 1 cycles."""

  def no_grad_cycle(latents, i):
    latents = step.perturb(latents, i)
    keys = fold(step.keys, i)
    return cycle(step.frozen, latents, step.x_frozen, step.config, keys), None

  count = jnp.arange(step.config.cycles - 1)
  return jax.lax.scan(no_grad_cycle, latents, count)[0]


def fused_cycle(
  nets: Nets,
  latents: Latents,
  x: jax.Array,
  config: ModelConfig,
  keys: jax.Array | None = None,
) -> Latents:
  """A cycle of one network on one scratchpad, as one scan of n + 1 passes.

  The program is half as long as that of `think` and `answer`, and the gradient
  of the weights one sum. Without `z`, the answer is its own scratchpad.
  """
  net, y, z = nets["blocks"], latents.y, latents.z
  last = config.latent_steps

  def one_pass(carry, i):
    _, h = carry
    shown = jnp.where(i < last, x, 0)  # the question, but not to the answer
    injected = shown if z is None else y + shown  # y is constant meanwhile
    noise = fold(keys, jnp.where(i < last, i, _ANSWER))
    return (h, net(h + injected, noise)), None

  start = y if z is None else z
  (thought, y), _ = jax.lax.scan(one_pass, (start, start), jnp.arange(last + 1))
  return Latents(y=y, z=None if z is None else thought)


def think(
  net: Net,
  latents: Latents,
  x: jax.Array,
  steps: int,
  keys: jax.Array | None = None,
) -> Latents:
  """Latent steps; where `z` has an axis of scratchpads, step i writes z_i."""
  y, z = latents.y, latents.z
  injected = y + x  # y is constant while z thinks

  def latent_step(z, i):
    return net(z + injected, fold(keys, i)), None

  def multi_step(z, i):
    new = net(jnp.sum(z, axis=1) + injected, fold(keys, i))
    return z.at[:, i].set(new), None

  step = latent_step if z.ndim == y.ndim else multi_step
  return Latents(y=y, z=jax.lax.scan(step, z, jnp.arange(steps))[0])


def answer(
  net: Net, latents: Latents, keys: jax.Array | None = None
) -> Latents:
  """The update of the answer that ends a cycle."""
  y, z = latents.y, latents.z
  thought = z if z.ndim == y.ndim else jnp.sum(z, axis=1)
  return Latents(y=net(y + thought, fold(keys, _ANSWER)), z=z)


def fold(keys: jax.Array | None, number: jax.typing.ArrayLike):
  """Folds a number into every puzzle's key, where there are keys."""
  if keys is None:
    return None
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _with_noise(
  apply: Callable[[jax.Array], jax.Array],
  std: float,
  h: jax.Array,
  keys: jax.Array | None,
) -> jax.Array:
  """The network, and noise on what it returns (EqR's path noise)."""
  h = apply(h)
  if not std or keys is None:
    return h
  draw = functools.partial(jax.random.normal, shape=h.shape[1:], dtype=h.dtype)
  return h + std * jax.vmap(draw)(keys)


def _rematerialised(
  apply: Callable[[jax.Array], jax.Array], remat: str
) -> Callable[[jax.Array], jax.Array]:
  """Chooses what the backward pass keeps of a network and what it computes."""
  if remat == "none":
    return apply
  policy = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
  }[remat]
  return jax.checkpoint(apply, policy=policy)
