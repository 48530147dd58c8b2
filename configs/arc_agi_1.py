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
    trm train --config=arc_agi_1 --workdir=runs/arc1
    trm evaluate --workdir=runs/arc1 --depth=16 --puzzles=0 --copies=0

Other places, and files of Kaggle's contests, are named with
`--config.data.train=A,B` (all of it is trained on) and `--config.data.test=C`
(demonstrations trained on, tests voted on). While training, 32 tasks are
scored with the votes of 32 copies; the whole test set is 16 supervision steps
on 386,000 grids.

`:cpu` learns the demonstrations of five tasks by heart, in eight copies each
and on a canvas of 8x8 without translations, to see all of it work: files,
copies, training, votes, submission.
"""

from ml_collections import ConfigDict

# Rotations and reflections of grids of at most 7x7.
_SMALL_TASKS = "3c9b0459,67a3c6ac,68b16354,74dd1130,ed36ccf7"

VARIANTS = {
  "paper": {},
  "readme": dict(model=dict(latent_steps=4)),
  # five small tasks, a small model, two CPU cores
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
      # 100,000 passes over one copy of each task, as in the reference
      train=dict(steps=518_000, microbatch=8),
      eval=dict(every=10_000, puzzles=32, copies=32),
      checkpoint=dict(every=5_000),
    )
  )
  config.update(VARIANTS[variant])
  return config
