"""Analytic operation counts, for XLA counts the body of a scan only once.

Counted are the multiplications and additions of matrix products (two per
weight and position); norms, activations and embeddings are left out, about
one per cent at width 512. All counts are for **one puzzle**.
"""

from trm_jax.core.network import ModelConfig


def network_pass(config: ModelConfig) -> int:
  """FLOPs of one `net(h)`."""
  tokens, width = config.length, config.width
  mlp = 6 * tokens * width * config.mlp_inner
  if config.mixer == "mlp":
    mixer = 6 * width * tokens * config.token_inner
  else:
    projections = 8 * tokens * width * width  # q, k, v and out
    mixer = projections + 4 * tokens * tokens * width  # scores and mixing
  return config.layers * (mixer + mlp)


def heads(config: ModelConfig) -> int:
  """FLOPs of reading the answer and the halting logits once."""
  answer = 2 * config.seq_len * config.width * config.vocab_size
  return answer + 2 * config.width * 2


def inference(config: ModelConfig, depth: int) -> int:
  """FLOPs of `depth` supervision steps on one puzzle."""
  passes = config.cycles * (config.latent_steps + 1)
  return depth * (passes * network_pass(config) + heads(config))


def training_step(config: ModelConfig) -> int:
  """FLOPs of one optimizer step on one puzzle.

  T-1 cycles forward only; the last cycle and the heads forward and backward,
  the latter twice the work of the former. The optimizer's own work, a few
  operations a weight and independent of the batch, is left out.
  """
  per_cycle = (config.latent_steps + 1) * network_pass(config)
  return (config.cycles - 1) * per_cycle + 3 * (per_cycle + heads(config))
