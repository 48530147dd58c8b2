"""Multi latent: a scratchpad for every latent step (an ablation of TRM)."""

from trm_jax.core import recursion
from trm_jax.core.families import trm
from trm_jax.core.family import Family, ReferenceNames, Style

_SCRATCHPADS = 6  # of the reference's


def _cycle(nets, latents, x, config, keys=None):
  net = nets["blocks"]
  latents = recursion.think(net, latents, x, config.latent_steps, keys)
  return recursion.answer(net, latents, keys)


def _lacks(config):
  if config.latent_steps != _SCRATCHPADS:
    return "latent_steps", f"its 'multi_latent' has {_SCRATCHPADS} scratchpads"
  return None


FAMILY = Family(
  name="multi_latent",
  title="multi-latent",
  phrase="the multi-latent model",
  summary="latent step i writes `z_i <- net(sum of all z + y + x)`",
  source="the ablations of arXiv 2510.04871",
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {
    "y": (config.width,),
    "z": (config.latent_steps, config.width),
  },
  passes=trm.passes,
  step=lambda step, latents: recursion.run_cycles(step, latents, _cycle),
  tied=("latent_steps",),
  is_standard_cycle=True,
  style=Style("#CC79A7", "v", (0, (4, 1, 1, 1, 1, 1))),
  reference=ReferenceNames(
    kind="trm_hier6",
    model="trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    stacks=(("L_level", "blocks"),),
    latents=lambda config: [
      ("H", ("y",)),
      *((f"L{i + 1}", ("z", i)) for i in range(config.latent_steps)),
    ],
    lacks=_lacks,
  ),
)
