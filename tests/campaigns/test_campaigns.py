"""Short runs of the campaigns, with fixed seeds."""

import os
import time

import damage
import fuzz
import kill
import pytest

from trm_jax.errors import UserError

pytestmark = pytest.mark.hosts

# Readers that return bad rows beside the good ones.
LENIENT = {"sudoku text", "maze text", "csv question", "arc question"}


@pytest.fixture(scope="module")
def found():
  names = sorted(fuzz.all_readers())
  return fuzz.campaign(names, count=45 * len(names))


def test_damaged_files_are_read_or_refused(found):
  _, failures = found
  assert not failures, "\n".join(" ".join(map(str, f)) for f in failures)


def test_the_damage_is_neither_all_fatal_nor_all_harmless(found):
  counts, _ = found
  for name, outcomes in counts.items():
    assert outcomes["refused"] > 3 or name in LENIENT, name
    # A wrong bit spoils what is compressed, and a name.
    spoilt = name in ("archive", "csv.xz", "config name", "predictions")
    assert outcomes["read"] > 0 or spoilt, name


def _grow(_):
  return bytearray(4 * fuzz.ROOM)


def _run_code(_):
  os.mkdir(damage.Plant.path)


def _refuse(_):
  raise UserError("line\nline")


@pytest.mark.parametrize(
  "read, kind",
  [
    (lambda at: {}["x"], "KeyError at"),
    (lambda at: 2, "another value"),
    (_grow, "MemoryError at"),
    (_run_code, "planted code ran"),
    (_refuse, "a message of many lines"),
    (lambda at: time.sleep(9), "slow"),
    (lambda at: 1, "read"),
  ],
)
def test_each_kind_of_failure_is_found(read, kind, tmp_path, monkeypatch):
  monkeypatch.setattr(fuzz, "SLOWEST", 0.5)
  (tmp_path / "x").write_text("x")
  reader = fuzz.Reader(lambda at: None, read, is_sealed=True)
  found, *_ = fuzz.examine(reader, tmp_path, fuzz.arrays(1), (0, 0))
  assert found.startswith(kind)


def test_a_run_that_is_stopped_ends_with_the_same_bits(capsys):
  assert kill.campaign(minutes=0, seed=20) == 0, capsys.readouterr().out
