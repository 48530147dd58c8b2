"""Memory of a compiled program, and a lower bound of the time of a step.

The bound is the longest of three times: matrix products at the chip's peak,
bytes at the bandwidth of the memory, and bytes sent to other devices over all
links at once. Vector work and waiting are left out.
"""

import dataclasses
import re

import jax

from trm_jax.inspect import chips, cost
from trm_jax.inspect.program import Workload
from trm_jax.inspect.topology import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device, from `Compiled.memory_analysis`."""

  usable: int  # for programs; 0 if unknown
  arguments: int  # the state and the data
  outputs: int
  aliased: int  # outputs that reuse the memory of arguments
  temporaries: int
  peak: int  # with the arguments, as the compiler estimates

  @classmethod
  def of(cls, compiled: jax.stages.Compiled, usable: int = 0) -> "Memory":
    """The memory of a compiled program."""
    found = compiled.memory_analysis()
    assert found is not None
    return cls(
      usable=usable,
      arguments=found.argument_size_in_bytes,
      outputs=found.output_size_in_bytes,
      aliased=found.alias_size_in_bytes,
      temporaries=found.temp_size_in_bytes,
      peak=found.peak_memory_in_bytes,
    )

  @property
  def needed(self) -> int:
    """Arguments, outputs and temporaries, without the aliased bytes twice."""
    return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Times:
  """Least seconds of a step for each possible limit."""

  compute: float
  memory: float
  interconnect: float

  @property
  def seconds(self) -> float:
    """The longest of the three."""
    return max(dataclasses.astuple(self))

  @property
  def limit(self) -> str:
    """The name of the longest."""
    return max(vars(self), key=vars(self).__getitem__)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A program that fits; numbers are per step and device."""

  memory: Memory
  steps: int  # supervision steps in one call
  flops: float  # analytic count, of all devices together
  flops_run: float  # matrix products as compiled, with rematerialisation
  bytes: float  # of main memory, read and written
  sent: float  # bytes to other devices
  cycles: float  # the compiler's estimate, where it gives one
  times: Times
  utilisation: float  # analytic FLOPs / (peak FLOP/s * least seconds)
  collectives: tuple[cost.Collective, ...]  # in one call
  loops: tuple[cost.Loop, ...]


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A program that does not fit."""

  needed: int  # bytes on each device; 0 if the compiler gives no number
  usable: int
  largest: tuple[str, ...]  # the largest allocations
  message: str  # first line of the compiler's error


def estimate(work: Workload, topology: Topology) -> Estimate | TooLarge:
  """Compiles a program and analyses it."""
  chip, lowered = topology.chip, work.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return read_refusal(str(error), chip)
  counts = cost.count(compiled)
  sent = sum(c.sent * c.times for c in counts.collectives)
  flops, moved, cycles, sent = (
    each / work.steps
    for each in (counts.flops, counts.bytes, counts.cycles, sent)
  )
  times = bound(chip, work.dtype, flops, moved, sent)
  peak = chip.peak_flops[work.dtype] / chip.devices
  return Estimate(
    memory=Memory.of(compiled, chip.usable_bytes),
    steps=work.steps,
    flops=work.flops,
    flops_run=flops,
    bytes=moved,
    sent=sent,
    cycles=cycles,
    times=times,
    utilisation=work.flops / work.devices / peak / times.seconds,
    collectives=counts.collectives,
    loops=counts.loops,
  )


def bound(
  chip: chips.Chip, dtype: str, flops: float, moved: float, sent: float
) -> Times:
  """Least times of one device for FLOPs in `dtype`, bytes moved and sent."""
  devices = chip.devices
  return Times(
    compute=chips.estimate_seconds(flops, chip.name, dtype, 1.0) * devices,
    memory=moved / chip.bandwidth * devices,
    interconnect=sent / chip.interconnect * devices,
  )


def read_refusal(message: str, chip: chips.Chip) -> TooLarge:
  """Parses the compiler's error for a program that is too large.

  The error has only the sum, or also a list of the largest allocations.
  """
  size = r"([\d.]+)([KMGT]?)"
  needed, usable = 0, chip.usable_bytes
  if found := re.search(
    rf"\({size}\) exceeds available \w+ \({size}\)|Used {size} of {size} hbm",
    message,
  ):
    numbers = [one for one in found.groups() if one is not None]
    needed = int(float(numbers[0]) * _UNITS[numbers[1]])
    usable = int(float(numbers[2]) * _UNITS[numbers[3]])
  largest = re.findall(
    r"\d+\. Size: (\S+)\n(?:\s+Operator: (.*)\n)?\s+Shape: (\S+)", message
  )
  return TooLarge(
    needed,
    usable,
    tuple(" ".join(filter(None, one)) for one in largest),
    message.splitlines()[0],
  )
