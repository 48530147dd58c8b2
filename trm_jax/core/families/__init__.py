"""The model families: one file and one line here each."""

from trm_jax.core import family
from trm_jax.core.families import (
  autoregressive,
  feedforward,
  hrm,
  multi_latent,
  single_latent,
  transformer,
  trm,
)

for _family in (
  trm.FAMILY,
  hrm.FAMILY,
  single_latent.FAMILY,
  multi_latent.FAMILY,
  transformer.FAMILY,
  feedforward.FAMILY,
  autoregressive.FAMILY,
):
  family.register(_family)
