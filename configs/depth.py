"""Depth against compute: recursive models beside those that do not recurse.

Source: the question is that of "Less is More: Recursive Reasoning with Tiny
Networks" (arXiv 2510.04871), section 4, and of its critics; the models are
named in trm_jax/core/network.py. Every model may spend the same FLOPs on
training, `study.training_flops` a seed, so that the comparison is one of equal
cost.

| variant | what                                       | hardware    | hours |
|---------|--------------------------------------------|-------------|-------|
| :cpu    | 6x6 Sudoku, generated; 4 families, 2 seeds | 2 CPU cores | 0.3   |
| :sudoku | Sudoku-Extreme, paper size; 7 families     | one H100    | 35    |
| :maze   | Maze-Hard, paper size; 7 families          | one H100    | 95    |

    python -m experiments.depth_vs_compute --config=configs/depth.py:cpu \
        --workdir=runs/depth

Expected: see the README for `:cpu`; the others have not been run to the end.
The hours are those of `--dry_run --chip=h100`, at 30% of the chip's peak; parts
of a grid can be trained on several machines and put together with --merge.
"""

import ml_collections

VARIANTS = ("cpu", "sudoku", "maze")


def get_config(variant: str = "cpu") -> ml_collections.ConfigDict:
  """The study, in one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"configs/depth.py:{variant}: the variant must be one of "
      f"{', '.join(VARIANTS)}"
    )
  config = _paper_size()
  if variant == "cpu":
    _for_two_cores(config)
  elif variant == "sudoku":
    _sudoku_extreme(config)
  else:
    _maze_hard(config)
  return config


def _section(**fields) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(fields)


def _paper_size() -> ml_collections.ConfigDict:
  """What all variants start from: the paper's training."""
  config = ml_collections.ConfigDict()
  config.model = _section(
    width=512,
    layers=2,
    heads=8,
    expansion=4.0,
    inner_multiple=256,
    mixer="attention",
    positions="rotary",
    puzzle_emb_ndim=0,
    registers=16,
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
  config.halting = _section(max_steps=16, exploration=0.1)
  config.optim = _section(
    kind="adam_atan2",
    lr=1e-4,
    weight_decay=1.0,
    beta1=0.9,
    beta2=0.95,
    warmup_steps=2000,
    schedule="constant",
    lr_min_ratio=0.1,
    ema=0.999,
  )
  config.train = _section(
    steps=50_000,
    batch_size=768,
    microbatch=0,
    steps_per_dispatch=10,
    refill="queue",
    loss="stablemax",
    label_smoothing=0.0,
    supervision_decay=1.0,
    augment=True,
    log_every=100,
  )
  config.eval = _section(puzzles=15_000, depth=16, batch_size=768, seed=0)
  config.checkpoint = _section(every=1_000)
  config.depth = _section(schedule="fixed", stages=(), until=(), seed=0)
  config.mesh = _section(data=-1, model=1)
  config.study = _section(
    seeds=(0, 1, 2),
    depths=(1, 2, 4, 8, 16, 32, 64),
    training_flops=8e17,
    evaluations=10,
    target=0.8,
  )
  config.grid = ml_collections.ConfigDict()
  return config


def _recursive(**model) -> ml_collections.ConfigDict:
  return _section(model=_section(**model))


def _feedforward(**model) -> ml_collections.ConfigDict:
  """A stack of distinct layers: nothing to refine, so one step a puzzle."""
  return _section(
    model=_section(family=("feedforward",), **model),
    halting=_section(max_steps=(1,)),
  )


def _decoder(**model) -> ml_collections.ConfigDict:
  """A causal decoder, which needs attention and probabilities to write by."""
  return _section(
    model=_section(
      family=("autoregressive",),
      mixer=("attention",),
      positions=("rotary",),
      **model,
    ),
    halting=_section(max_steps=(1,)),
    train=_section(loss=("softmax",)),
  )


def _sudoku_extreme(config: ml_collections.ConfigDict):
  """Every family; feed-forward at equal weights (2) and at a TRM step's FLOPs.

  42 layers are what one supervision step with T=3 and n=6 passes through.
  """
  config.data = _section(
    task="sudoku",
    size=9,
    train="hub",
    test="hub",
    subsample=1000,
    min_rating=0,
    seed=0,
    cache_dir="",
    path="",
  )
  mlp = dict(mixer=("mlp",), positions=("none",))
  config.grid.update(
    trm=_recursive(family=("trm",), cycles=(1, 3), latent_steps=(2, 6), **mlp),
    trm_attention=_recursive(family=("trm",)),
    single_latent=_recursive(family=("single_latent",), **mlp),
    multi_latent=_recursive(family=("multi_latent",), **mlp),
    hrm=_recursive(
      family=("hrm",), layers=(4,), cycles=(2,), latent_steps=(2,)
    ),
    transformer=_recursive(family=("transformer",), layers=(2, 8)),
    feedforward=_feedforward(layers=(2, 8, 42), **mlp),
    decoder=_decoder(layers=(2, 8)),
  )


def _maze_hard(config: ml_collections.ConfigDict):
  """Every family with attention; n=4 as in the paper."""
  config.data = _section(
    task="maze",
    size=30,
    train="hub",
    test="hub",
    subsample=0,
    seed=0,
    cache_dir="",
    path="",
  )
  config.model.latent_steps = 4
  config.eval.update(puzzles=0, batch_size=256)
  config.study.training_flops = 2.4e18
  config.grid.update(
    trm=_recursive(family=("trm",), cycles=(1, 3), latent_steps=(2, 4)),
    single_latent=_recursive(family=("single_latent",)),
    multi_latent=_recursive(family=("multi_latent",)),
    hrm=_recursive(
      family=("hrm",), layers=(4,), cycles=(2,), latent_steps=(2,)
    ),
    transformer=_recursive(family=("transformer",), layers=(2, 8)),
    feedforward=_feedforward(layers=(2, 8, 30)),
    decoder=_decoder(layers=(2, 8)),
  )


def _for_two_cores(config: ml_collections.ConfigDict):
  """Four families, shallow and deep, two seeds, within twenty minutes.

  Eight layers cost what one supervision step of TRM does with T=2 and n=3.
  """
  config.data = _section(
    task="sudoku",
    size=6,
    train="generate",
    test="generate",
    num_train=2500,
    num_test=400,
    givens=(12, 15),
    subsample=0,
    seed=0,
    cache_dir="",
    path="",
  )
  config.model.update(
    width=64,
    layers=1,
    heads=4,
    inner_multiple=32,
    registers=1,
    cycles=2,
    latent_steps=3,
    dtype="float32",
  )
  # A small batch learns its puzzles by heart within 16 steps spent on each.
  config.halting.max_steps = 8
  config.optim.update(lr=2e-3, weight_decay=0.1, warmup_steps=50, ema=0.99)
  config.train.update(
    steps=1000, batch_size=64, steps_per_dispatch=5, log_every=10
  )
  config.eval.update(puzzles=0, depth=8, batch_size=100)
  config.checkpoint.every = 250
  config.study.update(
    seeds=(0, 1),
    depths=(1, 2, 4, 8, 16, 32),
    training_flops=2.2e12,
    evaluations=5,
  )
  mlp = dict(mixer=("mlp",), positions=("none",))
  config.grid.update(
    trm=_recursive(family=("trm",), latent_steps=(1, 3), **mlp),
    hrm=_recursive(family=("hrm",), latent_steps=(1, 3), **mlp),
    feedforward=_feedforward(layers=(2, 8), **mlp),
    decoder=_decoder(layers=(2, 8)),
  )
