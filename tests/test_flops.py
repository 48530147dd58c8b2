"""Analytic operation counts, against the literature and against XLA."""

import dataclasses

import jax
import pytest
from conftest import tiny_model

from trm_jax.core import flops, halting, network
from trm_jax.core.network import Latents, ModelConfig

SUDOKU = ModelConfig(vocab_size=11, seq_len=81)


def test_one_optimizer_step_of_the_paper():
  with_prefix = 768 * flops.training_step(SUDOKU) / 1e12
  assert with_prefix == pytest.approx(32.8, abs=0.05)
  bare = dataclasses.replace(SUDOKU, puzzle_emb_ndim=0)
  assert 768 * flops.training_step(bare) / 1e12 == pytest.approx(24.0, abs=0.05)


def test_inference_is_linear_in_depth():
  one = flops.inference(SUDOKU, 1)
  assert flops.inference(SUDOKU, 16) == 16 * one


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_count_agrees_with_xla_on_an_unrolled_program(mixer):
  """`cost_analysis` counts a scan's body once, so nothing may be scanned."""
  config = tiny_model(
    width=256, heads=4, seq_len=64, expansion=4.0, inner_multiple=32,
    cycles=1, latent_steps=1, mixer=mixer, remat="none",
    puzzle_emb_ndim=0, positions="rotary" if mixer == "attention" else "none",
  )  # fmt: skip
  batch = 2
  shapes = network.shapes(config)
  latents = jax.ShapeDtypeStruct(
    (batch, config.length, config.width), "float32"
  )
  rows = jax.ShapeDtypeStruct((batch, 0), "float32")
  inputs = jax.ShapeDtypeStruct((batch, config.seq_len), "int32")

  def step(weights, latents, rows, inputs):
    _, outputs = halting.supervise(weights, rows, latents, inputs, config)
    return outputs.logits.sum() + outputs.q_halt.sum()

  arguments = (shapes.weights, Latents(y=latents, z=latents), rows, inputs)

  def counted(function):
    return (
      jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]
    )

  forward = batch * flops.inference(config, 1)
  assert counted(step) == pytest.approx(forward, rel=0.02)
  backward = batch * flops.training_step(config)
  assert counted(jax.grad(step)) == pytest.approx(backward, rel=0.02)
