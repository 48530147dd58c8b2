"""Published peak rates of chips.

Rates are those of the matrix units without structured sparsity. The float32
rate is at JAX's default precision, which multiplies in bfloat16 on TPUs and in
TensorFloat-32 on NVIDIA's GPUs (`jax.lax.Precision`).

Sources: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and
"TPU7x (Ironwood)"; NVIDIA's data sheets of the A100 80GB, H100 and H200 (all
SXM), the DGX B200 (an eighth of it) and the L40S, and "NVIDIA Ada GPU
Architecture" for the RTX 4090. Rates that a sheet gives only with sparsity are
halved. "cpu" was measured on two cores of an Intel Xeon with AVX-512: products
of 1536 x 1536 matrices, and copying in one thread.

Links between the chips of a slice: the same pages (half of the "bidirectional
ICI bandwidth per chip"), and for the v4 table 4 of "TPU v4: An Optically
Reconfigurable Supercomputer" (arXiv 2304.01433), six links of 50 GB/s.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping

from trm_jax.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip; the fields after `bandwidth` are set for TPUs only."""

  name: str  # its key in `CHIPS`
  peak_flops: Mapping[str, float]  # dtype -> FLOP/s
  memory_bytes: int  # of the fast memory
  bandwidth: float  # of that memory, bytes/s
  dimensions: int = 0  # of the grid of chips in a slice
  devices: int = 1  # JAX devices in each chip
  usable_bytes: int = 0  # for programs on each device, from libtpu 0.0.42
  interconnect: float = 0.0  # bytes/s sent over all links of the chip


def _chip(
  name: str, bfloat16: float, float32: float, memory: float, bandwidth: float,
  dimensions: int = 0, devices: int = 1, usable_gib: float = 0.0,
  interconnect: float = 0.0,
) -> Chip:  # fmt: skip
  rates = {"bfloat16": bfloat16, "float32": float32}
  usable = int(usable_gib * _GIB)
  return Chip(
    name, rates, int(memory), bandwidth, dimensions, devices, usable,
    interconnect,
  )  # fmt: skip


CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    _chip("v4", 275e12, 275e12, 32 * _GIB, 1200e9, 3, 1, 30.75, 300e9),
    _chip("v5e", 197e12, 197e12, 16 * _GIB, 819e9, 2, 1, 15.75, 200e9),
    _chip("v5p", 459e12, 459e12, 95 * _GIB, 2765e9, 3, 1, 95.74, 600e9),
    _chip("v6e", 918e12, 918e12, 32 * _GIB, 1638e9, 2, 1, 31.25, 400e9),
    _chip("tpu7x", 2307e12, 2307e12, 192 * _GIB, 7380e9, 3, 2, 94.75, 600e9),
    _chip("a100", 312e12, 156e12, 80e9, 2039e9),
    _chip("h100", 989.4e12, 494.7e12, 80e9, 3350e9),
    _chip("h200", 989.4e12, 494.7e12, 141e9, 4800e9),
    _chip("b200", 2250e12, 1100e12, 180e9, 8000e9),
    _chip("l40s", 362e12, 183e12, 48e9, 864e9),
    _chip("rtx4090", 165.2e12, 82.6e12, 24e9, 1008e9),
    _chip("cpu", 0.25e12, 0.25e12, 24 * _GIB, 16e9),
  )
}
TPUS = {name: chip for name, chip in CHIPS.items() if chip.dimensions}


def find(name: str) -> Chip:
  """The chip with this name; a UserError that lists all if there is none."""
  if name not in CHIPS:
    raise UserError(
      f"chip={name!r}: must be one of {', '.join(CHIPS)}"
      f"{did_you_mean(name, CHIPS)}"
    )
  return CHIPS[name]


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """The text "; did you mean 'v5e'?" if one of the names is close."""
  close = difflib.get_close_matches(name.lower(), names, n=1)
  return f"; did you mean {close[0]!r}?" if close else ""


def estimate_seconds(
  flops: float, chip: str, dtype: str, utilisation: float
) -> float:
  """The seconds that one chip computes.

  Args:
    flops: operations, as counted by `core.flops`.
    chip: a key of `CHIPS`.
    dtype: of the activations.
    utilisation: the reached fraction of the chip's peak, in (0, 1].

  Raises:
    UserError: if the chip, or its rate in that dtype, is unknown, or the
      utilisation is out of range.
  """
  rates = find(chip).peak_flops
  if dtype not in rates:
    raise UserError(
      f"dtype={dtype!r}: the rate of {chip!r} is known only for "
      f"{', '.join(rates)}"
    )
  if not 0 < utilisation <= 1:
    raise UserError(
      f"utilisation={utilisation}: must be a fraction of the peak, above 0 "
      "and at most 1"
    )
  return flops / (rates[dtype] * utilisation)
