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

# `(h, keys) -> h`: the network, with noise after it where there are keys.
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
  keys: jax.Array | None = None,
  disturb: Disturbance | None = None,
) -> Latents:
  """One supervision step of any family but the decoder.

  Args:
    weights: `Params.weights`.
    latents: what the last step left, or `initial_latents`.
    x: embedded question, `[B, L, D]`.
    config: the model; T is `config.cycles`, n is `config.latent_steps`.
    keys: typed PRNG keys `[B]` for `config.path_noise`, of each puzzle, so
      that its noise does not depend on its place; `None` for no noise.
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
    return Latents(y=nets.answer(y + x, keys), z=None)

  def silent_cycle(latents, number):
    latents = disturb(latents, number)
    return cycle(still, latents, still_x, config, _fold(keys, number)), None

  last = config.cycles - 1
  latents, _ = jax.lax.scan(silent_cycle, latents, jnp.arange(last))
  latents = disturb(latents, jnp.int32(last))
  keys = _fold(keys, last)
  if config.family == "hrm":
    n = config.latent_steps - 1
    latents = think(still, latents, still_x, n, keys)
    keys = _fold(keys, n)
    latents = think(nets, latents, x, 1, keys)
    return answer(nets, latents, keys)
  return cycle(nets, latents, x, config, keys)


def cycle(
  nets: Nets,
  latents: Latents,
  x: jax.Array,
  config: ModelConfig,
  keys: jax.Array | None = None,
) -> Latents:
  """`n` latent steps, then one update of the answer.

  Where both are the same network on one scratchpad they are one scan of n + 1
  passes: the program is half as long, and the gradient of the weights one sum.
  """
  if config.family not in ("trm", "single_latent"):
    latents = think(nets, latents, x, config.latent_steps, keys)
    return answer(nets, latents, keys)
  y, z = latents.y, latents.z
  last = config.latent_steps

  def one_pass(carry, i):
    _, h = carry
    shown = jnp.where(i < last, x, 0)  # the question, but not to the answer
    injected = shown if z is None else y + shown  # y stands still meanwhile
    noise = _fold(keys, jnp.where(i < last, i, _ANSWER))
    return (h, nets.think(h + injected, noise)), None

  # With a single latent, the answer is its own scratchpad.
  start = y if z is None else z
  (thought, y), _ = jax.lax.scan(one_pass, (start, start), jnp.arange(last + 1))
  return Latents(y=y, z=None if z is None else thought)


def think(
  nets: Nets,
  latents: Latents,
  x: jax.Array,
  steps: int,
  keys: jax.Array | None = None,
) -> Latents:
  """Latent steps of "hrm" and "multi_latent"; which, the latents tell."""
  y, z = latents.y, latents.z
  injected = y + x  # y stands still while z thinks

  def latent_step(z, i):
    return nets.think(z + injected, _fold(keys, i)), None

  def multi_step(z, i):
    new = nets.think(jnp.sum(z, axis=1) + injected, _fold(keys, i))
    return z.at[:, i].set(new), None

  step = latent_step if z.ndim == y.ndim else multi_step
  return Latents(y=y, z=jax.lax.scan(step, z, jnp.arange(steps))[0])


def answer(
  nets: Nets, latents: Latents, keys: jax.Array | None = None
) -> Latents:
  """The update of the answer that ends a cycle of these families."""
  y, z = latents.y, latents.z
  thought = z if z.ndim == y.ndim else jnp.sum(z, axis=1)
  return Latents(y=nets.answer(y + thought, _fold(keys, _ANSWER)), z=z)


def _disturbed(
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


def _fold(keys: jax.Array | None, number: jax.typing.ArrayLike):
  """Folds a number into every puzzle's key, where there are keys."""
  if keys is None:
    return None
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


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
