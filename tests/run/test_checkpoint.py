import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.errors import UserError
from trm_jax.run.checkpoint import Checkpoints, abstract_state, fingerprint
from trm_jax.run.sharding import make_mesh

BY_ROW = P("data")


def _mesh(devices=8):
  return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])


def _placed(mesh, spec):
  shared = NamedSharding(mesh, spec)
  return {"step": NamedSharding(mesh, P()), "weights": [shared, shared]}


def _state(fill=0.0, rows=16):
  """A tree of three arrays, as different in every bit as `fill` says."""
  return {
    "step": jnp.int32(fill),
    "weights": [
      jnp.linspace(fill, fill + 1, rows * 8).reshape(rows, 8),
      (jnp.arange(rows * 4).reshape(rows, 4) + fill).astype(jnp.bfloat16),
    ],
  }


def _sharded(fill=0.0, mesh=None, spec=BY_ROW, **kwargs):
  placed = _placed(mesh or _mesh(), spec)
  return jax.device_put(_state(fill, **kwargs), placed)


def _abstract(mesh=None, spec=BY_ROW, **kwargs):
  placed = _placed(mesh or _mesh(), spec)
  return abstract_state(jax.eval_shape(lambda: _state(**kwargs)), placed)


def _equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _save(folder, steps, keep=10, scores=None):
  with Checkpoints(folder, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, _sharded(step))
      if scores and step in scores:
        checkpoints.score(step, {"exact_accuracy": scores[step]})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints 1, 2 and 3; not to be changed."""
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  _save(folder, [1, 2, 3], scores={2: 0.5, 3: 0.25})
  return folder


def test_the_latest_and_the_best_are_kept(tmp_path):
  _save(tmp_path, range(1, 7), keep=2, scores={1: 0.1, 2: 0.9, 3: 0.9, 5: 0.4})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps == [3, 5, 6]  # of equal scores the later
    assert (checkpoints.best, checkpoints.latest) == (3, 6)
    assert int(checkpoints.restore(3, _abstract())["step"]) == 3
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5", "6"]


def test_find(saved, tmp_path):
  with Checkpoints(saved) as checkpoints:
    assert checkpoints.find("best") == 2
    assert checkpoints.find("last") == 3
    assert checkpoints.find("1") == 1
    for which in ("4", "-1", "first", "", "²"):
      with pytest.raises(UserError, match=r"'best', 'last' or .* 1, 2, 3$"):
        checkpoints.find(which)
  with Checkpoints(tmp_path / "none") as checkpoints:
    assert checkpoints.latest is None and checkpoints.best is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
      checkpoints.find("last")
  _save(tmp_path / "unscored", [1, 2])
  with Checkpoints(tmp_path / "unscored") as checkpoints:
    assert checkpoints.find("best") == 2  # never evaluated: the last


def test_a_step_is_saved_once(tmp_path):
  with Checkpoints(tmp_path, 2) as checkpoints:
    checkpoints.save(1, _sharded(1))
    checkpoints.wait()
    checkpoints.save(1, _sharded(9))
  with Checkpoints(tmp_path) as checkpoints:
    _equal(checkpoints.restore(1, _abstract()), _state(1))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_other_devices_and_shardings_give_equal_bits(saved, devices):
  with Checkpoints(saved) as checkpoints:
    for mesh, spec in (
      (_mesh(devices), P("data")),
      (_mesh(devices), P()),
      (make_mesh(4, 2), P("data", "model")),
    ):
      restored = checkpoints.restore(2, _abstract(mesh, spec))
      _equal(restored, _state(2))
      first = restored["weights"][0]
      assert first.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


def test_donation_after_save_changes_nothing_saved(tmp_path):
  # Large, so that writing goes on while the buffers are used anew.
  rows = 65_536
  spoil = jax.jit(
    lambda state: jax.tree.map(lambda x: -x - 1, state), donate_argnums=0
  )
  with Checkpoints(tmp_path, 5) as checkpoints:
    for step in (1, 2):
      state = _sharded(step, rows=rows)
      checkpoints.save(step, state)
      for _ in range(3):
        state = spoil(state)
      jax.block_until_ready(state)
    checkpoints.wait()
    for step in (1, 2):
      restored = checkpoints.restore(step, _abstract(rows=rows))
      _equal(restored, _state(step, rows=rows))


def test_what_a_kill_left_is_no_checkpoint(saved, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(saved, folder)
  left = folder / "4.orbax-checkpoint-tmp"
  shutil.copytree(saved / "3", left)
  (left / "commit_success.txt").unlink()
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.steps == [1, 2, 3]
    checkpoints.wait()
  assert left.exists()  # another process may be writing it
  _save(folder, [4])
  assert not left.exists()
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.steps == [1, 2, 3, 4]
    _equal(checkpoints.restore(4, _abstract()), _state(4))


def _files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


# Orbax leaves coroutines behind where a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_truncated_file_is_refused_or_does_no_harm(saved, tmp_path):
  refused = set()
  for file in _files(saved / "3"):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    content = (folder / "3" / file).read_bytes()
    (folder / "3" / file).write_bytes(content[: len(content) // 2])
    if file.name == "metrics":
      with pytest.raises(UserError, match=r"3/metrics/metrics is damaged"):
        Checkpoints(folder)
      (folder / "3" / file).unlink()  # as the message says
    with Checkpoints(folder) as checkpoints:
      assert checkpoints.steps == [1, 2, 3]
      try:
        _equal(checkpoints.restore(3, _abstract()), _state(3))
      except UserError as error:
        message = str(error)
        assert f"{folder / '3'} is damaged" in message
        assert "delete that folder to go back to step 2" in message
        assert len(message.splitlines()) == 1
        assert file.parts[0] in ("state", "_CHECKPOINT_METADATA")
        refused.add("array" if "d" in file.parts else file.name)
      _equal(checkpoints.restore(2, _abstract()), _state(2))
  # What holds the arrays, and what says where they are.
  assert refused >= {"array", "manifest.ocdbt", "_METADATA"}


def test_advice_when_there_is_no_other(saved, tmp_path):
  shutil.copytree(saved / "3", tmp_path / "3")
  (tmp_path / "3" / "state" / "_METADATA").write_text("{}")
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(UserError, match="is damaged; there is no other one"),
  ):
    checkpoints.restore(3, _abstract())


def test_another_model_is_not_called_damaged(saved):
  wider = _abstract(rows=24)
  more = _abstract() | {"ema": _abstract()["step"]}
  other = _abstract()
  other["weights"][1] = other["weights"][1].update(dtype=jnp.float32)
  with Checkpoints(saved) as checkpoints:
    for abstract, difference in (
      (
        wider,
        r"weights/0: 'float32\[16, 8\]' there, 'float32\[24, 8\]' here; weig",
      ),
      (more, r"ema: '\(missing\)' there, 'int32\[\]' here"),
      (other, r"weights/1: 'bfloat16\[16, 4\]' there, 'float32\[16, 4\]'"),
    ):
      with pytest.raises(UserError, match=rf"another model .*{difference}"):
        checkpoints.restore(3, abstract)


def test_what_cannot_be_written(tmp_path, monkeypatch):
  file = tmp_path / "file"
  file.write_text("mine")
  with pytest.raises(UserError, match=r"cannot use .*file"):
    Checkpoints(file / "checkpoints", 1)
  checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
  checkpoints.save(1, _sharded(1))
  checkpoints.wait()

  def fail(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: no space left on device\nmore")

  class Saving:
    result = fail

  message = r"space, the same command goes on from step [12]\. .*device$"
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._orbax, "save_async", fail)
    with pytest.raises(UserError, match=message):
      checkpoints.save(2, _sharded(2))
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._orbax, "save_async", lambda *_, **__: Saving())
    checkpoints.save(2, _sharded(2))
    with pytest.raises(UserError, match=message):
      checkpoints.wait()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints._orbax, "close", fail)
    with pytest.raises(UserError, match=message), checkpoints:
      pass
    # An error on its way is not covered by a second one.
    with pytest.raises(KeyError, match="first"), checkpoints:
      raise KeyError("first")
  checkpoints._orbax.close()


def test_a_score_is_kept_with_its_checkpoint(saved):
  score = json.loads((saved / "2" / "metrics" / "metrics").read_text())
  assert score["exact_accuracy"] == 0.5


def test_a_flipped_bit_is_refused_or_does_no_harm(saved, tmp_path):
  """Storage that gives back other bits: TensorStore alone would not notice."""
  refused = 0
  for number, path in enumerate(_files(saved / "3")):
    folder = tmp_path / str(number)
    shutil.copytree(saved, folder)
    victim = folder / "3" / path
    content = bytearray(victim.read_bytes())
    if not content:
      continue
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)
    try:
      with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(3, _abstract())
    except UserError as error:
      assert "damaged" in str(error) or "another model" in str(error)
      refused += 1
    else:
      _equal(state, _state(3))
  assert refused > 1


def test_the_fingerprint_sees_every_bit_and_place():
  tree = {"a": jnp.arange(6.0), "b": jnp.zeros(3, bool), "c": jnp.bfloat16(1)}
  print_of = {int(fingerprint(tree))}
  for changed in (
    tree | {"a": tree["a"].at[3].set(jnp.nextafter(3.0, 4.0))},
    tree | {"a": tree["a"][::-1]},
    tree | {"a": -tree["a"]},  # 0.0 becomes -0.0
    tree | {"b": tree["b"].at[2].set(True)},
    tree | {"c": jnp.bfloat16(1.0078125)},
  ):
    print_of.add(int(fingerprint(changed)))
  assert len(print_of) == 6
  spread = jax.device_put(_state(2), _placed(_mesh(), BY_ROW))
  assert int(fingerprint(spread)) == int(fingerprint(_state(2)))


def test_arrays_without_elements_come_back(tmp_path):
  """A model without puzzle embeddings has a table of no columns."""
  whole = NamedSharding(_mesh(), P())
  state = {"table": jnp.zeros((1, 0)), "step": jnp.int32(3), "absent": None}
  state = jax.device_put(state, whole)
  placed = jax.tree.map(lambda _: whole, state)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    found = checkpoints.restore(1, abstract_state(state, placed))
  assert jax.tree.structure(found) == jax.tree.structure(state)
  assert found["table"].shape == (1, 0)
  assert int(found["step"]) == 3


def test_saves_leave_no_threads_and_open_files_behind(tmp_path):
  counts = []
  with Checkpoints(tmp_path, 2) as checkpoints:
    for step in range(1, 31):
      checkpoints.save(step, {"step": jnp.int32(step)})
      if step % 10 == 0:
        files = len(os.listdir("/proc/self/fd"))
        counts.append((threading.active_count(), files))
  threads, files = np.subtract(counts[2], counts[0])
  assert threads < 10 and files < 20  # after 20 more saves


def test_a_renamed_checkpoint_is_refused(saved, tmp_path):
  shutil.copytree(saved / "3", tmp_path / "5")
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(UserError, match=r"5 is damaged.* Cause: it is of step 3$"),
  ):
    checkpoints.restore(5, _abstract())


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text.replace('"step": 3', '"step": 4'),
    lambda text: text.replace('"fact": 1', '"fact": 2'),
    lambda text: text.replace('"step"', '"stfp"'),
    lambda text: "[" * 100_000,
    lambda text: "{}",
    lambda text: "null",
    lambda text: text.replace('"custom_metadata": {', '"custom_metadata": 1'),
  ],
)
def test_damaged_facts_are_refused(tmp_path, damage):
  with Checkpoints(tmp_path, 2) as checkpoints:
    checkpoints.save(3, _sharded(3), {"fact": 1})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.facts(3)["fact"] == 1
  path = tmp_path / "3" / "_CHECKPOINT_METADATA"
  before, after = path.read_text(), damage(path.read_text())
  assert before != after
  path.write_text(after)
  with pytest.raises(UserError, match=r"damaged|holds no complete"):  # noqa: SIM117
    with Checkpoints(tmp_path) as checkpoints:
      assert checkpoints.facts(checkpoints.find("last"))["fact"] == 1


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_what_would_block_is_refused(saved, tmp_path, name):
  shutil.copytree(saved / "3", tmp_path / "3")
  (tmp_path / "3" / name).unlink()
  os.mkfifo(tmp_path / "3" / name)
  with pytest.raises(UserError, match=r"METADATA is a pipe or a device"):
    Checkpoints(tmp_path)
