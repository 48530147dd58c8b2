import os
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from exported_models import ATTENTION
from exported_models import pretrained as _pretrained

from trm_jax.core import halting, recursion
from trm_jax.errors import UserError
from trm_jax.export import stablehlo
from trm_jax.run import card

DEPTH = 3
MODELS = {
  "trm": {"num_puzzle_ids": 3},
  "hrm": {"family": "hrm", "puzzle_emb_ndim": 0, "registers": 2},
  "single_latent": {"family": "single_latent", "initial_std": 1.0},
  "multi_latent": {"family": "multi_latent", "positions": "learned"},
  "transformer": {"family": "transformer", **ATTENTION},
  "feedforward": {"family": "feedforward"},
  "autoregressive": {"family": "autoregressive", **ATTENTION},
}


def _questions(model, batch=5):
  random = np.random.default_rng(1)
  return random.integers(1, model.vocab_size, (batch, model.seq_len), np.int32)


def _one_by_one(pretrained, inputs, ids):
  """Logits, halting logits and margins after each of `DEPTH` steps."""
  params, model = pretrained.params, pretrained.experiment.model
  latents = recursion.evaluation_latents(params.initial, len(inputs), model)
  rows = params.puzzle_table[jnp.asarray(ids)]
  step = jax.jit(
    lambda latents: halting.supervise(
      params.weights, rows, latents, jnp.asarray(inputs), model
    )
  )
  found = []
  for _ in range(DEPTH):
    latents, outputs = step(latents)
    margin = outputs.halting_margin(model)
    found.append((outputs.logits, outputs.q_halt, margin))
  by_kind = zip(*found, strict=True)
  return [np.stack(values).astype(np.float32) for values in by_kind]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  path = tmp_path_factory.mktemp("exported") / "trm.stablehlo"
  pretrained = _pretrained(**MODELS["trm"])
  stablehlo.export(pretrained, path)
  return pretrained, path


@pytest.mark.parametrize("name", MODELS)
def test_a_file_does_what_the_model_does(name, tmp_path):
  """At a fixed depth, and where each puzzle halts at a step of its own."""
  pretrained = _pretrained(**MODELS[name])
  model = pretrained.experiment.model
  path = tmp_path / "model.stablehlo"
  stablehlo.export(pretrained, path)
  solve = stablehlo.load(path)
  inputs = _questions(model)
  ids = np.arange(5, dtype=np.int32) % model.num_puzzle_ids
  logits, q_halt, margins = _one_by_one(pretrained, inputs, ids)
  last = DEPTH if model.is_recursive else 1

  def check(found, steps):
    np.testing.assert_array_equal(found["steps"], steps)
    rows = np.arange(5)
    for ours, theirs in (("logits", logits), ("q_halt", q_halt)):
      np.testing.assert_allclose(
        found[ours], theirs[steps - 1, rows], rtol=1e-3, atol=1e-3
      )
    assert found["answers"].dtype == jnp.int32
    np.testing.assert_array_equal(
      found["answers"], np.argmax(found["logits"], axis=-1)
    )

  check(solve(inputs, ids, DEPTH), np.full(5, last))
  check(solve.call(inputs, ids, 0, np.inf), np.ones(5, int))
  # Between two margins that differ, so that no rounding decides.
  ordered = np.sort(margins[:last].max(axis=0))
  widest = np.argmax(np.diff(ordered))
  threshold = ordered[widest : widest + 2].mean()
  over = margins[:last] > threshold
  steps = np.where(over.any(axis=0), over.argmax(axis=0) + 1, last)
  assert 0 < over.any(axis=0).sum() < 5
  check(solve(inputs, ids, DEPTH, threshold), steps)


def test_weights_are_narrowed_without_a_trace():
  """Casting before instead of inside a layer changes no bit."""
  pretrained = _pretrained(dtype="bfloat16")
  model = pretrained.experiment.model
  narrow = stablehlo._narrowed(pretrained.params, model)
  assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {
    jnp.dtype("bfloat16")
  }
  inputs = jnp.asarray(_questions(model))

  @jax.jit
  def step(params):
    latents = recursion.evaluation_latents(params.initial, 5, model)
    rows = params.puzzle_table[jnp.zeros((5,), jnp.int32)]
    return halting.supervise(params.weights, rows, latents, inputs, model)

  found = step(pretrained.params), step(narrow)
  jax.tree.map(np.testing.assert_array_equal, *found)


_FRESH = """
import sys
import jax, jax.export, numpy as np
file, inputs, found = sys.argv[1:]
solve = jax.jit(jax.export.deserialize(open(file, "rb").read()).call)
inputs = np.load(inputs)
results = {}
for batch in (1, 5):
  result = solve(
    inputs[:batch], np.zeros(batch, np.int32), np.int32(3), np.float32(np.inf)
  )
  results |= {f"{name}{batch}": value for name, value in result.items()}
np.savez(found, **results)
print([name for name in sys.modules if name.startswith("trm_jax")])
"""


def test_a_process_without_this_project_gets_the_same(exported, tmp_path):
  pretrained, path = exported
  inputs = _questions(pretrained.experiment.model)
  np.save(tmp_path / "inputs.npy", inputs)
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-c", _FRESH, path, "inputs.npy", "found.npz"],
    env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"
  solve = stablehlo.load(path)
  with np.load(tmp_path / "found.npz") as found:
    for batch in (1, 5):
      for name, values in solve(inputs[:batch], depth=3).items():
        np.testing.assert_allclose(
          found[f"{name}{batch}"], values, rtol=1e-6, atol=1e-6
        )


def test_one_file_is_for_every_platform_and_batch(exported):
  _, path = exported
  content = jax.export.deserialize(bytearray(path.read_bytes()))
  assert set(content.platforms) == {"cpu", "cuda", "tpu"}
  assert [str(aval.shape) for aval in content.in_avals[:2]] == [
    "(b, 16)", "(b,)",
  ]  # fmt: skip


def test_unknown_puzzle_ids_are_the_blank_one(exported):
  _, path = exported
  solve = stablehlo.load(path)
  inputs = np.repeat(_questions(_pretrained().experiment.model, 1), 5, axis=0)
  ids = np.array([0, -1, 3, 2**31 - 1, 2], np.int32)
  logits = np.asarray(solve.call(inputs, ids, 1, np.inf)["logits"])
  for row in logits[1:4]:
    np.testing.assert_allclose(row, logits[0], rtol=1e-6, atol=1e-6)
  assert np.abs(logits[4] - logits[0]).max() > 1e-3


def test_the_card_tells_of_model_and_file(exported):
  pretrained, path = exported
  facts = stablehlo.load(path).card
  assert facts["config"] == pretrained.config
  assert (facts["task"], facts["step"]) == ("sudoku", 7)
  assert facts["jax"] == jax.__version__
  content = jax.export.deserialize(bytearray(path.read_bytes()))
  version = facts["calling_convention_version"]
  assert version == content.calling_convention_version


@pytest.fixture
def copy(exported, tmp_path):
  """A copy of the exported files to damage."""
  _, path = exported
  for name in (path.name, f"{path.name}.json"):
    (tmp_path / name).write_bytes((path.parent / name).read_bytes())
  return tmp_path / path.name


def test_changed_bytes_never_reach_the_compiler(copy):
  content = bytearray(copy.read_bytes())
  content[5000] ^= 1
  copy.write_bytes(content)
  with pytest.raises(UserError, match=r"trm\.stablehlo is damaged"):
    stablehlo.load(copy)
  card.write(copy, b"x" * 1000, {"format": stablehlo.FORMAT, "jax": "0.1"})
  with pytest.raises(UserError, match=r"was written by jax 0\.1 and cannot"):
    stablehlo.load(copy)


def test_what_exists_is_replaced_only_when_asked_to(exported, copy):
  pretrained, _ = exported
  before = copy.with_name(f"{copy.name}.json").read_text()
  with pytest.raises(UserError, match="exists already"):
    stablehlo.export(pretrained, copy)
  copy.unlink()  # and neither is a card that belongs to something else
  with pytest.raises(UserError, match=r"json exists already"):
    stablehlo.export(pretrained, copy)
  assert copy.with_name(f"{copy.name}.json").read_text() == before
  stablehlo.export(pretrained, copy, overwrite=True)
  assert stablehlo.load(copy).card["step"] == 7
  assert len(list(copy.parent.iterdir())) == 2


def test_a_model_too_large_for_the_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(stablehlo, "_LARGEST", 2**24 + 5000)
  with pytest.raises(UserError, match=r"the model has .* bytes"):
    stablehlo.export(_pretrained(), tmp_path / "m.stablehlo")
  assert not list(tmp_path.iterdir())
