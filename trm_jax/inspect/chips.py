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

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip; what follows `bandwidth` is known of TPUs alone."""

  name: str  # its key in `CHIPS`
  peak_flops: Mapping[str, float]  # dtype -> FLOP/s
  memory_bytes: int  # of its fast memory
  bandwidth: float  # of that memory, bytes/s
  dimensions: int = 0  # of the grid that the chips of a slice form
  devices: int = 1  # of JAX in each chip
  usable_bytes: int = 0  # by programs of each device, as libtpu 0.0.42 says
  interconnect: float = 0.0  # bytes/s that it can send over all its links


def _chip(
  name: str, bfloat16: float, float32: float, memory: float, bandwidth: float
) -> Chip:
  rates = {"bfloat16": bfloat16, "float32": float32}
  return Chip(name, rates, int(memory), bandwidth)


def _tpu(
  name: str, flops: float, memory: int, bandwidth: float, dimensions: int,
  devices: int, usable: float, interconnect: float,
) -> Chip:  # fmt: skip
  return dataclasses.replace(
    _chip(name, flops, flops, memory * _GIB, bandwidth),
    dimensions=dimensions,
    devices=devices,
    usable_bytes=int(usable * _GIB),
    interconnect=interconnect,
  )


CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    _tpu("v4", 275e12, 32, 1200e9, 3, 1, 30.75, 300e9),
    _tpu("v5e", 197e12, 16, 819e9, 2, 1, 15.75, 200e9),
    _tpu("v5p", 459e12, 95, 2765e9, 3, 1, 95.74, 600e9),
    _tpu("v6e", 918e12, 32, 1638e9, 2, 1, 31.25, 400e9),
    _tpu("tpu7x", 2307e12, 192, 7380e9, 3, 2, 94.75, 600e9),
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
