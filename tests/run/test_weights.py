import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from safetensors.numpy import load_file, save_file

from trm_jax.core import network
from trm_jax.errors import UserError
from trm_jax.run import weights
from trm_jax.run.weights import load_weights, save_weights

CONFIG = {
  "data": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 16, "puzzle_emb_len": 1,
    "cycles": 2, "latent_steps": 2, "dtype": "float32",
  },
}  # fmt: skip


def _random_params(model):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype),
    network.shapes(model),
  )


@pytest.fixture(scope="module")
def params():
  return _random_params(tiny_model())


@pytest.fixture
def path(params, tmp_path):
  path = tmp_path / "deep" / "weights.safetensors"
  save_weights(path, params, CONFIG, {"step": 7})
  return path


def _rewrite(path, arrays=None, **changes):
  """Saves the file again with other arrays or metadata."""
  metadata = {
    "format": "trm_jax/1", "config": json.dumps(CONFIG), "facts": "{}",
  }  # fmt: skip
  save_file(
    load_file(path) if arrays is None else arrays, path, metadata | changes
  )


def _with_model(**changes):
  return json.dumps(CONFIG | {"model": CONFIG["model"] | changes})


def test_a_round_trip_keeps_every_bit(path, params):
  loaded, config, facts = load_weights(path)
  assert (config, facts) == (CONFIG, {"step": 7})
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  for ours, theirs in zip(
    jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True
  ):
    assert ours.dtype == theirs.dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_bfloat16_weights_survive(tmp_path):
  params = _random_params(tiny_model(param_dtype="bfloat16"))
  config = CONFIG | {"model": CONFIG["model"] | {"param_dtype": "bfloat16"}}
  save_weights(tmp_path / "w.safetensors", params, config, {})
  loaded, *_ = load_weights(tmp_path / "w.safetensors")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(path, kept):
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(UserError, match=r"weights\.safetensors cannot be read"):
    load_weights(path)


def test_foreign_files_are_refused(path, tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    load_weights(tmp_path / "none.safetensors")
  _rewrite(path, format="pt")
  with pytest.raises(UserError, match="format is 'pt', expected 'trm_jax/2'"):
    load_weights(path)
  _rewrite(path, format="trm_jax/3")
  with pytest.raises(UserError, match="only 'trm_jax/2' is known here"):
    load_weights(path)
  save_file(load_file(path), path)
  with pytest.raises(UserError, match="format is None"):
    load_weights(path)
  with pytest.raises(UserError, match="cannot be read: it is a folder"):
    load_weights(tmp_path)


@pytest.mark.parametrize(
  "config",
  [
    "{", "[1]", '{"model": {"wdith": 3}}', "[" * 100_000, '{"model": 1}',
    _with_model(expansion=1e308), _with_model(inner_multiple=0),
    '{"model": {"width": 1' + "0" * 400 + "}}",
  ],
)  # fmt: skip
def test_a_damaged_config_is_refused(path, config):
  _rewrite(path, config=config)
  with pytest.raises(UserError, match=r"safetensors: its config cannot be"):
    load_weights(path)


@pytest.mark.parametrize("facts", ["", "[]", "3"])
def test_damaged_facts_are_refused(path, facts):
  _rewrite(path, facts=facts)
  with pytest.raises(UserError, match=r"its facts cannot be read"):
    load_weights(path)


@pytest.mark.parametrize(
  "changes",
  [
    {"layers": 10**9}, {"width": 2 * 10**9},
    {"num_puzzle_ids": 10**15}, {"expansion": 1e15},
    {"inner_multiple": 10**12}, {"puzzle_emb_len": 10**10},
    {"puzzle_emb_len": 10**9, "puzzle_emb_ndim": 10**10},
    {"family": "multi_latent", "latent_steps": 10**12},
  ],
)  # fmt: skip
def test_a_config_that_describes_a_giant_is_refused_at_once(
  path, changes, monkeypatch
):
  monkeypatch.setattr(network, "shapes", None)  # nothing is described
  _rewrite(path, config=_with_model(**changes))
  with pytest.raises(
    UserError, match=rf"config\.model\..*({'|'.join(changes)})"
  ):
    load_weights(path)


def test_many_layers_are_described_like_one(tmp_path):
  for model in (
    tiny_model(layers=12, family="hrm"),
    tiny_model(layers=3, positions="learned"),
  ):
    described = weights._described(model)
    assert described == network.shapes(model)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(path, value):
  arrays = load_file(path)
  arrays["weights/embed/tokens"][3, 3] = value
  _rewrite(path, arrays)
  with pytest.raises(UserError, match=r"'weights/embed/tokens' .* not finite"):
    load_weights(path)


def test_a_header_that_nobody_could_read_is_not_written(path, params):
  before = path.read_bytes()
  facts = {"names": ["x" * 1000] * 110_000}
  with pytest.raises(UserError, match=r"cannot write .*header too large"):
    save_weights(path, params, CONFIG, facts)
  assert path.read_bytes() == before


def test_edited_arrays_are_refused_by_name(path):
  arrays = load_file(path)
  name = "weights/embed/tokens"
  for edited, words in (
    ({k: v for k, v in arrays.items() if k != name}, "missing"),
    (arrays | {name: arrays[name][:-1]}, r"float32\[5, 16\]"),
    (arrays | {name: arrays[name].astype(np.float16)}, r"float16\[6, 16\]"),
  ):
    _rewrite(path, edited)
    with pytest.raises(UserError, match=rf"'{name}' is {words}.*\[6, 16\]"):
      load_weights(path)
  _rewrite(path, arrays | {"more": arrays[name]})
  with pytest.raises(UserError, match=r"'more' is .* makes it absent"):
    load_weights(path)


def test_a_failed_write_leaves_the_old_file(path, params, monkeypatch):
  before = path.read_bytes()

  def half(self, content):
    with self.open("wb") as file:
      file.write(content[:100])
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(type(path), "write_bytes", half)
  with pytest.raises(UserError, match=r"cannot write .*No space left"):
    save_weights(path, params, CONFIG, {})
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  with pytest.raises(UserError, match="cannot write"):
    save_weights(path / "below.safetensors", params, CONFIG, {})


def test_other_values_than_were_written_are_refused(path):
  content = bytearray(path.read_bytes())
  content[-2] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match="is damaged or was edited"):
    load_weights(path)


def test_no_flipped_bit_is_accepted(path):
  content = path.read_bytes()
  header = 8 + int.from_bytes(content[:8], "little")
  random = np.random.default_rng(0)
  places = [*range(header), *random.integers(header, len(content), 100)]
  for place in places:
    damaged = bytearray(content)
    damaged[place] ^= 1 << int(random.integers(8))
    path.write_bytes(damaged)
    with pytest.raises(UserError):
      load_weights(path)
