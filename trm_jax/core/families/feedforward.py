"""Feed-forward stack: one pass and no recursion, to compare with."""

from trm_jax.core import recursion
from trm_jax.core.family import Family, Passes, Style


def _step(step: recursion.StepInputs, latents):
  return latents.replace(y=step.nets["blocks"](step.x, None))


FAMILY = Family(
  name="feedforward",
  title="feed-forward stack",
  phrase="the feed-forward stack",
  summary="nothing recurs: `y = net(x)`, a stack of distinct layers",
  source="a baseline of this project",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {},
  passes=lambda config: {"blocks": Passes(1, 1)},
  step=_step,
  is_recursive=False,
  unread=("answer_layers", "cycles", "latent_steps"),
  is_standard_cycle=True,
  style=Style("#E69F00", "P", (0, (1, 1))),
)
