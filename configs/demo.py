"""A small TRM that learns 6x6 Sudoku on two CPU cores in a few minutes.

Source: this project; the puzzles are generated. Expected: at least 99% of 500
held-out puzzles exact at depth 16, far fewer at depth 1. Hardware: 2 CPU cores,
0.1 hours. Command: `trm demo`, or `make demo` in a checkout.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The experiment behind `trm demo`."""
  return ConfigDict(
    dict(
      data=dict(
        task="sudoku",
        size=6,
        train="generate",
        test="generate",
        num_train=2500,
        num_test=500,
        givens=(9, 12),
        subsample=0,
      ),
      model=dict(
        width=96,
        layers=1,
        inner_multiple=32,
        puzzle_emb_ndim=96,
        puzzle_emb_len=1,
        cycles=2,
        latent_steps=3,
        dtype="float32",
      ),
      optim=dict(
        lr=2e-3,
        weight_decay=0.1,
        warmup_steps=50,
        puzzle_lr=1e-3,
        puzzle_weight_decay=0.1,
        ema=0.99,
      ),
      train=dict(steps=1500, batch_size=64, steps_per_dispatch=5, log_every=10),
      eval=dict(every=500, batch_size=128),
      checkpoint=dict(every=250, keep=1),
    )
  )
