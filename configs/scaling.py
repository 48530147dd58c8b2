"""Wider and wider: TRM on Sudoku-Extreme from 7 to 400 million weights.

Source: none yet. TRM's paper (arXiv 2510.04871, section 4) says that more
layers overfit; what width does at a fixed depth of recursion, nobody has
published. The learning rate falls as 1 / width, as in muP (arXiv 2203.03466).

| variant | weights | heads | mesh  | v5e:4x4, GiB of 15.75 | least ms a step |
|---------|---------|-------|-------|-----------------------|-----------------|
| (512)   | 6.8M    | 8     | 16x1  | 0.4                   | 14              |
| :1024   | 26M     | 16    | 16x1  | 1.2                   | 52              |
| :2048   | 103M    | 32    | 16x1  | 4.1                   | 206             |
| :4096   | 405M    | 64    | 4x4   | 4.8                   | 807             |

    trm train --config=scaling:2048 --workdir=runs/width_2048

The last two columns are what the compiler needs and what the chip's peaks allow
(docs/scaling.md); none of these was ever trained. `mesh.model=1` fits at 4096
too, into 13.6 GiB, and sends less: set it where chips have 32 GB or more. What
fits without turns and without rematerialisation is told there.
"""

from ml_collections import ConfigDict

from trm_jax.configs import sudoku_extreme

VARIANTS = ("512", "1024", "2048", "4096")


def get_config(variant: str = "512") -> ConfigDict:
  """The experiment at one of the widths in `VARIANTS`."""
  config = sudoku_extreme.get_config("attention")
  width = int(variant)
  times = width // 512
  config.update(
    model=dict(
      width=width,
      heads=8 * times,
      # The prefix keeps its 16 tokens, and the puzzle's vector fills one.
      puzzle_emb_ndim=width,
    ),
    optim=dict(lr=1e-4 / times),
    # as many numbers at once in the network of a device, whatever the width
    train=dict(microbatch=96 // times),
    mesh=dict(model=4 if width >= 4096 else 1),
  )
  return config
