import json
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from trm_jax.errors import UserError
from trm_jax.run import card

CONTENT = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("card") / "model"
  card.write(path, CONTENT, {"format": "f/1", "task": "sudoku"})
  return path


def test_a_card_and_its_contents_are_read(path):
  facts, content = card.read(path, "f/1", 10**4)
  assert content == CONTENT
  assert facts.pop("sha256") == card.fingerprint(CONTENT)
  assert facts == {"format": "f/1", "task": "sudoku"}


@hypothesis.settings(
  max_examples=200, deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
@hypothesis.given(
  place=st.floats(0, 1, exclude_max=True),
  new=st.binary(max_size=4),
  replaced=st.integers(0, 500),
)
def test_damaged_contents_are_refused(path, place, new, replaced):
  first = int(place * len(CONTENT))
  damaged = CONTENT[:first] + new + CONTENT[first + replaced :]
  hypothesis.assume(damaged != CONTENT)
  path.write_bytes(damaged)
  with pytest.raises(UserError, match="model is damaged or was edited"):
    card.read(path, "f/1", 10**4)
  path.write_bytes(CONTENT)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ('{"format": "f/2"}', "json: format is 'f/2', expected 'f/1'"),
    ("{}", "format is None"),
    ("[1]", "json is damaged: not an object"),
    ('{"format"', "json is damaged"),
    ("[" * 100_000, "json is damaged"),
    ("\xff", "json is damaged"),
    ('{"format": "f/1"}', "model is damaged or was edited"),
    (None, "json: there is no such file"),
    ("x" * 1_000_001, "1,000,001 bytes; its format has 1,000,000 at most"),
  ],
)
def test_another_card_is_refused(text, words, tmp_path):
  path = tmp_path / "model"
  path.write_bytes(CONTENT)
  if text is not None:
    (tmp_path / "model.json").write_text(text, encoding="latin-1")
  with pytest.raises(UserError, match=words):
    card.read(path, "f/1", 10**6)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "model.json")
  with pytest.raises(UserError, match="there is no such file"):
    card.read(tmp_path / "model", "f/1", 1024)


def test_a_fingerprint_tells_arrays_apart():
  arrays = {"a": np.arange(6.0), "b": np.ones((2, 3), np.float32)}
  same = {"b": arrays["b"], "a": np.arange(12.0)[:6]}
  assert card.fingerprint(arrays) == card.fingerprint(same)
  for name, other in (
    ("a", np.arange(6.0) + 1e-12),
    ("a", np.arange(6.0).reshape(2, 3)),
    ("a", np.arange(6.0).view(np.int64)),
    ("c", np.ones(0)),
  ):
    found = card.fingerprint(arrays | {name: other})
    assert found != card.fingerprint(arrays)
  assert json.loads(json.dumps(card.fingerprint(arrays)))
