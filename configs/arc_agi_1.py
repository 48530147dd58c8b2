"""ARC-AGI-1 as in the TRM paper.

Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny
Networks", arXiv 2510.04871, and the README of its code. Every task has 1000
augmented copies, each with an embedding of its own; the copies of a test task
vote for its answer. Trained on the training and ConceptARC tasks and on the
demonstrations of the evaluation tasks.

| variant | latent steps n    | expected pass@2, %  | hardware    | hours  |
|---------|-------------------|---------------------|-------------|--------|
| (paper) | 6, as its text    | 44.6 (paper)        | 4 H100      | ~72    |
| :readme | 4, as its command | 44.6 (paper)        | 4 H100      | ~72    |
| :cpu    | 2                 | see README (ours)   | 2 CPU cores | 0.2    |

The tasks are read from where `git clone` puts them below `data/`:

    git clone https://github.com/fchollet/ARC-AGI data/ARC-AGI
    git clone https://github.com/victorvikram/ConceptARC data/ConceptARC
    python -m experiments.train --config=configs/arc_agi_1.py \
        --workdir=runs/arc1
    python -m experiments.evaluate --workdir=runs/arc1 --depth=16 --puzzles=0 \
        --copies=0

Other places, and files of Kaggle's contests, are named with
`--config.data.train=A,B` (all of it is trained on) and `--config.data.test=C`
(demonstrations trained on, tests voted on). While training, 32 tasks are
scored with the votes of 32 copies; the whole test set is 16 supervision steps
on 386,000 grids.

`:cpu` learns the demonstrations of five tasks by heart, in eight copies each
and on a canvas of 8x8 without translations, to see all of it work: files,
copies, training, votes, submission.
"""

import ml_collections

VARIANTS = ("paper", "readme", "cpu")

# Rotations and reflections of grids of at most 7x7.
SMALL_TASKS = "3c9b0459,67a3c6ac,68b16354,74dd1130,ed36ccf7"


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/arc_agi_1.py:{variant}: the variant must be one of "
      f"{', '.join(VARIANTS)}"
    )
  config = ml_collections.ConfigDict()
  config.data = ml_collections.ConfigDict(
    dict(
      task="arc",
      train="data/ARC-AGI/data/training,data/ConceptARC/corpus",
      test="data/ARC-AGI/data/evaluation",
      num_aug=1000,
      seed=0,
      size=30,
      only="",
      refuse_overlap=False,
      cache_dir="",
      path="",
    )
  )
  config.model = ml_collections.ConfigDict(
    dict(
      family="trm",
      num_puzzle_ids=1,  # grows to what the data needs
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
      latent_steps=6,
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
      weight_decay=0.1,
      beta1=0.9,
      beta2=0.95,
      warmup_steps=2000,
      schedule="constant",
      lr_min_ratio=0.1,
      puzzle_lr=1e-2,
      puzzle_weight_decay=0.1,
      ema=0.999,
    )
  )
  config.train = ml_collections.ConfigDict(
    dict(
      # 100,000 passes over one copy of each task, as in the reference.
      steps=518_000,
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
    dict(every=10_000, puzzles=32, copies=32, depth=16, batch_size=768, seed=0)
  )
  config.checkpoint = ml_collections.ConfigDict(dict(every=5_000, keep=2))
  config.depth = ml_collections.ConfigDict(
    dict(schedule="fixed", stages=(), until=(), seed=0)
  )
  config.mesh = ml_collections.ConfigDict(dict(data=-1, model=1))

  if variant == "readme":
    config.model.latent_steps = 4
  elif variant == "cpu":
    _shrink(config)
  return config


def _shrink(config: ml_collections.ConfigDict):
  """Five small tasks, a small model, two CPU cores."""
  config.data.update(
    train="",
    test="data/ARC-AGI/data/training",
    only=SMALL_TASKS,
    size=8,
    num_aug=7,
  )
  config.model.update(
    width=96,
    heads=4,
    expansion=2.0,
    inner_multiple=32,
    puzzle_emb_ndim=96,
    puzzle_emb_len=1,
    cycles=2,
    query_block=0,
    latent_steps=2,
    dtype="float32",
  )
  config.halting.max_steps = 4
  config.optim.update(lr=2e-3, warmup_steps=50, schedule="cosine", ema=0.99)
  config.train.update(
    steps=1_500,
    batch_size=64,
    microbatch=0,
    steps_per_dispatch=5,
    augment=False,
    log_every=20,
  )
  config.eval.update(every=500, puzzles=0, copies=0, depth=4, batch_size=128)
  config.checkpoint.every = 250
