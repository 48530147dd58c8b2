"""Single latent: the answer is its own scratchpad (an ablation of TRM)."""

from trm_jax.core.families import trm
from trm_jax.core.family import Family, ReferenceNames, Style

FAMILY = Family(
  name="single_latent",
  title="single latent",
  phrase="the single-latent model",
  summary="`y <- net(y + x)` n times, then `y <- net(y)`",
  source="the ablations of arXiv 2510.04871",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {"y": (config.width,)},
  passes=trm.passes,
  step=trm.step,
  is_standard_cycle=True,
  style=Style("#009E73", "^", (0, (4, 1.2, 1, 1.2))),
  reference=ReferenceNames(
    kind="trm_singlez",
    model="trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    stacks=(("L_level", "blocks"),),
    latents=lambda config: [("L", ("y",))],
  ),
)
