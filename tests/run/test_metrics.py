import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
import pytest

from trm_jax.errors import UserError
from trm_jax.run import metrics
from trm_jax.run.metrics import TrainingLog, Writer, read


def _dispatch(steps=2, **changes):
  """Metrics of `steps` optimizer steps, as `train_steps` returns them."""
  values = dict(
    loss=1.0, gradient_norm=2.0, count=4.0, accuracy=2.0, exact_accuracy=1.0,
    q_halt_accuracy=3.0, steps=12.0,
  )  # fmt: skip
  return {
    name: np.broadcast_to(value, (steps,)).astype(np.float32)
    for name, value in (values | changes).items()
  }


def _write(path, steps, split="train"):
  writer = Writer(path, from_step=10**9)
  for step in steps:
    writer.write(step, split, {"loss": step / 2})
  writer.close()


def test_rows_come_back(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert list(read(path)) == []
  writer = Writer(path)
  writer.write(2, "train", {"loss": 0.5})
  assert list(read(path)) == [{"step": 2, "split": "train", "loss": 0.5}]
  writer.write(4, "test", {"exact_accuracy": 1.0})
  writer.close()
  assert [row["split"] for row in read(path)] == ["train", "test"]


def test_resuming_drops_the_rows_behind_the_checkpoint(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, [2, 4, 6, 8])
  writer = Writer(path, from_step=4)
  writer.write(6, "train", {"loss": 9.0})
  writer.close()
  assert [(row["step"], row["loss"]) for row in read(path)] == [
    (2, 1.0), (4, 2.0), (6, 9.0)
  ]  # fmt: skip


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, [2, 4])
  path.write_text(path.read_text()[:-9])
  assert [row["step"] for row in read(path)] == [2]
  writer = Writer(path, from_step=4)
  writer.write(4, "train", {"loss": 3.0})
  writer.close()
  assert [row["step"] for row in read(path)] == [2, 4]


@pytest.mark.parametrize(
  "line",
  [b"{", b"", b"3", b"\xff", b'{"step": 2}', b'{"step": "2", "split": "x"}'],
)
def test_a_damaged_line_is_refused_by_number_and_kept(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  _write(path, [2, 4, 6])
  lines = path.read_bytes().splitlines()
  lines[1] = line
  damaged = b"\n".join(lines) + b"\n"
  path.write_bytes(damaged)
  with pytest.raises(UserError, match=r"line 2 is damaged .*delete that line"):
    list(read(path))
  with pytest.raises(UserError, match="line 2"):
    Writer(path, from_step=6)
  assert path.read_bytes() == damaged


def test_files_that_cannot_be_written(tmp_path):
  file = tmp_path / "file"
  file.write_text("mine")
  with pytest.raises(UserError, match=r"cannot write .*File exists"):
    Writer(file / "metrics.jsonl")
  with pytest.raises(UserError, match="cannot read"):
    list(read(tmp_path))
  assert file.read_text() == "mine"


def test_a_full_disk_is_told_once(tmp_path):
  writer = Writer(tmp_path / "metrics.jsonl")
  writer._file.close()
  # Whatever is written to this device fails for lack of space.
  writer._file = pathlib.Path("/dev/full").open("w")  # noqa: SIM115
  with pytest.raises(UserError, match="No space left"):
    writer.write(2, "train", {"loss": 1.0})
  writer.close()  # although the row is still in the buffer


def test_tensorboard_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(UserError, match=r"pip install 'trm_jax\[tensorboard\]'"):
    Writer(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board")


def test_the_newest_dispatch_is_left_on_the_device(monkeypatch):
  fetched, rows = [], []
  monkeypatch.setattr(
    metrics.jax, "device_get", lambda tree: fetched.append(tree) or tree
  )
  log = TrainingLog(2, lambda step, row: rows.append(step))
  first, second, third = _dispatch(), _dispatch(), _dispatch()
  log.push(2, first)
  assert fetched == [] and rows == []
  log.push(4, second)
  assert [id(tree) for tree in fetched] == [id(first)] and rows == [2]
  log.push(6, third)
  assert [id(tree) for tree in fetched] == [id(first), id(second)]
  log.flush()
  assert rows == [2, 4, 6]
  log.flush()
  assert rows == [2, 4, 6]


def test_a_row_averages_its_steps():
  rows = []
  log = TrainingLog(4, lambda step, found: rows.append((step, found[0])))
  log.push(2, _dispatch(loss=1.0, count=4.0, accuracy=4.0))
  log.push(4, _dispatch(loss=3.0, count=0.0, accuracy=0.0))
  log.flush()
  ((step, row),) = rows
  assert step == 4
  assert row["loss"] == 2.0  # over the four steps
  assert row["halted"] == 2.0
  assert row["accuracy"] == 1.0  # over the eight puzzles that halted
  json.dumps(row, allow_nan=False)
  log.push(8, _dispatch(steps=4, count=0.0))
  log.flush()
  assert "accuracy" not in rows[1][1]  # nobody halted


def test_pauses_are_left_out_of_the_speed():
  rows = []
  log = TrainingLog(2, lambda step, found: rows.append(found[0]))
  time.sleep(0.2)
  log.pause(0.15)
  log.push(2, _dispatch())
  log.flush()
  assert 2 / 0.2 < rows[0]["steps_per_second"] < 2 / 0.04


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_is_named(bad):
  rows = []
  log = TrainingLog(4, lambda step, row: rows.append(step))
  log.push(4, _dispatch(steps=4))
  log.push(
    8, _dispatch(steps=4, loss=[1, bad, bad, 1], accuracy=[0, 0, bad, 0])
  )
  assert rows == [4]
  with pytest.raises(UserError, match=rf"at step 6 loss={bad}\.") as refusal:
    log.flush()
  assert "config.optim.lr" in str(refusal.value)
  assert rows == [4]


def test_members_have_rows_until_they_diverge():
  rows, diverged = [], {}
  log = TrainingLog(
    4, lambda step, found: rows.append((step, sorted(found))),
    lambda *event: rows.append(event), diverged,
  )  # fmt: skip
  both = jax.tree.map(lambda a: np.stack([a, a]), _dispatch(steps=4))
  log.push(4, both)
  spoilt = both | {"loss": np.array([[1, 1, 1, 1], [1, 1, np.nan, np.inf]])}
  log.push(8, spoilt)
  log.push(12, spoilt)
  log.flush()
  assert rows == [
    (4, [0, 1]), (7, 1, "loss=nan"), (8, [0]), (12, [0])
  ]  # fmt: skip
  assert diverged == {1: 7}


def test_tensorboard_gets_the_same_rows(tmp_path):
  writer = metrics.Writer(
    tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board"
  )
  writer.write(10, "train", {"loss": 0.5})
  writer.close()
  (events,) = (tmp_path / "board").glob("events.out.tfevents.*")
  content = events.read_bytes()
  assert b"train/loss" in content


@pytest.mark.parametrize(
  "line",
  [
    '{"step": 1, "step": 2, "split": "train"}',
    '{"step": true, "split": "train"}',
    '{"step": 1, "split": "train", "loss": "low"}',
    '{"step": 1, "split": "train", "loss": [1]}',
    '{"step": 1%s, "split": "train"}' % ("0" * 400),
    '{"step": 1, "split": "train", "loss": 1%s}' % ("0" * 5000),
    "[" * 100_000,
  ],
)
def test_rows_of_wrong_values_are_refused(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  row = '{"step": 2, "split": "train", "loss": 1.0}'
  path.write_text(f"{line}\n{row}\n")
  with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
    list(read(path))
  path.write_text(f"{row}\n{line}\n")  # as a killed process leaves it
  assert [found["step"] for found in read(path)] == [2]


def test_a_pipe_is_not_read(tmp_path):
  os.mkfifo(tmp_path / "metrics.jsonl")
  with pytest.raises(UserError, match="not a regular file"):
    list(read(tmp_path / "metrics.jsonl"))


def test_a_resumed_log_writes_the_rows_of_an_uninterrupted_one():
  def rows(*parts):
    found, pending = [], None
    for first, last in parts:
      log = TrainingLog(
        6, lambda step, row: found.append((step, row[0])), pending=pending
      )
      for step in range(first, last, 2):
        log.push(step + 2, _dispatch(loss=0.1 * step, count=0.3 + step))
      log.flush()
      pending = json.loads(json.dumps(log.pending()))
    return [(step, row | {"steps_per_second": 0}) for step, row in found]

  assert rows((0, 4), (4, 8), (8, 12)) == rows((0, 12))
