"""Recurrent transformer: one pass a supervision step, no scratchpad."""

import jax.numpy as jnp

from trm_jax.core import recursion
from trm_jax.core.family import (
  Family,
  Passes,
  ReferenceNames,
  Style,
  lacks_wide_prefix,
)


def _step(step: recursion.StepInputs, latents):
  y = step.perturb(latents, jnp.int32(0)).y
  y = step.nets["blocks"](y + step.x, step.keys)
  return latents.replace(y=y)


def _lacks(config):
  if config.mixer != "attention":
    return "mixer", "its 'transformer' has attention only"
  return lacks_wide_prefix(config)


FAMILY = Family(
  name="transformer",
  title="recurrent transformer",
  phrase="the recurrent transformer",
  summary="`y <- net(y + x)`, one pass a supervision step",
  source="the reference implementation",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {"y": (config.width,)},
  passes=lambda config: {"blocks": Passes(1, 1)},
  step=_step,
  unread=("answer_layers", "cycles", "latent_steps"),
  is_standard_cycle=True,
  style=Style("#D55E00", "D", (0, (3, 1.5))),
  reference=ReferenceNames(
    kind="transformer",
    model="transformers_baseline@Model_ACTV2",
    stacks=(("H_level", "blocks"),),
    latents=lambda config: [("H", ("y",))],
    lacks=_lacks,
  ),
)
