"""Published checkpoints: what shapes tell, what is refused, the run made."""

import dataclasses
import io
import json
import os
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, tiny_model
from programs import TINY, run_in_forks
from safetensors.numpy import save_file

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.core.family import FAMILIES
from trm_jax.errors import UserError
from trm_jax.export import published, recognition, reference
from trm_jax.inspect import parity
from trm_jax.run import checkpoint
from trm_jax.run.folder import RunFolder
from trm_jax.train import loop
from trm_jax.train import step as train

RECORDINGS = (
  "trm_attention", "trm_mlp", "trm_learned_positions", "trm_single_latent",
  "trm_six_latents", "hrm", "transformer",
)  # fmt: skip
PREFIX = "_orig_mod.model."
CONFIG = {
  "data": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 16, "puzzle_emb_len": 1,
    "cycles": 2, "latent_steps": 2, "dtype": "float32",
  },
  "halting": {"max_steps": 4},
  "train": {"batch_size": 16},
  "eval": {"batch_size": 16},
}  # fmt: skip


def _random(model, seed=0):
  """The reference's arrays of a model whose every value is random."""
  random = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype),
    network.shapes(model),
  )
  return reference.params_to_reference(params, model)


def _publish(path, arrays, prefix=PREFIX):
  save_file({prefix + name: array for name, array in arrays.items()}, path)
  return path


@pytest.fixture
def tiny(tmp_path):
  """A published model for 4x4 Sudoku."""
  return _publish(tmp_path / "tiny.safetensors", _random(tiny_model()))


def _shapes(model):
  return {entry.name: entry.shape for entry in reference.layout(model)}


@pytest.mark.parametrize("name", RECORDINGS)
def test_an_imported_model_does_what_the_reference_did(name, tmp_path):
  recording = parity.Recording(str(DATA / "parity" / f"{name}.npz"))
  recipe = parity.read_recipe(recording, "float32")
  model = recipe.model
  arrays = {
    key.removeprefix("params/"): array
    for key, array in recording.arrays.items()
    if key.startswith("params/")
  }
  read = published.read_arrays(_publish(tmp_path / "x.safetensors", arrays))
  other = dataclasses.replace(model, layers=7, num_puzzle_ids=1)
  found = recognition.recognise(
    {name: array.shape for name, array in read.items()}, other
  )
  seen = dataclasses.replace(
    other, **found, num_puzzle_ids=model.num_puzzle_ids
  )
  assert seen == model
  params = reference.params_from_reference(read, seen)
  back = reference.params_to_reference(params, seen)
  assert back.keys() == arrays.keys()
  for key, array in arrays.items():
    np.testing.assert_array_equal(back[key], array)
  differences = [
    d
    for d in parity._replay_evaluation(recording, params, recipe)
    if d.name.startswith("eval/0/")  # float32 drifts in later steps
  ]
  assert differences
  assert max(d.relative for d in differences) < 1e-4


@pytest.mark.parametrize(
  "prefix", ["", "model.", "_orig_mod.model.", "module."]
)
def test_wrappers_and_buffers_are_seen_through(prefix, tmp_path):
  arrays = _random(tiny_model())
  extra = {
    "inner.puzzle_emb.local_ids": np.zeros(3, np.int32),
    "inner.puzzle_emb.local_weights": np.full((3, 16), np.nan, np.float32),
  }
  path = _publish(tmp_path / "x.safetensors", arrays | extra, prefix)
  read = published.read_arrays(path)
  config, notes = published.complete_config(CONFIG, read)
  assert (config, notes) == (CONFIG, [])
  params = reference.params_from_reference(read, config_lib.read(config).model)
  back = reference.params_to_reference(params, tiny_model())
  jax.tree.map(np.testing.assert_array_equal, back, arrays)


@pytest.mark.parametrize(
  "changes",
  [
    dict(family=family, mixer=mixer, positions=positions)
    for family in [f.name for f in FAMILIES.values() if f.reference]
    for mixer, positions in (
      ("mlp", "none"), ("mlp", "learned"), ("attention", "rotary"),
      ("attention", "none"), ("attention", "learned"),
    )
  ]
  + [
    dict(width=48, layers=3, heads=4, expansion=2.7, puzzle_emb_ndim=90,
         puzzle_emb_len=5, inner_multiple=1),
    dict(puzzle_emb_ndim=0),
    dict(family="multi_latent", latent_steps=1),
    dict(family="hrm", layers=1, answer_layers=2),
    dict(family="hrm", layers=2, answer_layers=1, mixer="attention"),
  ],
)  # fmt: skip
def test_the_size_of_every_model_of_the_reference_is_read(changes):
  model = tiny_model(**changes)
  other = dataclasses.replace(
    model, width=model.heads * 20, layers=5, answer_layers=0,
    num_puzzle_ids=7, puzzle_emb_ndim=8,
  )  # fmt: skip
  if "latent_steps" in model.kind.tied:
    other = dataclasses.replace(other, latent_steps=9)
  found = recognition.recognise(_shapes(model), other)
  assert (
    dataclasses.replace(other, **found, num_puzzle_ids=model.num_puzzle_ids)
    == model
  )


def test_a_changed_config_is_told(tiny):
  other = CONFIG | {"model": CONFIG["model"] | {"width": 32, "layers": 2}}
  config, notes = published.complete_config(other, published.read_arrays(tiny))
  assert set(notes) == {
    "width: 32 in the config, 16 in the file",
    "layers: 2 in the config, 1 in the file",
  }
  assert config_lib.read(config).model == tiny_model()


ATTENTION = {"mixer": "attention", "positions": "rotary"}


@pytest.mark.parametrize(
  ("changes", "configured", "flags"),
  [
    ({"family": "hrm"}, {}, ["family=hrm (check cycles and latent_steps"]),
    ({"family": "transformer"}, {"family": "hrm"}, ["family=transformer"]),
    ({"family": "multi_latent"}, {}, ["family=multi_latent"]),
    ({"mixer": "attention"}, {}, ["mixer=attention (check heads and pos"]),
    ({}, ATTENTION, ["mixer=mlp", "positions=none"]),
    ({"mixer": "attention"}, {"mixer": "attention", "positions": "learned"},
     ["positions=rotary", "positions=none"]),
    ({"puzzle_emb_len": 3}, {}, ["puzzle_emb_len=3"]),
    ({}, {"puzzle_emb_ndim": 0, "mixer": "mlp"}, ["puzzle_emb_ndim=16"]),
    (ATTENTION, ATTENTION | {"expansion": 4.0}, ["expansion=2.25"]),
    ({"family": "hrm"} | ATTENTION, {}, []),
  ],
)  # fmt: skip
def test_a_field_that_explains_the_difference_is_named(
  changes, configured, flags
):
  with pytest.raises(UserError, match=r"array 'inner\.") as refused:
    recognition.recognise(
      _shapes(tiny_model(**changes)), tiny_model(**configured)
    )
  text = str(refused.value)
  assert ("these describe it" in text) == bool(flags)
  assert all(f"--config.model.{flag}" in text for flag in flags), text


def test_a_prefix_that_nothing_tells_is_asked_for():
  model = tiny_model(family="hrm", puzzle_emb_len=4, **ATTENTION)
  with pytest.raises(
    UserError, match=r"puzzle_emb_len=4: .* always has 1 pref"
  ):
    recognition.recognise(_shapes(model), model)
  assert not recognition.recognise(_shapes(model), model, ["puzzle_emb_len"])


def test_a_family_that_the_reference_lacks_is_refused():
  with pytest.raises(UserError, match="family='feedforward': the reference"):
    recognition.recognise(
      _shapes(tiny_model()), tiny_model(family="feedforward")
    )


def _without(name):
  return lambda arrays: arrays.pop(name)


def _with(name, *shape):
  return lambda arrays: arrays.update({name: np.zeros(shape, np.float32)})


LAYER = "inner.L_level.layers.0"


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (_without("inner.embed_tokens.embedding_weight"), "weight' is missing"),
    (_without("inner.lm_head.weight"), r"lm_head.weight' is missing"),
    (_without("inner.L_init"), "L_init' is missing"),
    (_without(f"{LAYER}.mlp.down_proj.weight"), "down_proj.weight' is missing"),
    (_without(f"{LAYER}.mlp_t.gate_up_proj.weight"), "mlp_t.*is missing"),
    (_with("inner.lm_head.weight", 6, 15), r"has shape \(6, 15\)"),
    (_with("inner.embed_tokens.embedding_weight", 11, 16), "reads 11 tokens"),
    (_with("inner.H_init", 15), r"H_init' has shape \(15,\)"),
    (
      _with(f"{LAYER}.norm.weight", 16),
      "norm.weight' of shape .* has no place",
    ),
    (_with("inner.L_level.layers.2.mlp.down_proj.weight", 1), "is missing"),
    (_with(f"{LAYER}.mlp.gate_up_proj.weight", 47, 16), r"\(47, 16\)"),
    (_with(f"{LAYER}.mlp.gate_up_proj.weight", 48), r"\(48,\); the model"),
    (_with(f"{LAYER}.mlp_t.gate_up_proj.weight", 48, 97), r"\(48, 97\)"),
    (_with("model.inner.H_init", 16), "the same array of two models"),
    (lambda a: a.update({"inner.H_init": np.zeros(16, np.int32)}), "of int32"),
    (lambda a: a.update({"inner.H_init": np.full(16, np.inf)}), "not finite"),
  ],
)
def test_a_checkpoint_that_is_no_such_model_is_refused(edit, message, tmp_path):
  arrays = _random(tiny_model())
  edit(arrays)
  path = _publish(tmp_path / "x.safetensors", arrays)
  with pytest.raises(UserError, match=message):
    read = published.read_arrays(path)
    config, _ = published.complete_config(CONFIG, read)
    reference.params_from_reference(read, config_lib.read(config).model)


def test_bfloat16_is_read_as_it_is(tmp_path):
  arrays = {
    name: array.astype(ml_dtypes.bfloat16)
    for name, array in _random(tiny_model()).items()
  }
  read = published.read_arrays(_publish(tmp_path / "x.safetensors", arrays))
  back = reference.params_to_reference(
    reference.params_from_reference(read, tiny_model()), tiny_model()
  )
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array.astype(np.float32))


TABLE = "inner.puzzle_emb.weights"
NAMES = ["<blank>", "a", "b"]


def _table(rows=3, zeros=0):
  values = np.arange(1.0, 1 + 16 * rows, dtype=np.float32).reshape(rows, 16)
  return np.concatenate([values, np.zeros((zeros, 16), np.float32)])


def _arrange(table, choice=None, names=None, data_names=("<blank>",), **model):
  config = CONFIG | {"model": CONFIG["model"] | model}
  known = None if data_names is None else list(data_names)
  arrays, config, names = published.arrange_table(
    {TABLE: table}, config, choice, names, known
  )
  rows = config_lib.read(config).model.num_puzzle_ids
  assert arrays[TABLE].shape == (rows, 16)
  return arrays[TABLE], names


def test_a_table_that_fits_stays_as_it_is():
  table, names = _arrange(_table(1))
  assert names == ["<blank>"]
  np.testing.assert_array_equal(table, _table(1))
  # Rows of named puzzles are as many as training would make them.
  for data_names in (None, NAMES):
    table, names = _arrange(_table(), None, NAMES, data_names)
    assert names == NAMES and len(table) == 512
    np.testing.assert_array_equal(table[:3], _table())
    assert not table[3:].any()
  table, names = _arrange(_table(3, zeros=509), None, None, NAMES)
  assert names == NAMES and len(table) == 512
  table, _ = _arrange(_table(), None, NAMES, None, num_puzzle_ids=5)
  assert len(table) == 5


@pytest.mark.parametrize(
  ("choice", "names", "data_names", "message"),
  [
    (None, None, ["<blank>"], "3 rows, and the data needs 1: choose"),
    (None, None, None, "not known whose they are"),
    (None, NAMES, [*NAMES, "c"], "the data needs 4"),
    (None, NAMES[:2], None, "2 names, and the puzzle table has 3 rows"),
    ("mean", [*NAMES, "c"], None, "4 names, and the puzzle table has 3"),
    ("keep", None, None, "whose are its 3 rows"),
    ("keep", None, [*NAMES, "c"], "whose are its 3 rows"),
    ("drop", None, None, "not known how many ids"),
  ],
)
def test_a_table_that_does_not_fit_is_refused(
  choice, names, data_names, message
):
  with pytest.raises(UserError, match=message):
    _arrange(_table(), choice, names, data_names)


def test_a_table_is_kept_averaged_or_dropped():
  table, names = _arrange(_table(), "keep")
  np.testing.assert_array_equal(table, _table())
  assert names == ["<blank>"]
  table, names = _arrange(_table(), "keep", NAMES, [*NAMES, "c"])
  np.testing.assert_array_equal(table[:3], _table())
  assert names == NAMES
  table, names = _arrange(_table(3, zeros=9), "mean", NAMES, None)
  np.testing.assert_array_equal(table, _table()[1:].mean(0, keepdims=True))
  assert names == ["<blank>"]
  table, names = _arrange(_table(), "mean", None, NAMES)
  assert (table[:3] == _table()[1:].mean(0)).all() and names == NAMES
  table, names = _arrange(_table(), "drop", None, NAMES)
  assert not table.any() and len(table) == 512 and names == NAMES


def test_a_model_without_a_table_has_none_to_choose():
  model = {"puzzle_emb_ndim": 0}
  config = CONFIG | {"model": CONFIG["model"] | model}
  arrays, config, names = published.arrange_table(
    {}, config, None, None, ["<blank>"]
  )
  assert (arrays, names) == ({}, ["<blank>"])
  with pytest.raises(UserError, match="has no puzzle table"):
    published.arrange_table({}, config, "mean", None, None)


@pytest.mark.parametrize(
  "text", ["", "{}", "[]", '["a", 1]', '["a", "a"]', "[" * 100_000, "\xff"]
)
def test_damaged_names_are_refused(text, tmp_path):
  path = tmp_path / "names.json"
  path.write_text(text, encoding="latin-1")
  with pytest.raises(UserError, match=r"names\.json"):
    published.read_names(path)
  path.unlink()
  with pytest.raises(UserError, match=r"names\.json"):
    published.read_names(path)


def _write_run(path, names=("<blank>",)):
  experiment = config_lib.read(CONFIG)
  params = reference.params_from_reference(
    _random(tiny_model()), experiment.model
  )
  published.write_run(path, CONFIG, {}, params, list(names))
  return experiment, params


def test_training_starts_from_the_imported_weights(tmp_path):
  experiment, params = _write_run(tmp_path / "deep" / "run", NAMES)
  folder = RunFolder(tmp_path / "deep" / "run")
  folder.claim(CONFIG, {})  # as training does, which may go on here
  assert folder.read_config() == json.loads(json.dumps(CONFIG))
  assert folder.read_identifiers() == NAMES
  assert [p.name for p in folder.path.parent.iterdir()] == ["run"]

  class Nobody:
    def say(self, message):
      assert "step 0" in message

  program = loop.build(experiment)
  with checkpoint.Checkpoints(folder.checkpoints, 2) as checkpoints:
    state, _ = loop.restore_or_init(program, checkpoints, {}, Nobody())
  fresh = train.state_from_params(params, program.recipe)
  jax.tree.map(np.testing.assert_array_equal, state, fresh)
  jax.tree.map(np.testing.assert_array_equal, state.averaged_params, params)


def test_nothing_is_written_over_or_left_half(tmp_path, monkeypatch):
  (tmp_path / "there").mkdir()
  with pytest.raises(UserError, match="exists already"):
    _write_run(tmp_path / "there")

  def full(self, step, state):
    raise UserError("no space")

  monkeypatch.setattr(checkpoint.Checkpoints, "save", full)
  with pytest.raises(UserError, match="no space"):
    _write_run(tmp_path / "run")
  assert [p.name for p in tmp_path.iterdir()] == ["there"]


def _archive(compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as archive:
    archive.writestr("x/data.pkl", bytes(100_000))
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "it is missing"),
    (b"", "does not begin like one"),
    (b"\x80\x02}q\x00.", "does not begin like one"),  # before PyTorch 1.6
    (b"PK\x03\x04" + bytes(100), "not an archive"),
    (_archive()[:-30], "not an archive"),
    (_archive(zipfile.ZIP_DEFLATED), "compressed"),
  ],
)
def test_what_torch_would_not_have_written_never_reaches_it(
  content, message, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
  path = tmp_path / "step_1000"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    published.read_arrays(path)


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "step_1000"
  path.write_bytes(_archive())
  with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
    published.read_arrays(path)


def test_what_torch_saved_is_read_and_its_code_is_not_run(tmp_path):
  torch = pytest.importorskip("torch")
  arrays = _random(tiny_model())
  path = tmp_path / "step_1000"
  state = {PREFIX + name: torch.from_numpy(a) for name, a in arrays.items()}
  init = f"{PREFIX}inner.H_init"
  torch.save(state | {init: state[init].bfloat16()}, path)
  read = published.read_arrays(path)
  assert read.keys() == arrays.keys()
  for name in arrays.keys() - {"inner.H_init"}:
    np.testing.assert_array_equal(read[name], arrays[name])
  rounded = arrays["inner.H_init"].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(read["inner.H_init"], rounded)

  class Trap:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "trapped"),)

  for bad, message in (
    (state | {"trap": Trap()}, "is refused: .* asks for posix.mkdir"),
    ({"model": state}, "save the model's state_dict"),
    ({"x": torch.zeros(1).expand(10**12)}, "claim 4,000,000,000,000 bytes"),
    ([1], "holds list"),
  ):
    torch.save(bad, path)
    with pytest.raises(UserError, match=message) as refusal:
      published.read_arrays(path)
    assert "\n" not in str(refusal.value)
  assert not (tmp_path / "trapped").exists()


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """What programs print: imports, and the evaluation of one."""
  folder = tmp_path_factory.mktemp("import")
  file = _publish(folder / "tiny.safetensors", _random(tiny_model()))
  three = _random(tiny_model(num_puzzle_ids=3))
  three = _publish(folder / "three.safetensors", three)
  config, run = TINY(folder), folder / "run"
  start = ["import_torch", f"--checkpoint={file}"]
  return run_in_forks(
    {
      "import": [*start, f"--out={run}", *config],
      "again": [*start, f"--out={run}", *config],
      "unfit": ["import_torch", f"--checkpoint={three}",
                f"--out={folder / 'three'}", *config],
      "no_config": [*start, f"--out={folder / 'x'}"],
      "evaluate": ["evaluate", f"--workdir={run}", "--depth=2"],
    },
    folder,
    devices=1,
  )  # fmt: skip


def test_an_imported_run_is_evaluated(printed):
  for name in ("import", "evaluate"):
    status, text = printed[name]
    assert status == 0, text
  assert "note" not in printed["import"][1]
  assert "step 0" in printed["evaluate"][1]


def test_a_mistaken_import_is_one_line(printed):
  for name, words in (
    ("again", "exists already"),
    ("unfit", "3 rows, and the data needs 1"),
    ("no_config", "--config is missing"),
  ):
    status, text = printed[name]
    assert status == 2
    assert words in text
    assert text.count("\n") == 1
