"""What a compiled program needs, and how fast it can be at best.

A step takes at least as long as its matrix products at the chip's peak, as its
bytes at the bandwidth of the memory, and as what its devices must send each
other over all links at once. Nothing else is in the estimate: no work of the
vector unit, no waiting of one on another. It is a bound, not a forecast.
"""

import dataclasses
import re
import time

import jax

from trm_jax.inspect import chips, hlo
from trm_jax.inspect.program import Work
from trm_jax.inspect.topology import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of each device.

  Attributes:
    usable: that the compiler may use.
    arguments: of the state and the data.
    outputs: of what it returns.
    aliased: part of the outputs that takes the place of arguments.
    temporaries: for what lies between.
    peak: at the worst moment, arguments included, as the compiler says.
    code: of the program itself.
  """

  usable: int
  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  peak: int
  code: int

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
    return max(dataclasses.asdict(self).items(), key=lambda one: one[1])[0]


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that fits.

  Attributes:
    compile_seconds: that the compiler took.
    memory: of each device.
    steps: supervision steps of a call; what follows is of one of them.
    flops: by the analytic count, of all devices together.
    flops_run: matrix products as the program makes them, on one device;
      those that rematerialisation repeats included.
    bytes: of main memory that one device moves.
    fusions: in the program's text.
    fusions_run: as they run.
    cycles: of one device, as the compiler estimates its own work, as far as
      it says.
    times: the bound.
    utilisation: analytic FLOPs over what the chips could do in that time.
    collectives: of a call.
    loops: of the program.
    text: of the program.
  """

  compile_seconds: float
  memory: Memory
  steps: int
  flops: float
  flops_run: float
  bytes: float
  fusions: int
  fusions_run: float
  cycles: float
  times: Times
  utilisation: float
  collectives: tuple[hlo.Collective, ...]
  loops: tuple[hlo.Loop, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A program that does not fit.

  Attributes:
    needed: bytes of each device; 0 if the compiler does not say.
    usable: bytes that there are.
    largest: allocations that the compiler names, the largest first.
    message: its own words.
  """

  needed: int
  usable: int
  largest: tuple[str, ...]
  message: str


def compile_work(work: Work, topology: Topology) -> Compiled | TooLarge:
  """Compiles a program and reads what came of it."""
  lowered = work.lower()
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return read_refusal(str(error), topology.kind)
  seconds = time.perf_counter() - started
  found = compiled.memory_analysis()
  text = compiled.as_text()
  assert found is not None
  assert text is not None
  counts = hlo.Module(text).count()
  times = bound(
    topology.kind,
    work.dtype,
    counts.flops / work.steps,
    counts.bytes / work.steps,
    sum(c.sent * c.times for c in counts.collectives) / work.steps,
  )
  peak = topology.chip.peak_flops[work.dtype] / topology.kind.devices
  return Compiled(
    compile_seconds=seconds,
    memory=Memory(
      usable=topology.kind.usable_bytes,
      arguments=found.argument_size_in_bytes,
      outputs=found.output_size_in_bytes,
      aliased=found.alias_size_in_bytes,
      temporaries=found.temp_size_in_bytes,
      peak=found.peak_memory_in_bytes,
      code=found.generated_code_size_in_bytes,
    ),
    steps=work.steps,
    flops=work.flops,
    flops_run=counts.flops / work.steps,
    bytes=counts.bytes / work.steps,
    fusions=counts.fusions,
    fusions_run=counts.fusions_run / work.steps,
    cycles=counts.cycles / work.steps,
    times=times,
    utilisation=work.flops / work.devices / peak / times.seconds,
    collectives=counts.collectives,
    loops=counts.loops,
    text=text,
  )


def bound(
  kind: chips.Slice, dtype: str, flops: float, moved: float, sent: float
) -> Times:
  """The least time of some work of one device.

  Args:
    kind: of its chip, whose devices share what it can do.
    dtype: of the matrix products.
    flops: of them.
    moved: bytes of its memory.
    sent: bytes to other devices.
  """
  chip = chips.find(kind.chip)
  share = kind.devices
  return Times(
    compute=chips.estimate_seconds(flops, kind.chip, dtype, 1.0) * share,
    memory=moved / chip.bandwidth * share,
    interconnect=sent / kind.interconnect * share,
  )


def read_refusal(message: str, kind: chips.Slice) -> TooLarge:
  """What the compiler says of a program that is too large.

  It has two ways to say so: early, with the sum alone, or after it has laid
  everything out, with a list of the largest allocations.
  """
  size = r"([\d.]+)([KMGT]?)"
  needed, usable = 0, kind.usable_bytes
  for pattern in (rf"\({size}\) exceeds available \w+ \({size}\)",
                  rf"Used {size} of {size} hbm"):  # fmt: skip
    if found := re.search(pattern, message):
      needed = int(float(found[1]) * _UNITS[found[2]])
      usable = int(float(found[3]) * _UNITS[found[4]])
      break
  largest = re.findall(
    r"\d+\. Size: (\S+)\n(?:\s+Operator: (.*)\n)?\s+Shape: (\S+)", message
  )
  return TooLarge(
    needed,
    usable,
    tuple(" ".join(filter(None, one)) for one in largest),
    message.splitlines()[0],
  )
