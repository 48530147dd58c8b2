"""Published peaks of chips, and least times that follow from them.

Rates are dense (no structured sparsity) and of the matrix units. That of
float32 is at JAX's default precision, which multiplies in bfloat16 on TPUs and
in TensorFloat-32 on NVIDIA's GPUs (`jax.lax.Precision`).

Sources: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and
"TPU7x (Ironwood)"; NVIDIA's data sheets of the A100 80GB, H100 and H200 (all
SXM), the DGX B200 (an eighth of it) and the L40S, and "NVIDIA Ada GPU
Architecture" for the RTX 4090. Where a sheet gives rates with sparsity alone,
half of them. "cpu" is measured on two cores of an Intel Xeon with AVX-512:
products of 1536 x 1536 matrices, and copying in one thread.

Links between the chips of a slice: the same pages (half of the "bidirectional
ICI bandwidth per chip"), and for the v4 table 4 of "TPU v4: An Optically
Reconfigurable Supercomputer" (arXiv 2304.01433), six links of 50 GB/s.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping

from trm_jax.errors import UserError

_GB = 10**9
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which for "tpu7x" is two devices of JAX.

  Attributes:
    name: its key in `CHIPS`.
    peak_flops: dtype -> FLOP/s.
    memory_bytes: of its fast memory.
    bandwidth: of that memory, bytes/s.
  """

  name: str
  peak_flops: Mapping[str, float]
  memory_bytes: int
  bandwidth: float


@dataclasses.dataclass(frozen=True)
class Slice:
  """How TPUs of one kind are put together.

  Attributes:
    chip: a key of `CHIPS`.
    dimensions: of the grid that its chips form.
    devices: of JAX in each chip.
    usable_bytes: of the memory of each device, what libtpu 0.0.42 leaves to
      programs.
    interconnect: bytes/s that a chip can send over all its links.
  """

  chip: str
  dimensions: int
  devices: int
  usable_bytes: int
  interconnect: float


CHIPS: dict[str, Chip] = {
  name: Chip(name, {"bfloat16": b, "float32": f}, memory_bytes, bandwidth)
  for name, b, f, memory_bytes, bandwidth in (
    ("v4", 275e12, 275e12, 32 * _GIB, 1200e9),
    ("v5e", 197e12, 197e12, 16 * _GIB, 819e9),
    ("v5p", 459e12, 459e12, 95 * _GIB, 2765e9),
    ("v6e", 918e12, 918e12, 32 * _GIB, 1638e9),
    ("tpu7x", 2307e12, 2307e12, 192 * _GIB, 7380e9),
    ("a100", 312e12, 156e12, 80 * _GB, 2039e9),
    ("h100", 989.4e12, 494.7e12, 80 * _GB, 3350e9),
    ("h200", 989.4e12, 494.7e12, 141 * _GB, 4800e9),
    ("b200", 2250e12, 1100e12, 180 * _GB, 8000e9),
    ("l40s", 362e12, 183e12, 48 * _GB, 864e9),
    ("rtx4090", 165.2e12, 82.6e12, 24 * _GB, 1008e9),
    ("cpu", 0.25e12, 0.25e12, 24 * _GIB, 16e9),
  )
}

SLICES: dict[str, Slice] = {
  chip: Slice(chip, dimensions, devices, int(usable * _GIB), interconnect)
  for chip, dimensions, devices, usable, interconnect in (
    ("v4", 3, 1, 30.75, 300e9),
    ("v5e", 2, 1, 15.75, 200e9),
    ("v5p", 3, 1, 95.74, 600e9),
    ("v6e", 2, 1, 31.25, 400e9),
    ("tpu7x", 3, 2, 94.75, 600e9),
  )
}


def find(name: str) -> Chip:
  """The chip of that name.

  Raises:
    UserError: there is none; it names those that there are.
  """
  if name not in CHIPS:
    raise UserError(
      f"chip={name!r}: must be one of {', '.join(CHIPS)}"
      f"{did_you_mean(name, CHIPS)}"
    )
  return CHIPS[name]


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """The words "; did you mean 'v5e'?" if one of the names is close."""
  close = difflib.get_close_matches(name.lower(), names, n=1)
  return f"; did you mean {close[0]!r}?" if close else ""


def estimate_seconds(
  flops: float, chip: str, dtype: str, utilisation: float
) -> float:
  """How long one chip computes.

  Args:
    flops: operations, as `core.flops` counts them.
    chip: a key of `CHIPS`.
    dtype: of the activations.
    utilisation: fraction of the chip's peak that is reached, in (0, 1].

  Raises:
    UserError: the chip, or its rate in that dtype, is unknown, or the
      utilisation is not in that range.
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
