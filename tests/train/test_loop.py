"""Interrupted, changed and damaged runs, in one process."""

import contextlib
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from process_pool import timeless_rows

from trm_jax import config as config_lib
from trm_jax.data import datasets
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.run import changes
from trm_jax.run.folder import RunFolder
from trm_jax.train import history, loop
from trm_jax.train.signals import stop_signals

CONFIG = {
  "data": {
    "size": 4, "train": "generate", "test": "generate", "givens": (5, 8),
    "num_train": 40, "num_test": 20,
  },
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 0, "cycles": 2, "latent_steps": 2,
    "dtype": "float32",
  },
  "halting": {"max_steps": 4},
  "optim": {"warmup_steps": 4, "schedule": "constant", "ema": 0.9},
  "train": {
    "steps": 24, "batch_size": 16, "steps_per_dispatch": 2, "log_every": 8,
  },
  "eval": {"every": 12, "depth": 2, "batch_size": 8},
  "checkpoint": {"every": 4, "keep": 9},
}  # fmt: skip


class Told:
  """Progress callbacks that remember the messages."""

  def __init__(self):
    self.messages = []

  def say(self, message):
    """Remembers the message."""
    self.messages.append(message)

  def advance(self, step, row):
    """Forgets the row."""


def changed(**sections):
  config = {name: dict(section) for name, section in CONFIG.items()}
  for name, fields in sections.items():
    config[name] |= fields
  return config


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
  cache = str(tmp_path_factory.mktemp("data"))
  experiment = config_lib.read(changed(data={"cache_dir": cache}))
  return [datasets.load(experiment.data, name) for name in ("train", "test")]


@pytest.fixture
def fit(splits, monkeypatch):
  """Trains in a folder; `stop_at` is the call that asks for a signal."""

  def fit(path, config=CONFIG, stop_at=None, splits=splits):
    folder, calls = RunFolder(path), iter(range(1, 10_000))

    @contextlib.contextmanager
    def signals():
      yield lambda step: signal.SIGTERM if next(calls) == stop_at else None

    monkeypatch.setattr(loop, "stop_signals", signals)
    folder.claim(config, {})
    try:
      experiment = config_lib.read(config)
      (member,), _ = loop.fit(experiment, folder, *splits, Told())
      return member
    finally:
      folder.release()

  return fit


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
  """The folder and the outcome of an uninterrupted run."""
  path = tmp_path_factory.mktemp("whole")
  folder = RunFolder(path)
  folder.claim(CONFIG, {})
  (member,), _ = loop.fit(config_lib.read(CONFIG), folder, *splits, Told())
  folder.release()
  return path, member


# Of the calls, the 6th is before the evaluation of step 12, the 7th and 8th
# between its batches, the 9th behind step 14, and the 14th before the last one.
@pytest.mark.parametrize(
  ("stop_at", "step"), [(3, 6), (6, 12), (8, 12), (9, 14), (14, 24), (16, 24)]
)
def test_a_run_stopped_anywhere_equals_an_uninterrupted_one(
  fit, whole, tmp_path, stop_at, step
):
  with pytest.raises(loop.Stopped) as stopped:
    fit(tmp_path, stop_at=stop_at)
  assert stopped.value.step == step
  member = fit(tmp_path)
  path, expected = whole
  jax.tree.map(np.testing.assert_array_equal, member.params, expected.params)
  assert (member.records, member.learning) == (
    expected.records, expected.learning
  )  # fmt: skip
  assert timeless_rows(tmp_path) == timeless_rows(path)
  for saved in (12, 24):
    scores = [
      p / f"checkpoints/{saved}/metrics/metrics" for p in (path, tmp_path)
    ]
    assert scores[0].read_text() == scores[1].read_text()


def test_a_longer_run_goes_on_as_if_it_had_been_long(fit, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "grown")
  longer = changed(train={"steps": 36})
  grown = fit(tmp_path / "grown", longer)
  expected = fit(tmp_path / "long", longer)
  jax.tree.map(np.testing.assert_array_equal, grown.params, expected.params)
  assert timeless_rows(tmp_path / "grown") == timeless_rows(tmp_path / "long")
  assert RunFolder(tmp_path / "grown").read_config()["train"]["steps"] == 36
  with pytest.raises(
    UserError, match=r"train\.steps: 36 there, 24 here, and a"
  ):
    fit(tmp_path / "grown")


@pytest.mark.parametrize(
  "schedule",
  [
    {"optim": {"schedule": "cosine"}},
    {
      "depth": {
        "schedule": "curriculum", "stages": ((1, 2), (2, 2)), "until": (0.5,)
      }
    },
  ],
)  # fmt: skip
def test_a_schedule_over_all_steps_keeps_their_number(schedule):
  ours = changed(train={"steps": 36}) | schedule
  with pytest.raises(UserError, match=r"schedule='\w+' depends on it"):
    changes.refuse(ours, CONFIG | schedule, "run", dict)


def test_how_a_run_is_watched_may_change(fit, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "24")
  watched = changed(
    eval={"every": 4, "batch_size": 16}, checkpoint={"every": 8, "keep": 2},
    train={"log_every": 4}, data={"train": "elsewhere.csv"},
  )  # fmt: skip
  member = fit(tmp_path, watched)
  jax.tree.map(np.testing.assert_array_equal, member.params, whole[1].params)
  steps = [row["step"] for row in timeless_rows(tmp_path)]
  assert steps == [8, 12, 16, 20, 24, 24]
  assert RunFolder(tmp_path).read_config()["eval"]["every"] == 4


def test_other_puzzles_of_the_same_config_are_refused(
  fit, splits, whole, tmp_path
):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  training, held_out = splits
  others = Split.of_rows(training.inputs[::-1], training.labels[::-1])
  for splits in ((others, held_out), (training, others)):
    with pytest.raises(UserError, match=r"other puzzles .*\n +data\."):
      fit(tmp_path, splits=splits)


@pytest.mark.parametrize(
  ("name", "value"),
  [("jax_enable_x64", True), ("jax_threefry_partitionable", False)],
)
def test_an_environment_that_draws_otherwise_is_refused(
  fit, whole, tmp_path, name, value
):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  before = getattr(jax.config, name)
  jax.config.update(name, value)
  try:
    with pytest.raises(UserError, match=rf"jax\.{name}: {before} there"):
      fit(tmp_path)
  finally:
    jax.config.update(name, before)


def test_the_default_generator_of_the_environment_is_not_used(
  fit, whole, tmp_path
):
  before = jax.config.jax_default_prng_impl
  jax.config.update("jax_default_prng_impl", "rbg")
  try:
    member = fit(tmp_path)
  finally:
    jax.config.update("jax_default_prng_impl", before)
  jax.tree.map(np.testing.assert_array_equal, member.params, whole[1].params)


def test_without_its_config_a_run_still_knows_it(fit, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / "config.json").unlink()
  with pytest.raises(UserError, match=r"optim\.ema: 0\.9 there, 0\.5 here"):
    fit(tmp_path, changed(optim={"ema": 0.5}))
  assert not (tmp_path / "config.json").exists()
  fit(tmp_path)
  assert (
    json.loads((tmp_path / "config.json").read_text())["optim"]["ema"] == 0.9
  )


def test_a_checkpoint_of_another_run_is_refused(fit, whole, tmp_path):
  other = changed(optim={"ema": 0.5})
  fit(tmp_path, other)
  shutil.rmtree(tmp_path / "checkpoints")
  shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
  with pytest.raises(UserError, match=r"checkpoints/24 was made with another"):
    fit(tmp_path, other)


def test_a_folder_that_is_moved_ends_the_run(fit, whole, tmp_path, monkeypatch):
  """Whatever takes its place is not written to."""
  flush = history.History.flush

  def move_then_flush(self, step, seconds):
    if step == 8:
      while not (tmp_path / "run/checkpoints/4").exists():
        time.sleep(0.01)
      os.rename(tmp_path / "run", tmp_path / "moved")
      shutil.copytree(whole[0], tmp_path / "run")
    flush(self, step, seconds)

  monkeypatch.setattr(history.History, "flush", move_then_flush)
  with pytest.raises(UserError, match=r"run was moved or deleted during train"):
    fit(tmp_path / "run")
  monkeypatch.undo()
  assert timeless_rows(tmp_path / "run") == timeless_rows(whole[0])
  assert sorted(os.listdir(tmp_path / "moved" / "checkpoints")) == ["4"]


def test_metrics_deleted_during_training_are_written_again(
  fit, whole, tmp_path, monkeypatch
):
  flush = history.History.flush

  def delete_then_flush(self, step, seconds):
    (tmp_path / "metrics.jsonl").unlink()
    flush(self, step, seconds)

  monkeypatch.setattr(history.History, "flush", delete_then_flush)
  fit(tmp_path)
  assert timeless_rows(tmp_path) == timeless_rows(whole[0])


def test_signals_stop_a_run_and_only_a_second_interrupt_ends_it_at_once():
  before = signal.getsignal(signal.SIGHUP)
  with stop_signals() as requested:
    assert requested(0) is None
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
      os.kill(os.getpid(), number)
      assert requested(0) == signal.SIGHUP
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGHUP) == before


def test_a_signal_that_is_ignored_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with stop_signals() as requested:
      os.kill(os.getpid(), signal.SIGHUP)
      assert requested(0) is None
  finally:
    signal.signal(signal.SIGHUP, before)
