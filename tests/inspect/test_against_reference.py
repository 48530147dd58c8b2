import sys

import pytest

from trm_jax.errors import UserError
from trm_jax.inspect import against_reference as compare

CONFIG = {
  "data": {"size": 4, "train": "generate", "test": "", "givens": (5, 8)},
  "model": {
    "width": 16, "layers": 1, "heads": 2, "puzzle_emb_ndim": 0, "cycles": 2,
    "latent_steps": 2,
  },
  "halting": {"max_steps": 4},
}  # fmt: skip

# Steps of a given length in place of the reference's.
STANDIN = """
import sys
print("ready")
for _ in sys.stdin:
  print(0.5, flush=True)
"""


def _measure(checkout, **settings):
  settings = {
    "python": sys.executable, "batch_size": 8, "rounds": 2,
    "dtypes": ["float32"], "compiles": True, "say": str,
  } | settings  # fmt: skip
  return list(compare.measure(CONFIG, checkout, **settings))


@pytest.fixture
def checkout(tmp_path):
  (tmp_path / "models").mkdir()
  (tmp_path / "models" / "losses.py").touch()
  return tmp_path


def test_steps_are_timed_in_turns(checkout, monkeypatch):
  (checkout / "standin.py").write_text(STANDIN)
  standin = str(checkout / "standin.py")
  monkeypatch.setattr(compare.torch_steps, "__file__", standin)
  training, inference = _measure(checkout)
  for timing in (training, inference):
    assert timing.puzzles_per_second(compare.EAGER) == 16
    ours = timing.seconds[compare.OURS]
    assert len(ours) == 2 and min(ours) > 0
    middle, low, high = timing.ratio()
    assert low <= middle <= high
    assert 0.5 / max(ours) <= middle <= 0.5 / min(ours)
    assert timing.to_json()["ratio"] == timing.ratio()


def test_a_reference_that_ends_is_told(checkout):
  message = r"the reference ended: .*No module named .* It needs torch"
  with pytest.raises(UserError, match=message):
    _measure(checkout)
  with pytest.raises(UserError, match=r"--python=nobody: No such file"):
    _measure(checkout, python="nobody")
