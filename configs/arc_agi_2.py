"""ARC-AGI-2 as in the TRM paper; only the data differs from ARC-AGI-1.

Source: see `trm configs arc_agi_1`.

| variant | latent steps n    | expected pass@2, %  | hardware    | hours  |
|---------|-------------------|---------------------|-------------|--------|
| (paper) | 6, as its text    | 7.8 (paper)         | 4 H100      | ~72    |
| :readme | 4, as its command | 7.8 (paper)         | 4 H100      | ~72    |
| :cpu    | 2                 | see README (ours)   | 2 CPU cores | 0.2    |

    git clone https://github.com/arcprize/ARC-AGI-2 data/ARC-AGI-2
    git clone https://github.com/victorvikram/ConceptARC data/ConceptARC
    trm train --config=arc_agi_2 --workdir=runs/arc2

The training set of ARC-AGI-2 contains most of ARC-AGI-1, including 376 tasks of
its evaluation set: do not evaluate a model trained here on ARC-AGI-1.
"""

from ml_collections import ConfigDict

from trm_jax.configs import arc_agi_1

VARIANTS = arc_agi_1.VARIANTS


def get_config(variant: str = "paper") -> ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  config = arc_agi_1.get_config(variant)
  if variant == "cpu":
    config.data.test = "data/ARC-AGI-2/data/training"
    return config
  config.data.train = "data/ARC-AGI-2/data/training,data/ConceptARC/corpus"
  config.data.test = "data/ARC-AGI-2/data/evaluation"
  config.train.steps = 720_000  # 100,000 epochs
  return config
