"""A family from outside the package: TRM whose answer moves half of the way."""

from trm_jax.core import recursion
from trm_jax.core.families import trm
from trm_jax.core.family import Family, Style, register


def cycle(nets, latents, x, config, keys=None):
  """n latent steps, then `y <- (y + net(y + z)) / 2`."""
  net = nets["blocks"]
  refined = recursion.think(net, latents, x, config.latent_steps, keys)
  refined = recursion.answer(net, refined, keys)
  y = (latents.y + refined.y) / 2
  return refined.replace(y=y)


FAMILY = register(
  Family(
    name="damped",
    title="damped TRM",
    phrase="the damped TRM",
    summary="as TRM, with `y <- (y + net(y + z)) / 2`",
    source="an example",
    stacks=lambda config: {"blocks": config.layers},
    latents=lambda config: {"y": (config.width,), "z": (config.width,)},
    passes=trm.passes,
    step=lambda step, y_z: recursion.run_cycles(step, y_z, cycle),
    style=Style("#800000", "*", "--"),
  )
)
