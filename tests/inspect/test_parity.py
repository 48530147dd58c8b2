"""Law 3: the core does what the reference recorded, in float64 to 1e-5."""

import json

import jax
import numpy as np
import pytest
from conftest import DATA

from trm_jax.errors import UserError
from trm_jax.export import reference
from trm_jax.inspect import parity

RECORDINGS = (
  "trm_attention", "trm_mlp", "trm_learned_positions", "trm_single_latent",
  "trm_six_latents", "hrm", "hrm_unequal", "transformer",
)  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_float64_replay_agrees_on_every_quantity(name):
  recording = parity.Recording(str(DATA / "parity" / f"{name}.npz"))
  with jax.enable_x64(True):
    differences = list(parity.replay(recording, "float64"))
  assert max(d.relative for d in differences) < 1e-5
  # Nothing recorded is left out, but what the replay itself starts from.
  compared = {d.name for d in differences}
  given = {"config"} | {
    name
    for name in recording.arrays
    if name.startswith("params/")
    or name.split("/", 2)[-1] in ("inputs", "labels", "puzzle_identifiers")
    or (name.startswith("eval/") and name.count("/") == 1)
  }
  assert set(recording.arrays) - given == compared


@pytest.mark.parametrize("name", RECORDINGS)
def test_float32_agrees_on_the_first_steps(name):
  recording = parity.Recording(str(DATA / "parity" / f"{name}.npz"))
  first = [
    d
    for d in parity.replay(recording, "float32")
    if d.name.startswith(("eval/0/", "train/0/", "grads/"))
  ]
  assert first
  assert max(d.relative for d in first) < 1e-4


@pytest.mark.parametrize("name", RECORDINGS)
def test_reference_layout_round_trips_bit_for_bit(name):
  recording = parity.Recording(str(DATA / "parity" / f"{name}.npz"))
  config = parity.read_recipe(recording, "float32").model
  arrays = {
    key.removeprefix("params/"): array
    for key, array in recording.arrays.items()
    if key.startswith("params/")
  }
  params = reference.params_from_reference(arrays, config)
  back = reference.params_to_reference(params, config)
  assert back.keys() == arrays.keys()
  for key, array in arrays.items():
    np.testing.assert_array_equal(back[key], array)


def _edited(tmp_path, edit):
  with np.load(DATA / "parity" / "trm_mlp.npz") as archive:
    arrays = dict(archive)
  edit(arrays)
  path = tmp_path / "edited.npz"
  np.savez(path, **arrays)
  return str(path)


def _set_config(**changes):
  def edit(arrays):
    config = json.loads(str(arrays["config"])) | changes
    arrays["config"] = np.array(json.dumps(config))

  return edit


def _drop(name):
  return lambda arrays: arrays.pop(name)


def _put(name, value):
  return lambda arrays: arrays.update({name: np.array(value)})


def _cut(name):
  return lambda arrays: arrays.update({name: arrays[name][..., :-1]})


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (_set_config(kind="perceiver"), "kind='perceiver'"),
    (_set_config(loss_type="hinge"), "loss_type='hinge'"),
    (_set_config(hidden_size=-3), "width=-3"),
    (_set_config(kind=["trm"]), "kind is ['trm'], no number"),
    (_set_config(L_layers=10**7), "L_layers=10000000: must be a whole number"),
    (_set_config(L_cycles=10**9), "L_cycles=1000000000: must be a whole"),
    (_set_config(H_layers="2"), "H_layers='2': must be a whole number"),
    (_put("config", "[" * 50_000), "'config' is not valid JSON"),
    (
      _put("config", '{"lr": ' + "9" * 5000 + "}"),
      "'config' is not valid JSON",
    ),
    (_put("config", "3"), "'config' is not an object"),
    (_put("train/0/loss", "x"), "'train/0/loss' holds text"),
    (_drop("config"), "'config' is missing"),
    (_drop("params/inner.lm_head.weight"), "lm_head.weight' is missing"),
    (_drop("train/1/halted"), "'train/1/halted' is missing"),
    (_cut("params/inner.lm_head.weight"), "lm_head.weight' has shape (7, 31)"),
    (_cut("eval/inputs"), "'eval/inputs' has shape (4, 15)"),
    (_cut("train/0/out/logits"), "'train/0/out/logits' has shape (4, 16, 6)"),
  ],
)
def test_a_bad_recording_is_named(tmp_path, edit, message):
  with pytest.raises(UserError) as caught:
    list(parity.replay(parity.Recording(_edited(tmp_path, edit)), "float32"))
  assert message in str(caught.value)


def test_what_is_no_recording_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  with pytest.raises(UserError, match="No such file"):
    parity.Recording(str(path))
  path.write_bytes(b"not an archive")
  with pytest.raises(UserError, match="cannot be read"):
    parity.Recording(str(path))
  np.savez(path, config=np.array([{"an": "object"}], dtype=object))
  with pytest.raises(UserError, match="cannot be read"):
    parity.Recording(str(path))
