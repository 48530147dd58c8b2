"""Maze-Hard: 30x30, 1,000 training mazes, tested on 1,000.

Source: "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871), section 5, and the reference implementation's README.

| variant | exact, %                               | hardware    | hours |
|---------|----------------------------------------|-------------|-------|
| (paper) | 85.3 (paper), 75 to 84 (reproductions) | four L40S   | < 24  |
| :unique | not known                              | four L40S   | < 24  |
| :cpu    | 84 (ours)                              | 2 CPU cores | 0.3   |

    python -m experiments.train --config=configs/maze_hard.py \
        --workdir=runs/maze

The data set is downloaded from the Hugging Face hub. Offline, name csv files
of its format (source,question,answer,rating; plain or gzip):

    --config.data.train=train.csv --config.data.test=test.csv

No maze of it has a single shortest path, and the labels mark one of often
millions: *exact* counts answers that are the label, *valid* those that are any
shortest path. `:unique` trains and tests on generated mazes of the same size
and length in which the two are one. The reference's README announces eight
augmented copies of each maze, though its command makes none; to train
without, add

    --config.train.augment=False

On one L40S, says that README, --config.train.batch_size=128 is as good.

`:cpu` is a model of 57,000 weights, with the mlp mixer, that learns generated
mazes of 8x8, unique as well, while you watch: little for a thousand steps,
then much at once.
"""

import ml_collections

VARIANTS = ("paper", "unique", "cpu")


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/maze_hard.py:{variant}: the variant must be one of "
      f"{', '.join(VARIANTS)}"
    )
  config = ml_collections.ConfigDict()
  config.data = ml_collections.ConfigDict(
    dict(
      task="maze",
      size=30,
      train="hub",
      test="hub",
      subsample=0,
      min_rating=0,
      seed=0,
      num_train=1000,
      num_test=1000,
      wall_density=(0.3, 0.5),
      min_length=110,
      unique=False,
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
      mixer="attention",
      positions="rotary",
      puzzle_emb_ndim=512,
      puzzle_emb_len=16,
      registers=0,
      cycles=3,
      latent_steps=4,
      initial_std=0.0,
      path_noise=0.0,
      attention="blocks",
      query_block=256,
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
      microbatch=8,
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
    dict(every=5_000, puzzles=0, depth=16, batch_size=512, seed=0)
  )
  config.checkpoint = ml_collections.ConfigDict(dict(every=1_000, keep=2))
  config.depth = ml_collections.ConfigDict(
    dict(schedule="fixed", stages=(), until=(), seed=0)
  )
  config.mesh = ml_collections.ConfigDict(dict(data=-1, model=1))

  if variant != "paper":
    config.data.update(train="generate", test="generate", unique=True)
  if variant == "cpu":
    _shrink(config)
  return config


def _shrink(config: ml_collections.ConfigDict):
  """Settings for two CPU cores and some minutes."""
  config.data.update(size=8, num_train=5000, num_test=500, min_length=10)
  config.model.update(
    width=96,
    layers=1,
    expansion=2.0,
    inner_multiple=32,
    mixer="mlp",
    positions="none",
    puzzle_emb_ndim=96,
    puzzle_emb_len=1,
    cycles=2,
    query_block=0,
    latent_steps=3,
    dtype="float32",
  )
  config.halting.max_steps = 8
  config.optim.update(
    lr=2e-3,
    weight_decay=0.1,
    warmup_steps=100,
    schedule="cosine",
    puzzle_lr=1e-3,
    puzzle_weight_decay=0.1,
    ema=0.99,
  )
  config.train.update(
    steps=4_000, batch_size=64, microbatch=0, steps_per_dispatch=5, log_every=20
  )
  config.eval.update(every=1_000, puzzles=0, batch_size=128)
  config.checkpoint.every = 250
