"""TRM: one network refines a scratchpad `z` and an answer `y`."""

from trm_jax.core import recursion
from trm_jax.core.family import Family, Passes, ReferenceNames, Style


def passes(config) -> dict[str, Passes]:
  """T cycles of n + 1 passes through one stack; gradient in the last."""
  cycle = config.latent_steps + 1
  return {"blocks": Passes(config.cycles * cycle, cycle)}


def step(step: recursion.StepInputs, latents):
  """T cycles, the first T - 1 without gradient."""
  return recursion.run_cycles(step, latents, recursion.fused_cycle)


FAMILY = Family(
  name="trm",
  title="TRM",
  phrase="TRM",
  summary="`z <- net(z + y + x)` n times, then `y <- net(y + z)`",
  source='"Less is More: Recursive Reasoning with Tiny Networks", '
  "arXiv 2510.04871",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {"y": (config.width,), "z": (config.width,)},
  passes=passes,
  step=step,
  is_standard_cycle=True,
  style=Style("#0072B2", "o", "-"),
  reference=ReferenceNames(
    kind="trm",
    model="trm@TinyRecursiveReasoningModel_ACTV1",
    stacks=(("L_level", "blocks"),),
    latents=lambda config: [("H", ("y",)), ("L", ("z",))],
  ),
)
