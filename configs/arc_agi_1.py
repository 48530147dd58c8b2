"""ARC-AGI-1 as in the TRM paper.

Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny
Networks", arXiv 2510.04871, and the README of its code. Every task has 1000
augmented copies, each with its own embedding; the copies of a test task vote
for its answer. Training data: the training and ConceptARC tasks, and the
demonstrations of the evaluation tasks.

| variant | latent steps n    | expected pass@2, %  | hardware    | hours  |
|---------|-------------------|---------------------|-------------|--------|
| (paper) | 6, as its text    | 44.6 (paper)        | 4 H100      | ~72    |
| :readme | 4, as its command | 44.6 (paper)        | 4 H100      | ~72    |
| :cpu    | 2                 | see README (ours)   | 2 CPU cores | 0.2    |

Get the tasks, train, and evaluate with:

    git clone https://github.com/fchollet/ARC-AGI data/ARC-AGI
    git clone https://github.com/victorvikram/ConceptARC data/ConceptARC
    trm train --config=arc_agi_1 --workdir=runs/arc1
    trm evaluate --workdir=runs/arc1 --depth=16 --puzzles=0 --copies=0

`--config.data.train=A,B` and `--config.data.test=C` name other folders, or
files of Kaggle's contests: A and B are only for training; C's demonstrations
are for training, its tests for evaluation. Evaluation during training uses 32
tasks with 32 copies each; the whole test set has 386,000 grids.

`:cpu` memorises the demonstrations of five tasks, with eight copies each on a
canvas of 8x8 without translations. It shows that files, copies, training,
votes and submission work.
"""

from ml_collections import ConfigDict

# Tasks of rotations and reflections, with grids of at most 7x7.
_SMALL_TASKS = "3c9b0459,67a3c6ac,68b16354,74dd1130,ed36ccf7"

VARIANTS = {
  "paper": {},
  "readme": dict(model=dict(latent_steps=4)),
  "cpu": dict(
    data=dict(
      train="",
      test="data/ARC-AGI/data/training",
      only=_SMALL_TASKS,
      size=8,
      num_aug=7,
    ),
    model=dict(
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
    ),
    halting=dict(max_steps=4),
    optim=dict(lr=2e-3, warmup_steps=50, schedule="cosine", ema=0.99),
    train=dict(
      steps=1_500,
      batch_size=64,
      microbatch=0,
      steps_per_dispatch=5,
      augment=False,
      log_every=20,
    ),
    eval=dict(every=500, puzzles=0, copies=0, depth=4, batch_size=128),
    checkpoint=dict(every=250),
  ),
}


def get_config(variant: str = "paper") -> ConfigDict:
  """The experiment, in one of `VARIANTS`."""
  config = ConfigDict(
    dict(
      data=dict(
        task="arc",
        train="data/ARC-AGI/data/training,data/ConceptARC/corpus",
        test="data/ARC-AGI/data/evaluation",
        num_aug=1000,
      ),
      model=dict(mixer="attention", positions="rotary", query_block=256),
      optim=dict(weight_decay=0.1, puzzle_lr=1e-2, puzzle_weight_decay=0.1),
      # 100,000 epochs over one copy of each task, as in the reference
      train=dict(steps=518_000, microbatch=8),
      eval=dict(every=10_000, puzzles=32, copies=32),
      checkpoint=dict(every=5_000),
    )
  )
  config.update(VARIANTS[variant])
  return config
