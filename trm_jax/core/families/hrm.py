"""HRM: two networks, one for the scratchpad and one for the answer."""

from trm_jax.core import recursion
from trm_jax.core.family import (
  Family,
  Passes,
  ReferenceNames,
  Style,
  lacks_wide_prefix,
)


def answer_layers(config) -> int:
  """Blocks of the network that updates the answer."""
  return config.answer_layers or config.layers


def passes(config) -> dict[str, Passes]:
  """Gradient through the last latent step and the last answer alone."""
  return {
    "blocks": Passes(config.cycles * config.latent_steps, 1),
    "answer_blocks": Passes(config.cycles, 1),
  }


def _cycle(nets, latents, x, config, keys=None):
  latents = recursion.think(
    nets["blocks"], latents, x, config.latent_steps, keys
  )
  return recursion.answer(nets["answer_blocks"], latents, keys)


def step(step: recursion.StepInputs, latents):
  """T cycles; all but the last two passes are without gradient."""
  config, last = step.config, step.config.cycles - 1
  latents = recursion.no_grad_cycles(step, latents, _cycle)
  latents = step.perturb(latents, last)
  keys = recursion.fold(step.keys, last)
  n = config.latent_steps - 1
  latents = recursion.think(
    step.frozen["blocks"], latents, step.x_frozen, n, keys
  )
  keys = recursion.fold(keys, n)
  latents = recursion.think(step.nets["blocks"], latents, step.x, 1, keys)
  return recursion.answer(step.nets["answer_blocks"], latents, keys)


FAMILY = Family(
  name="hrm",
  title="HRM",
  phrase="HRM",
  summary="as TRM with two networks; gradient through the last two passes",
  source='"Hierarchical Reasoning Model", arXiv 2506.21734',
  stacks=lambda config: {
    "blocks": config.layers,
    "answer_blocks": answer_layers(config),
  },
  latents=lambda config: {"y": (config.width,), "z": (config.width,)},
  passes=passes,
  step=step,
  unread=(),
  halting_margin=lambda halt, proceed: halt - proceed,
  bootstraps=True,
  is_standard_cycle=True,
  style=Style("#56B4E9", "s", (0, (6, 1.5))),
  reference=ReferenceNames(
    kind="hrm",
    model="hrm@HierarchicalReasoningModel_ACTV1",
    stacks=(("H_level", "answer_blocks"), ("L_level", "blocks")),
    latents=lambda config: [("H", ("y",)), ("L", ("z",))],
    lacks=lacks_wide_prefix,
  ),
)
