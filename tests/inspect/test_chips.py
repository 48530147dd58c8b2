"""The table of chips, and the times that follow from it."""

import pytest

from trm_jax.errors import UserError
from trm_jax.inspect import chips


def test_every_chip_is_plausible():
  for name, chip in chips.CHIPS.items():
    assert chip.name == name
    assert chip.peak_flops["float32"] <= chip.peak_flops["bfloat16"]
    # A unit slipped by a thousand would leave one of these ranges.
    assert 1e10 <= chip.peak_flops["float32"] < 1e16, name
    assert 1e10 < chip.memory_bytes < 1e12, name
    assert 1e9 < chip.bandwidth < 1e13, name
    # Operations a byte, which have long been of one order on all chips.
    assert 10 < chip.peak_flops["bfloat16"] / chip.bandwidth < 1000, name


def test_every_tpu_has_the_memory_that_programs_may_use():
  for name, chip in chips.TPUS.items():
    # The published size of the v5p's memory is 1 GiB short of what it has.
    spare = 2**30 if name == "v5p" else 0
    usable = chip.usable_bytes * chip.devices
    assert 0.9 * chip.memory_bytes < usable <= chip.memory_bytes + spare, name
    # Slower than the chip's own memory, and not by a unit that slipped.
    assert chip.bandwidth / 50 < chip.interconnect < chip.bandwidth, name


def test_time_is_work_by_the_rate_that_is_reached():
  # The paper's step (32.8 TFLOP) on an H100 at 40% of 989.4 TFLOP/s.
  seconds = chips.estimate_seconds(32.8e12, "h100", "bfloat16", 0.4)
  assert seconds == pytest.approx(0.0829, rel=1e-3)
  twice = chips.estimate_seconds(32.8e12, "h100", "float32", 0.4)
  assert twice == pytest.approx(2 * seconds)


@pytest.mark.parametrize(
  ("chip", "dtype", "utilisation", "message"),
  [
    ("h1000", "bfloat16", 0.4, r"chip='h1000'.* v4, .* cpu; .* 'h100'\?"),
    ("H200", "bfloat16", 0.4, r"did you mean 'h200'\?"),
    ("abacus!", "bfloat16", 0.4, r"chip='abacus!': must be one of .* cpu$"),
    ("v4", "float64", 0.4, "dtype='float64': .* bfloat16, float32"),
    ("v4", "bfloat16", 0.0, "utilisation=0.0"),
    ("v4", "bfloat16", 40.0, "utilisation=40.0: must be a fraction"),
    ("v4", "bfloat16", float("nan"), "utilisation=nan"),
  ],
)
def test_what_cannot_be_estimated_is_refused(chip, dtype, utilisation, message):
  with pytest.raises(UserError, match=message):
    chips.estimate_seconds(1e12, chip, dtype, utilisation)
