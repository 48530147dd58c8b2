"""Depth against compute: recursive and non-recursive models compared.

Source: "Less is More: Recursive Reasoning with Tiny Networks"
(arXiv 2510.04871), section 4; the models are in trm_jax/core/families. Every
model is trained with the same FLOPs, `study.training_flops` a seed.

| variant | what                                       | hardware    | hours |
|---------|--------------------------------------------|-------------|-------|
| :cpu    | 6x6 Sudoku, generated; 4 families, 2 seeds | 2 CPU cores | 0.3   |
| :sudoku | Sudoku-Extreme, paper size; 7 families     | one H100    | 35    |
| :maze   | Maze-Hard, paper size; 7 families          | one H100    | 95    |

    trm depth_vs_compute --config=depth:cpu --workdir=runs/depth

Expected: see the README for `:cpu`; the others have not been run to the end.
The hours are from `--dry_run --chip=h100`, at 30% of the chip's peak. Parts of
a grid can be trained on several machines and combined with --merge.
"""

from ml_collections import ConfigDict

# Feed-forward models are as deep as one supervision step, T (n + 1) passes of
# `layers`: 42 layers for T=3, n=6; 30 for n=4; 8 for T=2, n=3, one layer.


def _recursive(**model) -> dict:
  return dict(model=model)


def _feedforward(**model) -> dict:
  """A stack of distinct layers, with one supervision step a puzzle."""
  return dict(
    model=dict(family=("feedforward",), **model), halting=dict(max_steps=(1,))
  )


def _decoder(**model) -> dict:
  """A causal decoder, which needs attention and a softmax."""
  return dict(
    model=dict(
      family=("autoregressive",),
      mixer=("attention",),
      positions=("rotary",),
      **model,
    ),
    halting=dict(max_steps=(1,)),
    train=dict(loss=("softmax",)),
  )


_MLP = dict(mixer=("mlp",), positions=("none",))
_HRM = _recursive(family=("hrm",), layers=(4,), cycles=(2,), latent_steps=(2,))

VARIANTS = {
  "cpu": dict(
    data=dict(
      task="sudoku",
      size=6,
      train="generate",
      test="generate",
      num_train=2500,
      num_test=400,
      givens=(12, 15),
      subsample=0,
    ),
    model=dict(
      width=64,
      layers=1,
      heads=4,
      inner_multiple=32,
      registers=1,
      cycles=2,
      latent_steps=3,
      dtype="float32",
    ),
    # With 16 steps a puzzle, a small batch would be memorised.
    halting=dict(max_steps=8),
    optim=dict(lr=2e-3, weight_decay=0.1, warmup_steps=50, ema=0.99),
    train=dict(steps=1000, batch_size=64, steps_per_dispatch=5, log_every=10),
    eval=dict(puzzles=0, depth=8, batch_size=100),
    checkpoint=dict(every=250),
    study=dict(
      seeds=(0, 1),
      depths=(1, 2, 4, 8, 16, 32),
      training_flops=2.2e12,
      evaluations=5,
    ),
    grid=dict(
      trm=_recursive(family=("trm",), latent_steps=(1, 3), **_MLP),
      hrm=_recursive(family=("hrm",), latent_steps=(1, 3), **_MLP),
      feedforward=_feedforward(layers=(2, 8), **_MLP),
      decoder=_decoder(layers=(2, 8)),
    ),
  ),
  "sudoku": dict(
    data=dict(task="sudoku", train="hub", test="hub", subsample=1000),
    grid=dict(
      trm=_recursive(
        family=("trm",), cycles=(1, 3), latent_steps=(2, 6), **_MLP
      ),
      trm_attention=_recursive(family=("trm",)),
      single_latent=_recursive(family=("single_latent",), **_MLP),
      multi_latent=_recursive(family=("multi_latent",), **_MLP),
      hrm=_HRM,
      transformer=_recursive(family=("transformer",), layers=(2, 8)),
      feedforward=_feedforward(layers=(2, 8, 42), **_MLP),
      decoder=_decoder(layers=(2, 8)),
    ),
  ),
  "maze": dict(
    data=dict(task="maze", size=30, train="hub", test="hub"),
    model=dict(latent_steps=4),
    eval=dict(puzzles=0, batch_size=256),
    study=dict(training_flops=2.4e18),
    grid=dict(
      trm=_recursive(family=("trm",), cycles=(1, 3), latent_steps=(2, 4)),
      single_latent=_recursive(family=("single_latent",)),
      multi_latent=_recursive(family=("multi_latent",)),
      hrm=_HRM,
      transformer=_recursive(family=("transformer",), layers=(2, 8)),
      feedforward=_feedforward(layers=(2, 8, 30)),
      decoder=_decoder(layers=(2, 8)),
    ),
  ),
}


def get_config(variant: str = "cpu") -> ConfigDict:
  """The study, in one of `VARIANTS`."""
  config = ConfigDict(
    dict(
      model=dict(
        mixer="attention", positions="rotary", puzzle_emb_ndim=0, registers=16
      ),
      eval=dict(puzzles=15_000),
      study=dict(
        seeds=(0, 1, 2),
        depths=(1, 2, 4, 8, 16, 32, 64),
        training_flops=8e17,
        evaluations=10,
      ),
    )
  )
  config.update(VARIANTS[variant])
  return config
