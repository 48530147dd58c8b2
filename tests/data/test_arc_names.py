import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from trm_jax.data.arc import grids
from trm_jax.data.arc import names as names_lib
from trm_jax.errors import UserError

DATA = pathlib.Path(__file__).parent.parent / "recorded" / "arc"


def test_names_are_those_of_the_reference():
  symmetry = np.array([3, 0, 2, 1, 3, 4, 5, 6, 7, 9, 8], np.uint8)
  name = "007bbfb7|||t3|||0213456798"
  both = np.stack([symmetry, grids.IDENTITY])
  assert names_lib.copy_names(["007bbfb7"] * 2, both) == [name, "007bbfb7"]
  names = json.loads((DATA / "identifiers.json").read_text())
  tasks, symmetries = names_lib.parse_names(names)
  assert tasks[:2] == ["<blank>", "694f12f3"]
  assert names_lib.copy_names(tasks, symmetries) == names


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  tasks=st.lists(st.text(min_size=1, max_size=20), max_size=5),
  seed=st.integers(0, 2**32 - 1),
)
def test_names_round_trip(tasks, seed):
  tasks = [task.replace("|||", "") or "||" for task in tasks]
  rng = np.random.default_rng(seed)
  symmetries = np.tile(grids.IDENTITY, (len(tasks), 1))
  symmetries[:, 0] = rng.integers(0, 8, len(tasks))
  symmetries[:, 1:] = rng.permuted(symmetries[:, 1:], axis=1)
  names = names_lib.copy_names(tasks, symmetries)
  found = names_lib.parse_names(names)
  assert found[0] == tasks
  assert found[1].dtype == np.uint8
  assert (found[1] == symmetries).all()
  for name, task, symmetry in zip(names, tasks, symmetries, strict=True):
    assert names_lib.copy_names([task], symmetry[None]) == [name]
    assert names_lib.parse_names([name])[1].tolist() == [symmetry.tolist()]


@pytest.mark.parametrize(
  "name",
  [
    "",
    "|||t1|||0123456789",
    "a|||t8|||0123456789",
    "a|||t1|||0123456788",
    "a|||t1|||012345678",
    "a|||t1|||01234567890",
    "a|||t12|||0123456789",
    "a|||1|||0123456789",
    "a|||t1|||0123456789|||",
    "a|||b|||t1|||0123456789",
    "a|||t1|||012345678٣",
    "a|||",
  ],
)
def test_malformed_names_are_refused(name):
  with pytest.raises(UserError, match="is not the name of an ARC task"):
    names_lib.parse_names(["007bbfb7", name])
