"""What a compiled program needs, and the least time that a step can take.

A step takes at least as long as its matrix products at the chip's peak, its
bytes at the bandwidth of the memory, and the bytes that its devices send over
all links at once. Vector work and waiting are left out: this is a bound, not a
forecast.
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
  """Bytes of each device, by `Compiled.memory_analysis`."""

  usable: int  # by programs
  arguments: int  # the state and the data
  outputs: int
  aliased: int  # part of the outputs that takes the place of arguments
  temporaries: int
  peak: int  # at the worst moment, arguments included, as the compiler says

  @property
  def needed(self) -> int:
    """All of it."""
    return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Times:
  """Least seconds of a step, by what could limit it."""

  compute: float
  memory: float
  interconnect: float

  @property
  def seconds(self) -> float:
    """The largest."""
    return max(dataclasses.astuple(self))

  @property
  def limit(self) -> str:
    """Which that is."""
    return max(vars(self), key=vars(self).__getitem__)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A program that fits; numbers are of one step on one device."""

  memory: Memory
  steps: int  # supervision steps of a call
  flops: float  # by the analytic count, and of all devices together
  flops_run: float  # of matrix products as compiled, rematerialised included
  bytes: float  # of main memory that are moved
  sent: float  # bytes to other devices
  cycles: float  # as the compiler estimates its work, as far as it says
  times: Times
  utilisation: float  # analytic FLOPs over what the chips can do in that time
  collectives: tuple[cost.Collective, ...]  # of a call
  loops: tuple[cost.Loop, ...]


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A program that does not fit."""

  needed: int  # bytes of each device; 0 if the compiler does not say
  usable: int
  largest: tuple[str, ...]  # allocations that the compiler names
  message: str  # its own words


def estimate(work: Workload, topology: Topology) -> Estimate | TooLarge:
  """Compiles a program and reads the result."""
  chip, lowered = topology.chip, work.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return read_refusal(str(error), chip)
  memory, counts = compiled.memory_analysis(), cost.count(compiled)
  assert memory is not None
  sent = sum(c.sent * c.times for c in counts.collectives)
  flops, moved, cycles, sent = (
    each / work.steps
    for each in (counts.flops, counts.bytes, counts.cycles, sent)
  )
  times = bound(chip, work.dtype, flops, moved, sent)
  peak = chip.peak_flops[work.dtype] / chip.devices
  return Estimate(
    memory=Memory(
      usable=chip.usable_bytes,
      arguments=memory.argument_size_in_bytes,
      outputs=memory.output_size_in_bytes,
      aliased=memory.alias_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
      peak=memory.peak_memory_in_bytes,
    ),
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
  """The least time of some work of one device.

  Args:
    chip: whose devices divide its rates.
    dtype: of the matrix products.
    flops: of them.
    moved: bytes of its memory.
    sent: bytes to other devices.
  """
  devices = chip.devices
  return Times(
    compute=chips.estimate_seconds(flops, chip.name, dtype, 1.0) * devices,
    memory=moved / chip.bandwidth * devices,
    interconnect=sent / chip.interconnect * devices,
  )


def read_refusal(message: str, chip: chips.Chip) -> TooLarge:
  """What the compiler says of a program that is too large.

  It says so early, with the sum alone, or after it has laid everything out,
  with a list of the largest allocations.
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
