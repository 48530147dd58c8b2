"""Analytic operation counts, for XLA counts the body of a scan only once.

Counted are the multiplications and additions of matrix products (two per
weight and position); norms, activations and embeddings are left out, about
one per cent at width 512. All counts are for **one puzzle**, and of what is
computed: a decoder's attention is counted over its whole cache, masked places
included.
"""

from trm_jax.core.network import ModelConfig


def network_pass(config: ModelConfig, tokens: int | None = None) -> int:
  """FLOPs of one pass through a stack of blocks.

  Args:
    config: the model.
    tokens: how many go through; by default all L. Each attends to L.
  """
  if tokens is None:
    tokens = config.length
  width = config.width
  mlp = 6 * tokens * width * config.mlp_inner
  if config.mixer == "mlp":
    mixer = 6 * width * tokens * config.token_inner
  else:
    projections = 8 * tokens * width * width  # q, k, v and out
    # Scores and mixing.
    mixer = projections + 4 * tokens * config.length * width
  return config.layers * (mixer + mlp)


def passes(config: ModelConfig) -> int:
  """How often the network is applied in one supervision step."""
  if config.family in ("transformer", "feedforward", "autoregressive"):
    return 1
  return config.cycles * (config.latent_steps + 1)


def heads(config: ModelConfig) -> int:
  """FLOPs of reading the answer and the halting logits once."""
  answer = 2 * config.seq_len * config.width * config.vocab_size
  return answer + _halting_head(config)


def inference(config: ModelConfig, depth: int) -> int:
  """FLOPs of answering one puzzle.

  Args:
    config: the model.
    depth: supervision steps; a model that does not recurse takes one.
  """
  if config.family == "autoregressive":
    question = network_pass(config, config.prefix + config.seq_len)
    written = (config.seq_len - 1) * network_pass(config, 1)
    return question + written + heads(config)
  if not config.is_recursive:
    depth = 1
  return depth * (passes(config) * network_pass(config) + heads(config))


def training_step(config: ModelConfig) -> int:
  """FLOPs of one optimizer step on one puzzle.

  What carries no gradient, forward only; what does, and the heads, forward and
  backward, the latter twice the work of the former. HRM looks one supervision
  step ahead for its halting target. The optimizer's own work, a few operations
  a weight and independent of the batch, is left out.
  """
  learnt = {
    "hrm": 2,
    "transformer": 1,
    "feedforward": 1,
    "autoregressive": 1,
  }.get(config.family, config.latent_steps + 1)
  all_passes = passes(config)
  one = network_pass(config)
  work = (all_passes - learnt) * one + 3 * (learnt * one + heads(config))
  if config.family == "hrm":
    work += all_passes * one + _halting_head(config)
  return work


def _halting_head(config: ModelConfig) -> int:
  return 0 if config.family == "autoregressive" else 2 * config.width * 2
