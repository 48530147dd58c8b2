"""Recursion: an answer refined by scans of one small network.

latent step        z <- net(z + y + x)
cycle              n latent steps, then y <- net(y + z)
supervision step   T cycles; only the last one carries gradient
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from trm_jax.core import network
from trm_jax.core.network import Latents, ModelConfig, Weights

Net = Callable[[jax.Array], jax.Array]


def initial_latents(
  initial: Latents, batch: int, config: ModelConfig
) -> Latents:
  """The fixed initial `y` and `z`, repeated to `[B, L, D]`."""
  shape = (batch, config.length, config.width)
  return jax.tree.map(
    lambda v: jnp.broadcast_to(
      v.astype(config.dtype)[None, None], shape
    ),
    initial,
  )  # fmt: skip


def cycle(net: Net, latents: Latents, x: jax.Array, n: int) -> Latents:
  """`n` latent steps, then one update of the answer."""
  injected = latents.y + x  # y stands still while z thinks

  def latent_step(z, _):
    return net(z + injected), None

  z, _ = jax.lax.scan(latent_step, latents.z, length=n)
  return Latents(y=net(latents.y + z), z=z)


def supervision_step(
  weights: Weights, latents: Latents, x: jax.Array, config: ModelConfig
) -> Latents:
  """One supervision step of TRM: T cycles, gradient through the last alone.

  Args:
    weights: `Params.weights`.
    latents: `y, z`, `[B, L, D]`.
    x: embedded question, `[B, L, D]`.
    config: the model; T is `config.cycles`, n is `config.latent_steps`.

  Returns:
    The refined `Latents`. Its gradient with respect to `weights` and `x` is
    that of the last cycle alone, and zero with respect to `latents`.
  """
  chex.assert_equal_shape([latents.y, latents.z, x])
  table = network.rotary(config)

  def net_of(weights: Weights) -> Net:
    return lambda h: network.apply_blocks(weights, h, table, config)

  # Everything that enters the first T-1 cycles is cut off, not only what
  # leaves them: then differentiation never traces them at all.
  frozen, latents, still_x = jax.lax.stop_gradient((weights, latents, x))

  def silent_cycle(latents, _):
    return cycle(net_of(frozen), latents, still_x, config.latent_steps), None

  latents, _ = jax.lax.scan(silent_cycle, latents, length=config.cycles - 1)
  net = _rematerialised(net_of(weights), config.remat)
  return cycle(net, latents, x, config.latent_steps)


def _rematerialised(net: Net, remat: str) -> Net:
  """Chooses what the backward pass keeps of `net` and what it computes anew."""
  if remat == "none":
    return net
  policy = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
  }[remat]
  return jax.checkpoint(net, policy=policy)
