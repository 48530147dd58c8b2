"""Maze-Hard: 30x30, 1,000 training mazes, tested on 1,000.

Source: "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871), section 5, and the reference implementation's README.

| variant | exact, %                               | hardware    | hours |
|---------|----------------------------------------|-------------|-------|
| (paper) | 85.3 (paper), 75 to 84 (reproductions) | four L40S   | < 24  |
| :unique | not known                              | four L40S   | < 24  |
| :cpu    | 84 (ours)                              | 2 CPU cores | 0.3   |

    trm train --config=maze_hard --workdir=runs/maze

The dataset is downloaded from the Hugging Face hub. Offline, use csv files of
its format (source,question,answer,rating; plain or gzip):

    --config.data.train=train.csv --config.data.test=test.csv

Its mazes have several shortest paths, often millions, of which the label is
one: *exact* counts answers equal to the label, *valid* those that are any
shortest path. `:unique` uses generated mazes of the same size and path length
with a single shortest path. The reference's README describes eight augmented
copies of each maze, but its command makes none; to train without, add

    --config.train.augment=False

On one L40S, that README says, --config.train.batch_size=128 is as good.

`:cpu` is a model of 57,000 weights with the mlp mixer for generated 8x8 mazes,
unique too. It learns little in the first thousand steps.
"""

from ml_collections import ConfigDict

_UNIQUE = dict(train="generate", test="generate", unique=True)

VARIANTS = {
  "paper": {},
  "unique": dict(data=_UNIQUE),
  "cpu": dict(
    data=dict(size=8, num_train=5000, num_test=500, min_length=10, **_UNIQUE),
    model=dict(
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
    ),
    halting=dict(max_steps=8),
    optim=dict(
      lr=2e-3,
      weight_decay=0.1,
      warmup_steps=100,
      schedule="cosine",
      puzzle_lr=1e-3,
      puzzle_weight_decay=0.1,
      ema=0.99,
    ),
    train=dict(
      steps=4_000,
      batch_size=64,
      microbatch=0,
      steps_per_dispatch=5,
      log_every=20,
    ),
    eval=dict(every=1_000, batch_size=128),
    checkpoint=dict(every=250),
  ),
}


def get_config(variant: str = "paper") -> ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  config = ConfigDict(
    dict(
      data=dict(task="maze", size=30, train="hub", test="hub"),
      model=dict(
        mixer="attention", positions="rotary", latent_steps=4, query_block=256
      ),
      train=dict(steps=60_000, microbatch=8),
      eval=dict(batch_size=512),
    )
  )
  config.update(VARIANTS[variant])
  return config
