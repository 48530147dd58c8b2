import dataclasses
import functools
import importlib.util
import json
import os

import exported_models
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from exported_models import ATTENTION

from trm_jax.core import family, halting, recursion
from trm_jax.core.model import MIXERS
from trm_jax.errors import UserError
from trm_jax.export import onnx_file
from trm_jax.export.onnx import model as onnx_model
from trm_jax.export.solver import ExportedSolver
from trm_jax.run import card

DEPTH = 8
BATCH = 5
FAMILIES = [name for name in family.FAMILIES if name != "autoregressive"]
_pretrained = functools.partial(
  exported_models.pretrained, num_puzzle_ids=5, latent_steps=3
)


def _puzzles(model):
  random = np.random.default_rng(1)
  return (
    random.integers(0, model.vocab_size, (BATCH, model.seq_len)),
    random.integers(0, model.num_puzzle_ids, BATCH),
  )


@functools.partial(jax.jit, static_argnums=3)
def _supervise(params, inputs, puzzle_ids, model):
  rows = params.puzzle_table[puzzle_ids]

  def step(latents, _):
    latents, outputs = halting.supervise(
      params.weights, rows, latents, inputs, model
    )
    return latents, (outputs.logits, outputs.q_halt, outputs.q_continue)

  start = recursion.initial_latents(params.initial, len(inputs), model)
  return jax.lax.scan(step, start, length=DEPTH)[1]


def _expected(pretrained, inputs, puzzle_ids):
  """After each step: logits, halting logits and halting margins."""
  model = pretrained.experiment.model
  logits, q_halt, q_continue = map(
    np.asarray, _supervise(pretrained.params, inputs, puzzle_ids, model)
  )
  margin = q_halt - q_continue if model.family == "hrm" else q_halt
  return logits, q_halt, margin


def _export(pretrained, folder, *args) -> ExportedSolver:
  path = folder / f"{len(list(folder.iterdir()))}.onnx"
  onnx_file.export(pretrained, path, *args)
  onnx.checker.check_model(onnx.load(path), full_check=True)
  return onnx_file.load(path)


def _assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def trm():
  return _pretrained()


@pytest.fixture(scope="module")
def exported(trm, tmp_path_factory):
  path = tmp_path_factory.mktemp("onnx") / "trm.onnx"
  onnx_file.export(trm, path)
  return path


@pytest.fixture(scope="module")
def content(exported):
  return exported.read_bytes()


@pytest.fixture(scope="module")
def solver(exported):
  return onnx_file.load(exported)


@pytest.mark.parametrize(
  "changes",
  [
    *({"family": family} for family in FAMILIES),
    *({"family": family} | ATTENTION for family in FAMILIES),
    {"positions": "learned", "puzzle_emb_ndim": 24, "puzzle_emb_len": 2},
    {"puzzle_emb_ndim": 0, "num_puzzle_ids": 1, "registers": 3, "layers": 2},
    {"puzzle_emb_ndim": 0, "num_puzzle_ids": 1, "mixer": "attention"},
  ],
  ids=lambda changes: "-".join(map(str, changes.values())),
)  # fmt: skip
def test_answers_are_those_of_jax(changes, tmp_path):
  pretrained = _pretrained(**changes)
  model = pretrained.experiment.model
  inputs, ids = _puzzles(model)
  logits, q_halt, _ = _expected(pretrained, inputs, ids)
  solver = _export(pretrained, tmp_path)
  for depth in (1, 3, DEPTH):
    at = depth - 1
    for rows in (slice(BATCH), slice(1)):
      found = solver(inputs[rows], ids[rows], depth)
      _assert_close(found["logits"], logits[at, rows])
      _assert_close(found["q_halt"], q_halt[at, rows])
      np.testing.assert_array_equal(
        found["answers"], np.argmax(logits[at, rows], axis=-1)
      )
      taken = depth if model.is_recursive else 1
      assert (found["steps"] == taken).all()


def test_other_dtypes_are_exported_in_float32(tmp_path):
  narrow = _pretrained(param_dtype="bfloat16", dtype="bfloat16")
  wide = dataclasses.replace(
    _pretrained(),
    params=jax.tree.map(lambda leaf: leaf.astype(np.float32), narrow.params),
  )
  inputs, ids = _puzzles(narrow.experiment.model)
  np.testing.assert_array_equal(
    _export(narrow, tmp_path)(inputs, ids, DEPTH)["logits"],
    _export(wide, tmp_path)(inputs, ids, DEPTH)["logits"],
  )


@pytest.mark.parametrize("changes", [{}, {"family": "hrm"}])
def test_halting_is_stopping_at_the_first_sure_step(changes, tmp_path):
  pretrained = _pretrained(**changes)
  inputs, ids = _puzzles(pretrained.experiment.model)
  logits, q_halt, margin = _expected(pretrained, inputs, ids)
  solver = _export(pretrained, tmp_path)
  all_steps = set()
  # Halfway between two margins, round-off decides nothing.
  between = np.convolve(np.sort(margin.ravel()), [0.5, 0.5], "valid")
  for threshold in between[::4]:
    sure = margin > threshold
    steps = np.where(sure.any(0), sure.argmax(0) + 1, DEPTH)
    found = solver(inputs, ids, DEPTH, threshold)
    np.testing.assert_array_equal(found["steps"], steps)
    each = np.arange(BATCH)
    _assert_close(found["logits"], logits[steps - 1, each])
    _assert_close(found["q_halt"], q_halt[steps - 1, each])
    all_steps |= set(steps)
  assert len(all_steps) > 3


def test_the_loop_ends_when_all_have_halted(solver):
  inputs = np.ones((BATCH, 16), int)
  # Else it would run for years.
  assert (solver(inputs, 0, 10**12, -np.inf)["steps"] == 1).all()


def test_int8_is_smaller_and_close(tmp_path):
  pretrained = _pretrained(width=128, puzzle_emb_ndim=128, **ATTENTION)
  inputs, ids = _puzzles(pretrained.experiment.model)
  full = _export(pretrained, tmp_path, "float32")
  small = _export(pretrained, tmp_path, "int8")
  big_file, small_file = sorted(tmp_path.glob("*.onnx"))
  assert small_file.stat().st_size < 0.4 * big_file.stat().st_size
  expected, found = (s(inputs, ids, 3)["logits"] for s in (full, small))
  error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert 0 < error < 0.05


@pytest.mark.parametrize("mixer", MIXERS)
def test_int8_is_the_model_of_rounded_weights(mixer, tmp_path):
  pretrained = _pretrained(mixer=mixer, positions="learned")

  def rounded(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if leaf.ndim < 2 or "initial" in name or "head" in name:
      return leaf
    axes = (0,)
    if "embed" in name or "puzzle_table" in name:
      axes = (1,)
    elif name.endswith("out"):
      axes = (0, 1)
    scale = np.max(np.abs(leaf), axis=axes, keepdims=True) / 127
    return np.round(leaf / scale) * scale

  params = jax.tree_util.tree_map_with_path(rounded, pretrained.params)
  expected = dataclasses.replace(pretrained, params=params)
  inputs, ids = _puzzles(pretrained.experiment.model)
  _assert_close(
    _export(pretrained, tmp_path, "int8")(inputs, ids, 3)["logits"],
    _export(expected, tmp_path, "float32")(inputs, ids, 3)["logits"],
  )


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1]))
def test_rounding_errs_by_half_a_scale(seed, axis):
  random = np.random.default_rng(seed)
  matrix = random.normal(size=(4, 3)) * 10.0 ** random.integers(-9, 9, (4, 3))
  matrix = np.where(random.random((4, 3)) < 0.4, 0, matrix).astype(np.float32)
  stored, scales = onnx_model.quantize(matrix, axis)
  assert stored.dtype == np.int8
  scales = np.expand_dims(scales, 1 - axis)
  error = np.abs(stored.astype(np.float64) * scales - matrix)
  assert (error <= 0.501 * scales).all()
  assert not stored[matrix == 0].any()


def test_an_export_tells_what_it_is(trm, tmp_path):
  path = tmp_path / "deep" / "trm.onnx"
  onnx_file.export(trm, path)
  made = sorted(p.name for p in path.parent.iterdir())
  assert made == ["trm.onnx", "trm.onnx.json"]
  # What a device without trm_jax sees.
  session = onnxruntime.InferenceSession(path)
  assert [i.name for i in session.get_inputs()] == [
    "inputs", "puzzle_ids", "depth", "threshold",
  ]  # fmt: skip
  assert session.get_inputs()[0].shape == ["batch", 16]
  assert session.get_outputs()[1].shape == ["batch", 16, 6]
  metadata = session.get_modelmeta().custom_metadata_map
  inside = json.loads(metadata["card"])
  assert inside == trm.card() | {
    "format": "trm_jax.onnx/2", "precision": "float32",
  }  # fmt: skip
  assert onnx_file.load(path).card.items() >= inside.items()
  before = path.read_bytes()
  onnx_file.export(trm, path, overwrite=True)
  assert path.read_bytes() == before


def test_what_onnx_cannot_say_is_refused(tmp_path):
  decoder = _pretrained(family="autoregressive", **ATTENTION)
  random = _pretrained(initial_std=1.0)
  for pretrained, words in (
    (decoder, "has no such recursion"),
    (random, r"initial_std=1\.0: starts from random numbers"),
  ):
    with pytest.raises(UserError, match=words):
      onnx_file.export(pretrained, tmp_path / "a.onnx")
  assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(trm, tmp_path, monkeypatch):
  path = tmp_path / "a.onnx"
  with pytest.raises(UserError, match="'int4': must be one of float32, int8"):
    onnx_file.export(trm, path, "int4")
  path.write_text("mine")
  with pytest.raises(UserError, match=r"a\.onnx exists already"):
    onnx_file.export(trm, path)
  monkeypatch.setattr(onnx_file, "_MAX_BYTES", 10**6)
  with pytest.raises(UserError, match=r"takes 0\.0 GB.*use precision int8"):
    onnx_file.export(trm, path, overwrite=True)
  assert path.read_text() == "mine"


def test_missing_packages_are_named(trm, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for use in (lambda p: onnx_file.export(trm, p), onnx_file.load):
    with pytest.raises(UserError, match=r"pip install -e '\.\[onnx\]'"):
      use(tmp_path / "a.onnx")


def test_a_failed_write_leaves_the_old_file(trm, tmp_path, monkeypatch):
  path = tmp_path / "a.onnx"
  path.write_text("old")

  def full(self, target):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(type(path), "replace", full)
  with pytest.raises(UserError, match=r"cannot write .*No space left"):
    onnx_file.export(trm, path, overwrite=True)
  assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
  with pytest.raises(UserError, match="cannot write"):
    onnx_file.export(trm, path / "below.onnx")


def _refused(path, body: bytes, words: str, facts=None):
  """A file that fits its card is refused for what is in it."""
  card.write(path, body, {"format": onnx_file.FORMAT} | (facts or {}))
  with pytest.raises(UserError, match=words):
    onnx_file.load(path)


def test_edited_files_are_refused(content, tmp_path):
  path = tmp_path / "a.onnx"
  _refused(path, content[: len(content) // 2], "cannot be read as ONNX")
  edited = content.replace(b"ArgMax", b"ArgMux")
  _refused(path, edited, "onnxruntime .* refuses")
  _refused(path, content, "config.data.size", {"config": {"data": {"size": 5}}})
  path.write_bytes(edited)
  with pytest.raises(UserError, match="is damaged or was edited"):
    onnx_file.load(path)


def test_weights_in_other_files_are_refused(content, tmp_path):
  path = tmp_path / "a.onnx"
  for place in ("initializer", "inside a loop"):
    model = onnx.ModelProto.FromString(content)
    tensor = model.graph.initializer[0]
    if place == "inside a loop":
      loop = next(n for n in model.graph.node if n.op_type == "Loop")
      tensor = loop.attribute[0].g.node[0].attribute.add(name="value").t
    tensor.name = place
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    _refused(
      path, model.SerializeToString(), f"'{place}' is stored in another file"
    )


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ((np.ones((2, 15), int),), r"shape \(2, 15\): must be \[batch, 16\]"),
    ((np.ones((0, 16), int),), r"shape \(0, 16\)"),
    ((np.full((2, 16), 6),), "inputs: must be integers from 0 to 5"),
    ((np.full((2, 16), -1),), "inputs: must be integers"),
    ((np.ones((2, 16)),), "inputs: must be integers"),
    ((np.ones((2, 16), int), 5), "puzzle_ids: must be integers from 0 to 4"),
    ((np.ones((2, 16), int), 0, 0), "depth=0: must be 1 or more"),
  ],
)
def test_wrong_puzzles_are_refused(arguments, words, solver):
  with pytest.raises(UserError, match=words):
    solver(*arguments)
