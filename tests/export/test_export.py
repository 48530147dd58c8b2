import dataclasses
import functools
import importlib
import json
import os
import pathlib

import exported_models
import jax
import numpy as np
import pytest
from conftest import DATA
from exported_models import ATTENTION, config
from orbax.checkpoint import v1 as ocp
from programs import run_in_forks
from safetensors.numpy import load_file

from trm_jax import config as config_lib
from trm_jax.core.family import FAMILIES, Family, Passes, Style
from trm_jax.errors import UserError
from trm_jax.export import (
  formats,
  orbax_folder,
  published,
  reference,
  stablehlo,
  torch_files,
)
from trm_jax.inspect import parity
from trm_jax.run import checkpoint, files, pretrained
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.train.program import build

RECORDINGS = sorted((DATA / "parity").glob("*.npz"))
MODELS = {
  "trm": {"num_puzzle_ids": 3},
  "bfloat16": {"param_dtype": "bfloat16", "dtype": "bfloat16"},
  "no table": {"puzzle_emb_ndim": 0},
  "registers": {"puzzle_emb_ndim": 0, "registers": 2},
  "hrm": {"family": "hrm"},
  "hrm of two depths": {"family": "hrm", "layers": 2, "answer_layers": 1},
  "single_latent": {"family": "single_latent", "positions": "learned"},
  "multi_latent": {"family": "multi_latent"},
  "transformer": {"family": "transformer", **ATTENTION},
  "feedforward": {"family": "feedforward"},
  "autoregressive": {"family": "autoregressive", **ATTENTION},
}


_config = functools.partial(config, inner_multiple=256)
_pretrained = functools.partial(exported_models.pretrained, inner_multiple=256)


def _assert_same_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# A family from outside the package

TOY = Family(
  name="toy", title="toy", phrase="a toy", summary="`y <- net(y + x)`",
  source="this test", style=Style("#123456", "o", "-"),
  stacks=lambda config: {"blocks": config.layers},
  latents=lambda config: {"y": (config.width,)},
  passes=lambda config: {"blocks": Passes(1, 1)},
  step=lambda step, latents: latents.replace(
    y=step.nets["blocks"](latents.y + step.x, None)
  ),
)  # fmt: skip


def test_a_new_family_is_exported_or_refused_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(FAMILIES, "toy", TOY)
  model = _pretrained(family="toy")
  for name in ("safetensors", "stablehlo", "orbax"):
    formats.get(name).export(model, tmp_path / name, overwrite=False)
  _assert_same_bits(
    pretrained.load(tmp_path / "safetensors").params, model.params
  )
  _assert_same_bits(orbax_folder.load(tmp_path / "orbax")[0], model.params)
  solve = stablehlo.load(tmp_path / "stablehlo")
  assert (solve(np.ones((2, 16), int), depth=3)["steps"] == 3).all()
  for name in ("torch", "onnx"):
    with pytest.raises(UserError, match="family='toy': the"):
      formats.get(name).export(model, tmp_path / name, overwrite=False)


# Orbax


@pytest.mark.parametrize("name", MODELS)
def test_an_orbax_folder_keeps_every_bit(name, tmp_path):
  model = _pretrained(**MODELS[name])
  orbax_folder.export(model, tmp_path / "deep" / "model")
  params, found, facts = orbax_folder.load(tmp_path / "deep" / "model")
  _assert_same_bits(params, model.params)
  assert found == model.config
  assert facts == model.facts() | {"format": "trm_jax.orbax/1"}
  assert os.listdir(tmp_path / "deep") == ["model"]


@pytest.fixture
def folder(tmp_path):
  model = _pretrained()
  orbax_folder.export(model, tmp_path / "model")
  return model, tmp_path / "model"


def test_plain_orbax_loads_it(folder):
  model, path = folder
  tree = ocp.load(path)
  _assert_same_bits(tree["weights"], model.params.weights)
  _assert_same_bits(tree["initial"]["z"], model.params.initial.z)
  card = ocp.metadata(path).custom_metadata["card"]
  assert card["config"] == model.config
  assert card["task"] == "sudoku"


def test_a_damaged_orbax_folder_is_refused(folder):
  _, path = folder
  # The largest files hold the arrays.
  data = max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
  content = bytearray(data.read_bytes())
  for place in range(0, len(content), 97):
    content[place] ^= 255
  data.write_bytes(content)
  with pytest.raises(UserError, match=r"model (cannot be read|is damaged)"):
    orbax_folder.load(path)
  with pytest.raises(UserError, match="no such folder"):
    orbax_folder.load(path / "below")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"width": 32}, r"array '.*' is float32\[.*\], but its config makes it"),
    ({"layers": 1000}, "its config cannot be read: 1000 layers"),
    ({"widht": 3}, "no field 'widht'"),
    ({"positions": "learned"}, "'weights/embed/positions' is missing"),
  ],
)
def test_arrays_must_be_those_of_the_config(tmp_path, changes, words):
  model = _pretrained()
  other = model.config | {"model": model.config["model"] | changes}
  edited = dataclasses.replace(model, config=other)
  orbax_folder.export(edited, tmp_path / "model")
  with pytest.raises(UserError, match=words):
    orbax_folder.load(tmp_path / "model")


def test_only_an_exported_folder_is_ever_replaced(folder, tmp_path):
  model, path = folder
  with pytest.raises(UserError, match="exists already"):
    orbax_folder.export(model, path)
  newer = dataclasses.replace(model, step=8)
  orbax_folder.export(newer, path, overwrite=True)
  assert orbax_folder.load(path)[2]["step"] == 8
  precious = tmp_path / "thesis"
  precious.mkdir()
  (precious / "chapter").write_text("1")
  ocp.save(precious / "checkpoint", {"a": np.ones(1)})
  for other in (precious, precious / "checkpoint", precious / "chapter"):
    with pytest.raises(UserError):
      orbax_folder.export(model, other, overwrite=True)
  assert (precious / "chapter").read_text() == "1"
  assert (precious / "checkpoint").is_dir()
  assert sorted(os.listdir(tmp_path)) == ["model", "thesis"]


def test_a_failed_orbax_export_leaves_what_was_there(folder, monkeypatch):
  model, path = folder
  rename = pathlib.Path.replace

  def full(*arguments, **options):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

  def stuck(self, target):
    if self.name == "new":
      raise OSError(5, "Input/output error")
    return rename(self, target)

  for where, name, failure in (
    (ocp, "save", full),
    (pathlib.Path, "replace", stuck),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(where, name, failure)
      with pytest.raises(UserError, match=r"cannot write .*(No space|output)"):
        orbax_folder.export(model, path, overwrite=True)
    assert os.listdir(path.parent) == ["model"]
    _assert_same_bits(orbax_folder.load(path)[0], model.params)


# The reference's own checkpoints


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_weights_return_to_the_arrays_they_were(path):
  recording = parity.Recording(str(path))
  recipe = parity.read_recipe(recording, "float32")
  names = {name for name in recording.arrays if name.startswith("params/")}
  recorded = {
    name.removeprefix("params/"): recording.arrays[name] for name in names
  }
  params = reference.params_from_reference(recorded, recipe.model)
  state = torch_files.state_dict(params, recipe.model)
  assert state.keys() == {"_orig_mod.model." + name for name in recorded}
  for name, array in recorded.items():
    np.testing.assert_array_equal(state["_orig_mod.model." + name], array)
    assert state["_orig_mod.model." + name].dtype == np.float32
  # And they are described as the recorded model was.
  described = torch_files.describe(recipe.model, recipe.halting)
  settings = recording.config
  for name in described.keys() & settings.keys() - {"forward_dtype"}:
    unread = settings["kind"] == "transformer" and name in ("L_layers",)
    unread |= settings.get(name) == 0 and name in ("puzzle_emb_len", "H_layers")
    assert unread or described[name] == settings[name], name
  module = settings["kind"].replace("transformer", "transformers_baseline")
  assert described["name"].startswith(f"recursive_reasoning.{module}@")


@pytest.mark.parametrize(
  "name", ["trm", "hrm", "hrm of two depths", "transformer", "bfloat16"]
)
def test_a_file_for_torch_returns_to_the_same_weights(name, tmp_path):
  path = tmp_path / "step_7.safetensors"
  model = _pretrained(**MODELS[name])
  expected = model.experiment.model
  torch_files.export(model, path)
  card = json.loads((tmp_path / "step_7.safetensors.json").read_text())
  assert card["config"] == model.config
  assert card["arch"]["hidden_size"] == 16
  assert card["arch"]["L_layers"] == expected.layers
  assert card["arch"]["H_layers"] == (expected.answer_layers or expected.layers)
  for key, array in load_file(path).items():
    # As in the reference: initial latents in the dtype of the activations.
    narrow = name == "bfloat16" and key.endswith("_init")
    assert array.dtype == ("bfloat16" if narrow else "float32"), key
  arrays = published.read_arrays(path)
  other = model.config["model"] | {"layers": 5, "answer_layers": 0}
  read, _ = published.complete_config(model.config | {"model": other}, arrays)
  found = config_lib.read(read).model
  assert dataclasses.replace(found, num_puzzle_ids=1) == dataclasses.replace(
    expected, num_puzzle_ids=1
  )
  params = reference.params_from_reference(arrays, expected)
  _assert_same_bits(params, model.params)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"family": "feedforward"}, "family='feedforward': the reference"),
    ({"family": "autoregressive", **ATTENTION}, "family='autoregressive'"),
    ({"puzzle_emb_ndim": 0, "registers": 4}, "registers=4.*no registers"),
    ({"initial_std": 1.0}, r"initial_std=1\.0"),
    ({"inner_multiple": 8}, "inner_multiple=8.*up to 256"),
    ({"family": "hrm", "puzzle_emb_len": 4}, "puzzle_emb_len=4.*always has 1"),
    ({"family": "transformer"}, "mixer='mlp'.*attention only"),
    ({"family": "multi_latent"}, "latent_steps=2.*6 scratchpads"),
  ],
)
def test_what_the_reference_lacks_is_refused(changes, words, tmp_path):
  with pytest.raises(UserError, match=words):
    torch_files.export(_pretrained(**changes), tmp_path / "m.safetensors")
  assert not list(tmp_path.iterdir())


def test_a_pt_file_asks_for_torch(tmp_path, monkeypatch):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(importlib, "import_module", missing)
  with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
    torch_files.export(_pretrained(), tmp_path / "m.pt")
  assert not list(tmp_path.iterdir())


# Files


def test_files_are_written_together_or_not_at_all(tmp_path, monkeypatch):
  new, old = tmp_path / "deep" / "new", tmp_path / "old"
  old.write_bytes(b"before")
  write = pathlib.Path.write_bytes

  def full(self, content):
    write(self, content[:1])
    if "old" in self.name:
      raise OSError(28, os.strerror(28))

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*old: No space left"):
      files.write({new: b"content", old: b"after"})
  assert old.read_bytes() == b"before"
  assert not list(new.parent.iterdir())
  with pytest.raises(UserError, match=r"cannot write .*below: "):
    files.write({old / "below": b"content"})
  files.write({new: b"content", old: b"after"})
  assert (new.read_bytes(), old.read_bytes()) == (b"content", b"after")
  assert len(list(tmp_path.rglob("*"))) == 3


# The program


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's folder, made without training, and the state in it."""
  folder = RunFolder(tmp_path_factory.mktemp("export") / "run")
  folder.claim(_config(), {})
  program = build(config_lib.read(_config()))
  random = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: np.asarray(9 * random.random(leaf.shape), leaf.dtype),
    program.abstract,
  )
  with checkpoint.Checkpoints(folder.checkpoints, keep=2) as checkpoints:
    checkpoints.save(4, state, {"exact_accuracy": 0.5})
  write_json(folder.result, {"checkpoint": 4, "depths": [{"depth": 1}]})
  folder.release()
  return folder.path, state


@pytest.fixture(scope="module")
def ran(run):
  """What the program did: name -> exit status, and what it printed."""
  path, _ = run
  place = path.parent

  def command(name, kind, out, workdir=path, *more):
    flags = [f"--workdir={workdir}", f"--format={kind}", f"--out={place / out}"]
    return {name: ["export", *flags, *more]}

  averaged = place / "ema.safetensors"
  (place / "logs").mkdir()
  return run_in_forks(
    command("ema", "safetensors", "ema.safetensors")
    | command("raw", "safetensors", "raw.safetensors", path, "--weights=raw")
    | command("again", "safetensors", "ema.safetensors")
    | command("torch", "torch", "torch.safetensors", averaged)
    | command("stablehlo", "stablehlo", "s.stablehlo", averaged)
    | command("onnx", "onnx", "m.onnx", averaged, "--precision=int8")
    | command("orbax", "orbax", "folder", averaged)
    | command("over", "orbax", "folder", averaged, "--overwrite")
    | command("suffix", "torch", "torch.bin")
    | command("precision", "torch", "x.pt", path, "--precision=int8")
    | command("one model", "orbax", "x", averaged, "--weights=raw")
    | command("no such step", "orbax", "x", path, "--checkpoint=9")
    | command("no run", "orbax", "x", place / "nothing")
    | {
      "no format": ["export", f"--workdir={path}", f"--out={place / 'x'}"],
      "no out": ["export", f"--workdir={path}", "--format=orbax"],
      "no workdir": ["export", f"--out={place / 'x'}", "--format=orbax"],
      "bad format": [
        "export",
        f"--workdir={path}",
        f"--out={place / 'x'}",
        "--format=gguf",
      ],
      "help": ["export", "--help"],
    },
    place / "logs",
    devices=1,
  )


def test_the_program_writes_every_format(run, ran):
  place, state = run[0].parent, run[1]
  for name in ("ema", "raw", "torch", "stablehlo", "onnx", "orbax", "over"):
    status, printed = ran[name]
    assert status == 0, printed
    assert "bytes), step 4\n" in printed and "\nTo use it:\n  " in printed
    assert "{" not in printed
  averaged = pretrained.load(place / "ema.safetensors")
  _assert_same_bits(averaged.params, state.averaged_params)
  assert averaged.scores == [{"depth": 1}]
  raw = pretrained.load(place / "raw.safetensors")
  _assert_same_bits(raw.params, state.params)
  assert raw.scores == []  # which were those of the averages
  _assert_same_bits(orbax_folder.load(place / "folder")[0], averaged.params)
  made = {path.name for path in place.iterdir()} - {"run", "logs"}
  assert made == {
    "ema.safetensors", "raw.safetensors", "torch.safetensors",
    "torch.safetensors.json", "s.stablehlo", "s.stablehlo.json", "m.onnx",
    "m.onnx.json", "folder",
  }  # fmt: skip


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("again", "ema.safetensors exists already"),
    ("suffix", "must end in .pt or .safetensors"),
    ("precision", "--precision=int8: of --format=onnx only"),
    ("one model", "--weights=raw: there is only one model in"),
    ("no such step", "checkpoint '9': must be 'best', 'last' or"),
    ("no run", "there is neither a run's folder nor a file"),
    ("no format", "--format is missing"),
    ("no out", "--out is missing"),
    ("no workdir", "--workdir is missing"),
    ("bad format", "--format=gguf: must be one of safetensors, torch"),
  ],
)
def test_bad_flags_are_told_in_a_line(ran, name, words):
  status, printed = ran[name]
  assert status == 2, printed
  assert printed.startswith("error: ")
  assert words in printed
  assert len(printed.splitlines()) == 1


def test_help(ran):
  status, printed = ran["help"]
  assert status == 0
  assert "--[no]overwrite" in printed
