"""TRM on Sudoku-Extreme with widths from 512 to 4096 (7M to 400M weights).

Source: none; the TRM paper (arXiv 2510.04871, section 4) reports that more
layers overfit, but not the effect of width. The learning rate is proportional
to 1 / width, as in muP (arXiv 2203.03466).

| variant | weights | heads | mesh  | v5e:4x4, GiB of 15.75 | least ms a step |
|---------|---------|-------|-------|-----------------------|-----------------|
| (512)   | 6.8M    | 8     | 16x1  | 0.4                   | 14              |
| :1024   | 26M     | 16    | 16x1  | 1.2                   | 52              |
| :2048   | 103M    | 32    | 16x1  | 4.1                   | 206             |
| :4096   | 405M    | 64    | 4x4   | 4.8                   | 807             |

    trm train --config=scaling:2048 --workdir=runs/width_2048

The last two columns are the compiler's memory and the bound by the chip's peaks
(docs/scaling.md); none was trained. At 4096 `mesh.model=1` needs 13.6 GiB and
sends less: use it on chips with 32 GB or more.
"""

from ml_collections import ConfigDict

from trm_jax.configs import sudoku_extreme

VARIANTS = ("512", "1024", "2048", "4096")


def get_config(variant: str = "512") -> ConfigDict:
  """The experiment at one of the widths in `VARIANTS`."""
  config = sudoku_extreme.get_config("attention")
  width = int(variant)
  factor = width // 512
  config.update(
    # The puzzle embedding is one token; the prefix keeps its 16 tokens.
    model=dict(width=width, heads=8 * factor, puzzle_emb_ndim=width),
    optim=dict(lr=1e-4 / factor),
    # keeps the activations of a microbatch the same size at every width
    train=dict(microbatch=96 // factor),
    mesh=dict(model=4 if width >= 4096 else 1),
  )
  return config
