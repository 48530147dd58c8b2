"""Analytic operation counts, for XLA counts the body of a scan only once.

Counted are the multiplications and additions of matrix products (two per
weight and position); norms, activations and embeddings are left out, about
one per cent at width 512. All counts are for **one puzzle**, and of what is
computed: a decoder's attention is counted over its whole cache, masked places
included.
"""

from trm_jax.core.model import ModelConfig


def block(config: ModelConfig, tokens: int | None = None) -> int:
  """FLOPs of one pass through one block.

  Args:
    config: the model.
    tokens: how many go through; by default all L. Each attends to L.
  """
  if tokens is None:
    tokens = config.length
  width = config.width
  mlp = 6 * tokens * width * config.mlp_inner
  if config.mixer == "mlp":
    return mlp + 6 * width * tokens * config.token_inner
  projections = 8 * tokens * width * width  # q, k, v and out
  # Scores and mixing.
  return mlp + projections + 4 * tokens * config.length * width


def passes(config: ModelConfig) -> int:
  """How often networks are applied in one supervision step."""
  return sum(each.total for each in config.kind.passes(config).values())


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
  if config.kind.inference_flops:
    return config.kind.inference_flops(config)
  if not config.is_recursive:
    depth = 1
  forward, _ = _blocks_applied(config)
  return depth * (forward * block(config) + heads(config))


def training_step(config: ModelConfig) -> int:
  """FLOPs of one optimizer step on one puzzle.

  What carries no gradient, forward only; what does, and the heads, forward and
  backward, the latter twice the work of the former. A family that bootstraps
  looks one supervision step ahead for its halting target. The optimizer's own
  work, a few operations a weight and independent of the batch, is left out.
  """
  total, learnt = _blocks_applied(config)
  one = block(config)
  work = (total - learnt) * one + 3 * (learnt * one + heads(config))
  if config.kind.bootstraps:
    work += total * one + _halting_head(config)
  return work


def _blocks_applied(config: ModelConfig) -> tuple[int, int]:
  """Blocks applied in a supervision step: in all, and with gradient."""
  layers = config.kind.stacks(config)
  passes = config.kind.passes(config)
  return (
    sum(layers[stack] * each.total for stack, each in passes.items()),
    sum(layers[stack] * each.learnt for stack, each in passes.items()),
  )


def _halting_head(config: ModelConfig) -> int:
  return 2 * config.width * 2 if config.kind.has_halting_head else 0
