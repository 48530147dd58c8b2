"""Recursion: an answer refined by scans of one small network.

latent step        z <- net(z + y + x)
cycle              n latent steps, then y <- net(y + z)
supervision step   T cycles; only the last one carries gradient

So it is in TRM. Its relatives differ in one thing each:

hrm            two networks, one for `z` and one for `y`; gradient through the
               last latent step and the last answer alone
single_latent  latent step y <- net(y + x), and the cycle ends with y <- net(y)
multi_latent   latent step i writes z_i <- net(sum of all z + y + x)
transformer    no latent steps, a single cycle: y <- net(y + x)
feedforward    y = net(x), whatever y was
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import layers, network
from trm_jax.core.network import Latents, ModelConfig, Weights

# Folded into keys for the answer's noise; latent steps fold their number.
_ANSWER = 2**31 - 1

# `(h, key) -> h`: the network, with noise after it where there is a key.
Net = Callable[[jax.Array, jax.Array | None], jax.Array]

# `(latents, cycle) -> latents`: what befalls them before a cycle, int32 [].
Disturbance = Callable[[Latents, jax.Array], Latents]


class Nets(NamedTuple):
  """What updates the scratchpad, and what updates the answer."""

  think: Net
  answer: Net


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
  """What recursion starts from when nothing is left to chance.

  The random start of a model with `initial_std` is one draw for all puzzles,
  so that no answer depends on a puzzle's place in a batch.
  """
  one = initial_latents(initial, 1, config, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])), one
  )


def supervision_step(
  weights: Weights,
  latents: Latents,
  x: jax.Array,
  config: ModelConfig,
  key: jax.Array | None = None,
  disturb: Disturbance | None = None,
) -> Latents:
  """One supervision step of any family but the decoder.

  Args:
    weights: `Params.weights`.
    latents: what the last step left, or `initial_latents`.
    x: embedded question, `[B, L, D]`.
    config: the model; T is `config.cycles`, n is `config.latent_steps`.
    key: typed PRNG key for `config.path_noise`; `None` for no noise.
    disturb: changes the latents before each cycle, which it is told the number
      of; for the noise of rollouts.

  Returns:
    The refined `Latents`. Its gradient with respect to `weights` and `x` is
    that of the last cycle alone (in HRM of its last two passes), and zero with
    respect to `latents`.
  """
  chex.assert_shape(x, (None, config.length, config.width))
  table = network.rotary(config)

  def nets_of(weights: Weights, remat: str) -> Nets:
    def net(stack: str) -> Net:
      blocks = weights[stack]
      apply = _rematerialised(
        lambda h: network.apply_blocks(blocks, h, table, config), remat
      )
      return functools.partial(_disturbed, apply, config.path_noise)

    answers = "answer_blocks" if config.family == "hrm" else "blocks"
    return Nets(think=net("blocks"), answer=net(answers))

  nets = nets_of(weights, config.remat)
  if not config.is_recursive:
    return Latents(y=nets.answer(x, None), z=None)
  # Everything that enters the first T-1 cycles is cut off, not only what
  # leaves them: then differentiation never traces them at all.
  frozen, latents, still_x = jax.lax.stop_gradient((weights, latents, x))
  still = nets_of(frozen, "none")
  disturb = disturb or (lambda latents, _: latents)
  if config.family == "transformer":
    y = disturb(latents, jnp.int32(0)).y
    return Latents(y=nets.answer(y + x, key), z=None)

  last_key = None
  keys = None
  if key is not None:
    silent_key, last_key = jax.random.split(key)
    keys = jax.random.split(silent_key, config.cycles - 1)

  def silent_cycle(latents, number_and_key):
    number, key = number_and_key
    latents = disturb(latents, number)
    return cycle(still, latents, still_x, config, key), None

  last = config.cycles - 1
  latents, _ = jax.lax.scan(silent_cycle, latents, (jnp.arange(last), keys))
  latents = disturb(latents, jnp.int32(last))
  if config.family == "hrm":
    n = config.latent_steps - 1
    first_key, last_key = _split(last_key, 2)
    latents = think(still, latents, still_x, n, first_key)
    latents = think(nets, latents, x, 1, last_key)
    return answer(nets, latents, last_key)
  return cycle(nets, latents, x, config, last_key)


def cycle(
  nets: Nets,
  latents: Latents,
  x: jax.Array,
  config: ModelConfig,
  key: jax.Array | None = None,
) -> Latents:
  """`n` latent steps, then one update of the answer."""
  latents = think(nets, latents, x, config.latent_steps, key)
  return answer(nets, latents, key)


def think(
  nets: Nets,
  latents: Latents,
  x: jax.Array,
  steps: int,
  key: jax.Array | None = None,
) -> Latents:
  """Latent steps of the families that have them; which, the latents tell."""
  y, z = latents.y, latents.z
  numbers = jnp.arange(steps)

  def noise(i):
    return None if key is None else jax.random.fold_in(key, i)

  if z is None:  # the answer is its own scratchpad

    def single_step(y, i):
      return nets.think(y + x, noise(i)), None

    return Latents(y=jax.lax.scan(single_step, y, numbers)[0], z=None)

  injected = y + x  # y stands still while z thinks

  def latent_step(z, i):
    return nets.think(z + injected, noise(i)), None

  def multi_step(z, i):
    new = nets.think(jnp.sum(z, axis=1) + injected, noise(i))
    return z.at[:, i].set(new), None

  step = latent_step if z.ndim == y.ndim else multi_step
  return Latents(y=y, z=jax.lax.scan(step, z, numbers)[0])


def answer(
  nets: Nets, latents: Latents, key: jax.Array | None = None
) -> Latents:
  """The update of the answer that ends a cycle."""
  y, z = latents.y, latents.z
  if z is None:
    h = y
  elif z.ndim == y.ndim:
    h = y + z
  else:
    h = y + jnp.sum(z, axis=1)
  noise = None if key is None else jax.random.fold_in(key, _ANSWER)
  return Latents(y=nets.answer(h, noise), z=z)


def _disturbed(
  apply: Callable[[jax.Array], jax.Array],
  std: float,
  h: jax.Array,
  key: jax.Array | None,
) -> jax.Array:
  """The network, and noise on what it returns (EqR's path noise)."""
  h = apply(h)
  if not std or key is None:
    return h
  return h + std * jax.random.normal(key, h.shape, h.dtype)


def _split(key: jax.Array | None, count: int):
  return (None,) * count if key is None else jax.random.split(key, count)


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
