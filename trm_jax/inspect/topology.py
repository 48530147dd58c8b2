"""Descriptions of TPU slices: their names, chips and devices."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from trm_jax.errors import UserError
from trm_jax.inspect import chips

# Maximum chips of a host along each dimension.
_HOST = (2, 2, 1)

# Without a TPU, libtpu needs these; several processes may compile at once.
_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_LOG_DIR": "disabled",
}

_EXAMPLES = "Examples: v5e:4x4, v6e:16x16, v4:2x2x1, v5p:4x4x4, tpu7x:2x2x1"


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a TPU pod."""

  name: str  # such as "v5e:4x4"
  chip: chips.Chip
  devices: tuple[Any, ...]  # JAX devices, sorted by host

  @property
  def chips(self) -> int:
    """Number of chips."""
    return len(self.devices) // self.chip.devices

  @property
  def hosts(self) -> int:
    """Number of hosts."""
    return len({device.process_index for device in self.devices})

  @property
  def host(self) -> tuple[Any, ...]:
    """The devices of the first host."""
    first = self.devices[0].process_index
    return tuple(d for d in self.devices if d.process_index == first)


def describe(name: str) -> Topology:
  """A slice by its name, the chip and the grid of chips: "v5e:4x4".

  Raises:
    UserError: if there is no such slice, or libtpu is not installed.
  """
  chip, sizes = _read(name)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "compiling for TPUs needs libtpu: pip install 'trm_jax[tpu]', which "
      f"takes the version that jax {jax.__version__} was made with"
    )
  options: dict[str, Any] = {
    "chips_per_host_bounds": tuple(map(min, (*sizes, 1)[:3], _HOST))
  }
  if chip.name == "v4":  # two cores are one JAX device
    options["chip_config_name"] = "megacore"
  try:
    with _environment():
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=name, **options
      )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0].partition(": ")[2].rstrip(".")
    raise UserError(
      f"topology {name!r}: libtpu has no such slice: {reason}. {_EXAMPLES}"
    ) from error
  devices = sorted(found.devices, key=lambda one: (one.process_index, one.id))
  assert len(devices) == math.prod(sizes) * chip.devices, name
  return Topology(name, chip, tuple(devices))


def _read(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
  kind, _, shape = name.partition(":")
  if kind not in chips.TPUS:
    raise UserError(
      f"topology {name!r}: the kind of chip must be one of "
      f"{', '.join(chips.TPUS)}{chips.did_you_mean(kind, chips.TPUS)}. "
      f"{_EXAMPLES}"
    )
  found = chips.TPUS[kind]
  axes = found.dimensions
  if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{axes - 1}}}", shape):
    raise UserError(
      f"topology {name!r}: expected {kind}:{'x'.join('ABC'[:axes])}, chips "
      f"along each of {axes} dimensions. {_EXAMPLES}"
    )
  return found, tuple(map(int, shape.split("x")))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  """Sets the variables of `_ENVIRONMENT` that are not set."""
  added = {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for name in added:
      os.environ.pop(name, None)
