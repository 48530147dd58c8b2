"""A small TRM that learns 6x6 Sudoku on two CPU cores in some minutes.

Source: our own; nothing is downloaded, the puzzles are generated. Expected:
at least 99% of 500 held-out puzzles exactly right at depth 16, while depth 1
is far behind. Command: `make demo`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The experiment behind `make demo`."""
  config = ml_collections.ConfigDict()
  config.data = ml_collections.ConfigDict(
    dict(
      task="sudoku",
      size=6,
      train="generate",
      test="generate",
      num_train=2500,
      num_test=500,
      givens=(9, 12),
      subsample=0,
      seed=0,
      cache_dir="",
      path="",
    )
  )
  config.model = ml_collections.ConfigDict(
    dict(
      family="trm",
      width=96,
      layers=1,
      expansion=4.0,
      inner_multiple=32,
      mixer="mlp",
      positions="none",
      puzzle_emb_ndim=96,
      puzzle_emb_len=1,
      registers=0,
      cycles=2,
      latent_steps=3,
      initial_std=0.0,
      path_noise=0.0,
      attention="blocks",
      query_block=0,
      remat="full",
      dtype="float32",
      param_dtype="float32",
    )
  )
  config.halting = ml_collections.ConfigDict(
    dict(max_steps=16, exploration=0.1)
  )
  config.optim = ml_collections.ConfigDict(
    dict(
      kind="adam_atan2",
      lr=2e-3,
      weight_decay=0.1,
      warmup_steps=50,
      puzzle_lr=1e-3,
      puzzle_weight_decay=0.1,
      ema=0.99,
    )
  )
  config.train = ml_collections.ConfigDict(
    dict(
      steps=1500,
      batch_size=64,
      microbatch=0,
      steps_per_dispatch=5,
      refill="queue",
      loss="stablemax",
      label_smoothing=0.0,
      supervision_decay=1.0,
      augment=True,
      log_every=10,
      seed=0,
    )
  )
  config.eval = ml_collections.ConfigDict(
    dict(every=500, puzzles=0, depth=16, batch_size=128, seed=0)
  )
  config.checkpoint = ml_collections.ConfigDict(dict(every=250, keep=1))
  config.depth = ml_collections.ConfigDict(
    dict(schedule="fixed", stages=(), until=(), seed=0)
  )
  config.mesh = ml_collections.ConfigDict(dict(data=-1, model=1))
  return config
