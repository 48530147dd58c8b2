"""Sudoku-Extreme: 9x9, 1,000 training puzzles, tested on 422,786.

Source: "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871), section 5, and the reference implementation's README.

| variant      | exact, %              | hardware        | hours |
|--------------|-----------------------|-----------------|-------|
| (mlp)        | 87.4 (paper)          | one L40S        | < 20  |
| :attention   | 74.7 (paper)          | one L40S        | < 20  |
| :cpu         | 9.2 (ours, see README)| 2 CPU cores     | 0.5   |

    trm train --config=sudoku_extreme --workdir=runs/sudoku

The dataset is downloaded from the Hugging Face hub. Offline, use csv files of
its format (source,question,answer,rating; plain or gzip):

    --config.data.train=train.csv --config.data.test=test.csv

`:cpu` is a model of 0.2M weights for a laptop. It shows that depth helps, but
does not reach the paper's score.
"""

from ml_collections import ConfigDict

VARIANTS = {
  "mlp": {},
  "attention": dict(model=dict(mixer="attention", positions="rotary")),
  "cpu": dict(
    model=dict(
      width=128,
      expansion=2.0,
      inner_multiple=32,
      puzzle_emb_ndim=128,
      puzzle_emb_len=1,
      cycles=2,
      latent_steps=3,
      dtype="float32",
    ),
    # With 16 steps a puzzle, a small batch would be memorised.
    halting=dict(max_steps=6),
    optim=dict(
      lr=1e-3,
      weight_decay=0.1,
      warmup_steps=100,
      schedule="cosine",
      puzzle_lr=1e-3,
      puzzle_weight_decay=0.1,
      ema=0.99,
    ),
    train=dict(
      steps=3_200,
      batch_size=64,
      microbatch=0,
      steps_per_dispatch=5,
      log_every=20,
    ),
    eval=dict(every=800, puzzles=256, batch_size=128),
    checkpoint=dict(every=100),
  ),
}


def get_config(variant: str = "mlp") -> ConfigDict:
  """The experiment, in one of `VARIANTS`; most fields have their defaults."""
  config = ConfigDict(
    dict(
      data=dict(task="sudoku", train="hub", test="hub", subsample=1000),
      train=dict(steps=60_000, microbatch=96),
      eval=dict(puzzles=15_000),
    )
  )
  config.update(VARIANTS[variant])
  return config
