"""Sudoku-Extreme: 9x9, 1,000 training puzzles, tested on 422,786.

Source: "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871), section 5, and the reference implementation's README.

| variant      | exact, %              | hardware        | hours |
|--------------|-----------------------|-----------------|-------|
| (mlp)        | 87.4 (paper)          | one L40S        | < 20  |
| :attention   | 74.7 (paper)          | one L40S        | < 20  |
| :cpu         | 9.2 (ours, see README)| 2 CPU cores     | 0.5   |

    python -m experiments.train --config=configs/sudoku_extreme.py \
        --workdir=runs/sudoku

The data set is downloaded from the Hugging Face hub. Offline, name csv files
of its format (source,question,answer,rating; plain or gzip):

    --config.data.train=train.csv --config.data.test=test.csv

`:cpu` is a model of 0.2M weights, small enough to watch on a laptop. It shows
that everything works and that depth helps; it does not reach the paper.
"""

import ml_collections

VARIANTS = ("mlp", "attention", "cpu")


def get_config(variant: str = "mlp") -> ml_collections.ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/sudoku_extreme.py:{variant}: the variant must be one of "
      f"{', '.join(VARIANTS)}"
    )
  config = ml_collections.ConfigDict()
  config.data = ml_collections.ConfigDict(
    dict(
      task="sudoku",
      size=9,
      train="hub",
      test="hub",
      subsample=1000,
      min_rating=0,
      seed=0,
      skip_bad_rows=False,
      cache_dir="",
      path="",
    )
  )
  config.model = ml_collections.ConfigDict(
    dict(
      family="trm",
      width=512,
      layers=2,
      heads=8,
      expansion=4.0,
      inner_multiple=256,
      mixer="mlp",
      positions="none",
      puzzle_emb_ndim=512,
      puzzle_emb_len=16,
      registers=0,
      cycles=3,
      latent_steps=6,
      initial_std=0.0,
      path_noise=0.0,
      attention="blocks",
      query_block=0,
      remat="full",
      dtype="bfloat16",
      param_dtype="float32",
    )
  )
  config.halting = ml_collections.ConfigDict(
    dict(max_steps=16, exploration=0.1)
  )
  config.optim = ml_collections.ConfigDict(
    dict(
      kind="adam_atan2",
      lr=1e-4,
      weight_decay=1.0,
      beta1=0.9,
      beta2=0.95,
      warmup_steps=2000,
      schedule="constant",
      lr_min_ratio=0.1,
      puzzle_lr=1e-4,
      puzzle_weight_decay=1.0,
      ema=0.999,
    )
  )
  config.train = ml_collections.ConfigDict(
    dict(
      steps=60_000,
      batch_size=768,
      microbatch=96,
      steps_per_dispatch=10,
      refill="queue",
      loss="stablemax",
      label_smoothing=0.0,
      supervision_decay=1.0,
      augment=True,
      log_every=100,
      seed=0,
    )
  )
  config.eval = ml_collections.ConfigDict(
    dict(every=5_000, puzzles=15_000, depth=16, batch_size=768, seed=0)
  )
  config.checkpoint = ml_collections.ConfigDict(dict(every=1_000, keep=2))
  config.depth = ml_collections.ConfigDict(
    dict(schedule="fixed", stages=(), until=(), seed=0)
  )
  config.mesh = ml_collections.ConfigDict(dict(data=-1, model=1))

  if variant == "attention":
    config.model.mixer = "attention"
    config.model.positions = "rotary"
  elif variant == "cpu":
    _shrink(config)
  return config


def _shrink(config: ml_collections.ConfigDict):
  """Settings for two CPU cores and half an hour."""
  config.model.update(
    width=128,
    expansion=2.0,
    inner_multiple=32,
    puzzle_emb_ndim=128,
    puzzle_emb_len=1,
    cycles=2,
    latent_steps=3,
    dtype="float32",
  )
  # A small batch learns its puzzles by heart within 16 steps spent on each.
  config.halting.max_steps = 6
  config.optim.update(
    lr=1e-3,
    weight_decay=0.1,
    warmup_steps=100,
    schedule="cosine",
    puzzle_lr=1e-3,
    puzzle_weight_decay=0.1,
    ema=0.99,
  )
  config.train.update(
    steps=3_200, batch_size=64, microbatch=0, steps_per_dispatch=5, log_every=20
  )
  config.eval.update(every=800, puzzles=256, batch_size=128)
  config.checkpoint.every = 100
