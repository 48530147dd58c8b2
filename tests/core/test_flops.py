"""Analytic operation counts, against the literature and against XLA."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_model

from trm_jax.core import flops, halting, losses, network, recursion
from trm_jax.core.family import FAMILIES
from trm_jax.core.model import ModelConfig

SUDOKU = ModelConfig(vocab_size=11, seq_len=81)


def test_one_optimizer_step_of_the_paper():
  with_prefix = 768 * flops.training_step(SUDOKU) / 1e12
  assert with_prefix == pytest.approx(32.8, abs=0.05)
  bare = dataclasses.replace(SUDOKU, puzzle_emb_ndim=0)
  assert 768 * flops.training_step(bare) / 1e12 == pytest.approx(24.0, abs=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_is_linear_in_depth_where_there_is_any(family):
  config = dataclasses.replace(
    SUDOKU, family=family, mixer="attention", positions="rotary"
  )
  one = flops.inference(config, 1)
  times = 16 if config.is_recursive else 1
  assert flops.inference(config, 16) == times * one


def _plain_scan(body, carry, xs=None, length=None):
  """`jax.lax.scan` as a Python loop: XLA counts a scan's body only once."""
  count = length if xs is None else len(jax.tree.leaves(xs)[0])
  outs = []
  for i in range(count):
    carry, out = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
    outs.append(out)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def _counted(function, *arguments):
  """What XLA counts in a compiled program, which must not loop."""
  # Good machine code takes most of the time, and this never runs.
  options = {"xla_backend_optimization_level": 0}
  lowered = jax.jit(function, compiler_options=options).lower(*arguments)
  assert "while" not in lowered.as_text()
  return lowered.compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
  ("family", "mixer", "answer_layers"),
  [
    ("trm", "mlp", 0),
    *((family, "attention", 0) for family in FAMILIES),
    ("hrm", "attention", 2),
  ],
)
def test_count_agrees_with_xla_on_an_unrolled_program(
  family, mixer, answer_layers, monkeypatch
):
  monkeypatch.setattr(jax.lax, "scan", _plain_scan)
  writes = family == "autoregressive"
  config = tiny_model(
    family=family, mixer=mixer, answer_layers=answer_layers,
    vocab_size=256, width=256, heads=4,
    positions="rotary" if mixer == "attention" else "none",
    seq_len=16 if writes else 64, expansion=4.0, puzzle_emb_ndim=0,
    registers=2, cycles=2, latent_steps=3, remat="none", inner_multiple=32,
  )  # fmt: skip
  batch, depth = 2, 2
  params = network.shapes(config)
  latents = jax.eval_shape(
    lambda initial: recursion.initial_latents(initial, batch, config),
    params.initial,
  )
  rows = jax.ShapeDtypeStruct((batch, 0), "float32")
  tokens = jax.ShapeDtypeStruct((batch, config.seq_len), "int32")

  def infer(weights, latents, rows, inputs):
    seen = []
    for _ in range(depth if config.is_recursive else 1):
      latents, outputs = halting.supervise(
        weights, rows, latents, inputs, config
      )
      seen.append((outputs.logits, outputs.q_halt))
    return seen

  def loss(weights, latents, rows, inputs, labels):
    latents, outputs = halting.supervise(
      weights, rows, latents, inputs, config, labels
    )
    if family == "hrm":
      last = jnp.zeros(batch, bool)
      target = halting.bootstrap(weights, rows, latents, inputs, last, config)
      outputs = outputs.replace(target_continue=target)
    steps = jnp.ones(batch, jnp.int32)
    return losses.losses_and_metrics(
      outputs, labels, steps > 0, steps, "softmax", has_halting_head=not writes
    )[0]

  arguments = (params.weights, latents, rows, tokens)
  forward = batch * flops.inference(config, depth)
  assert _counted(infer, *arguments) == pytest.approx(forward, rel=0.02)
  both = batch * flops.training_step(config)
  learn = jax.value_and_grad(loss)
  assert _counted(learn, *arguments, tokens) == pytest.approx(both, rel=0.02)
