"""A trained model is the same wherever it lies, and damage is told."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.data.sudoku import board
from trm_jax.errors import UserError
from trm_jax.export import formats
from trm_jax.run import checkpoint, pretrained, result, weights
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.solve import calibration
from trm_jax.train.program import build

CONFIG = {
  "data": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "puzzle_emb_ndim": 16, "puzzle_emb_len": 1, "cycles": 1,
    "latent_steps": 1, "dtype": "float32", "num_puzzle_ids": 2,
  },
  "halting": {"max_steps": 4},
  "train": {"batch_size": 16},
  "eval": {"batch_size": 16},
}  # fmt: skip
NAMES = ["<blank>", "puzzle"]
SCORES = [{"depth": 1, "exact_accuracy": 0.5}]
CALIBRATION = {
  "checkpoint": 4,
  **calibration.Calibration("temperature", 9, 2.0).to_json(),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's folder with checkpoints 4 (the best) and 8, and their states."""
  folder = RunFolder(tmp_path_factory.mktemp("pretrained") / "run")
  folder.claim(CONFIG, {})
  folder.release()
  program = build(config_lib.read(CONFIG))
  states = {}
  with checkpoint.Checkpoints(folder.checkpoints, keep=2) as checkpoints:
    for step, score in ((4, 0.5), (8, 0.25)):
      random = np.random.default_rng(step)
      states[step] = jax.tree.map(
        lambda leaf, random=random: np.asarray(
          9 * random.random(leaf.shape), leaf.dtype
        ),
        program.abstract,
      )
      checkpoints.save(step, states[step])
      checkpoints.score(step, {"exact_accuracy": score})
  write_json(folder.identifiers, NAMES)
  write_json(folder.calibration, CALIBRATION)
  write_json(folder.result, {"checkpoint": 4, "depths": SCORES})
  return folder, states


@pytest.fixture
def damaged(run, tmp_path):
  """A copy of the run, to be damaged."""
  return RunFolder(shutil.copytree(run[0].path, tmp_path / "run"))


@pytest.fixture
def exported(run, tmp_path):
  model = pretrained.load(run[0].path)
  path = tmp_path / "model.safetensors"
  weights.save_weights(path, model.params, model.config, model.facts())
  return model, path


def assert_same_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
  ("which", "step"), [("best", 4), ("last", 8), ("4", 4), ("8", 8)]
)
def test_a_runs_folder_gives_its_averaged_weights(run, which, step):
  folder, states = run
  model = pretrained.load(str(folder.path), which)
  assert model.step == step
  assert_same_bits(model.params, states[step].averaged_params)
  assert model.config == CONFIG
  assert model.experiment == config_lib.read(CONFIG)
  assert model.names == NAMES
  # Scores are those of a checkpoint, and another has none.
  assert model.scores == (SCORES if step == 4 else [])


def test_what_a_folder_lacks_is_empty(damaged):
  for path in (damaged.result, damaged.calibration, damaged.identifiers):
    path.unlink()
  model = pretrained.load(damaged.path)
  assert model.scores == []
  assert model.calibration is None
  assert model.names == ["<blank>"]


def test_a_result_of_rollouts_has_scores_too(damaged):
  write_json(damaged.result, {"checkpoint": 4, "grid": SCORES})
  assert pretrained.load(damaged.path).scores == SCORES


@pytest.mark.parametrize(
  ("split", "data", "words"),
  [
    ("test", "", "9 held-out puzzles"),
    ("train", "", "9 training puzzles"),
    ("test", "x.csv", "9 puzzles of x.csv"),
    ("train", "arc", "9 puzzles of arc, training split"),
  ],
)
def test_scores_tell_on_which_puzzles(damaged, tmp_path, split, data, words):
  records = [
    {"depth": depth, "puzzles": 9, "exact_accuracy": depth / 4}
    for depth in (1, 2)
  ]
  result.write(damaged.result, 4, records, split=split, data=data)
  model = pretrained.load(damaged.path)
  exported = tmp_path / "model.safetensors"
  formats.get("safetensors").export(model, exported, overwrite=False)
  scores = pretrained.load(exported).scores
  told = {(one["split"], one["data"], one["depth"]) for one in scores}
  assert told == {(split, data, 1), (split, data, 2)}
  (line,) = result.in_words(scores)
  assert line == f"exact accuracy 50.0%, depth 2, {words}"


@pytest.mark.parametrize("records", [3, [3], [{"split": "test"}], {"depth": 1}])
def test_scores_that_are_none_are_refused(damaged, records):
  write_json(damaged.result, {"checkpoint": 4, "records": records})
  with pytest.raises(UserError, match=r"result\.json is damaged: its scores"):
    pretrained.load(damaged.path)


def test_scores_and_calibration_are_of_their_own_checkpoint(run):
  run, _ = run
  assert pretrained.load(run.path, "best").calibration == CALIBRATION
  last = pretrained.load(run.path, "last")
  assert last.calibration is None
  assert last.scores == []


def test_an_exported_file_is_the_same_model(exported):
  model, path = exported
  again = pretrained.load(path, "last")  # a file has but one
  assert_same_bits(model.params, again.params)
  for field in dataclasses.fields(model):
    if field.name != "params":
      ours, theirs = (getattr(one, field.name) for one in (model, again))
      assert ours == theirs, field.name
  assert again.calibration == CALIBRATION


def test_the_card_says_all_in_plain_values(exported):
  model, _ = exported
  card = json.loads(json.dumps(model.card()))
  assert card == model.card()
  assert card["format"] == weights.FORMAT
  assert card["task"] == "sudoku"
  assert card["family"] == "trm"
  assert card["seq_len"] == 16
  assert card["weights"] == network.count_weights(model.params)
  assert card["names"] == NAMES
  assert card["step"] == 4
  assert card["scores"] == SCORES
  assert card["calibration"] == CALIBRATION
  assert card["config"] == CONFIG
  # A token is a place in the vocabulary; 0 is no token of a puzzle.
  tokens = board.parse("1..4" * 4, size=4)
  shown = "".join(card["vocabulary"][token - 1] for token in tokens)
  assert shown == "1..4" * 4
  assert len(card["vocabulary"]) == model.experiment.task.vocab_size - 1


@pytest.mark.parametrize("name", ["", "nowhere", "nowhere.safetensors"])
def test_a_path_with_nothing_is_told(tmp_path, name):
  with pytest.raises(
    UserError, match=r"neither a run's folder nor a file|no config\.json"
  ):
    pretrained.load(tmp_path / name)


def test_a_checkpoint_that_is_not_there_is_told(run):
  with pytest.raises(UserError, match=r"checkpoint '7': must be 'best'.* 4, 8"):
    pretrained.load(run[0].path, "7")


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("config.json", '{"data": ', r"config\.json is damaged"),
    ("config.json", "[]", r"config\.json is damaged .*not an object"),
    ("result.json", '{"depths', r"result\.json is damaged"),
    ("result.json", "3", r"result\.json is damaged .*not an object"),
    ("identifiers.json", "[1]", r"identifiers\.json is damaged"),
    ("calibration.json", "[", r"calibration\.json is damaged .*delete it"),
  ],
)
def test_a_damaged_folder_is_told(damaged, name, text, message):
  (damaged.path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    pretrained.load(damaged.path)


def test_a_folder_without_a_checkpoint_is_told(damaged):
  shutil.rmtree(damaged.checkpoints)
  with pytest.raises(UserError, match="no checkpoint yet: train first"):
    pretrained.load(damaged.path)


@pytest.mark.parametrize(
  ("facts", "message"),
  [
    ('{"step": ', r"its facts cannot be read"),
    ("[]", r"its facts cannot be read: not an object"),
    ('{"step": 1.5}', r"its step is 1\.5, not a whole number"),
    ('{"step": true}', r"its step is True"),
    ('{"names": "abc"}', r"names of puzzle ids are not a list of texts"),
    ('{"names": [1]}', r"names of puzzle ids are not a list of texts"),
  ],
)
def test_damaged_facts_of_a_file_are_told(exported, facts, message):
  _, path = exported
  metadata = {
    "format": "trm_jax/1", "config": json.dumps(CONFIG), "facts": facts,
  }  # fmt: skip
  save_file(load_file(path), path, metadata)
  with pytest.raises(UserError, match=message):
    pretrained.load(path)
