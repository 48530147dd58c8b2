"""Compiles a config for slices of TPUs and prints tables: `trm compile`."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console

from trm_jax import config as config_lib
from trm_jax.draw import console as consoles
from trm_jax.inspect import program
from trm_jax.inspect.estimate import Estimate, TooLarge, estimate
from trm_jax.inspect.program import DataSize, Workload
from trm_jax.inspect.topology import Topology
from trm_jax.solve.rules import SolveConfig
from trm_jax.study import grid, results

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class CompileRequest:
  """What to compile."""

  what: str = "train"  # or "solve", or "depth_grid"
  seeds: int = 8  # "depth_grid" of a config without a grid: members
  slots: int = 256  # "solve": rollouts at once on one host
  depth: int = 16  # "solve": supervision steps per puzzle
  rows: int = 0  # examples of the data; 0: from the config
  puzzle_ids: int = 0  # rows of the puzzle table; 0: from the config


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One program on one slice."""

  work: Workload
  topology: Topology
  found: Estimate | TooLarge


def plan(
  values: Mapping[str, Any], slices: Iterable[Topology], request: CompileRequest
) -> tuple[list[tuple[Workload, Topology]], DataSize]:
  """The programs to compile, and the assumed size of the data.

  Args:
    values: the config; of a study, all settings are compiled.
    slices: the devices.
    request: the remaining options.

  Raises:
    UserError: if the config is wrong, or does not fit the devices.
  """
  if request.what == "depth_grid" and "grid" in values:
    study, settings = grid.read(values)
    names = results.labels(settings)
    runs = [(names[s.key], s.experiment, study.seeds) for s in settings]
  else:
    experiment, count = config_lib.read(values), request.seeds
    runs = [("train", experiment, ())]
    if request.what == "depth_grid":
      runs = [(f"{count} seeds", experiment, tuple(range(count)))]
  size = program.expected_size(runs[0][1], request.rows, request.puzzle_ids)
  solve = SolveConfig(depth=request.depth)
  return [
    (
      program.solving(experiment, topology, size, request.slots, solve)
      if request.what == "solve"
      else program.training(experiment, topology, size, seeds, name),
      topology,
    )
    for topology in slices
    for name, experiment, seeds in runs
  ], size


def compile_all(todo: list[tuple[Workload, Topology]]) -> Iterator[Outcome]:
  """Compiles one after another, with progress on stderr."""
  for number, (work, topology) in enumerate(todo, start=1):
    line = (
      f"[{number} of {len(todo)}] compiling {work.name} for {topology.name}"
    )
    print(line, file=sys.stderr, flush=True)
    started = time.perf_counter()
    found = estimate(work, topology)
    seconds = time.perf_counter() - started
    fits = "fits" if isinstance(found, Estimate) else "does not fit"
    print(f"{line}: {fits}, {seconds:.0f} s", file=sys.stderr, flush=True)
    yield Outcome(work, topology, found)


def as_json(outcome: Outcome) -> dict[str, Any]:
  """An outcome as plain values."""
  work, topology, found = outcome.work, outcome.topology, outcome.found
  row = {
    "program": work.name,
    "topology": topology.name,
    "chips": topology.chips,
    "devices": len(topology.devices),
    "hosts": topology.hosts,
    "fits": isinstance(found, Estimate),
  } | dataclasses.asdict(found)
  if isinstance(found, Estimate):
    row["memory"]["needed"] = found.memory.needed
    row["times"] |= {
      "seconds": found.times.seconds, "limit": found.times.limit,
    }  # fmt: skip
  return row


def show(outcomes: list[Outcome], size: DataSize, request: CompileRequest):
  """Prints a table of figures for each program, its collectives and loops."""
  console = consoles.make()
  for name in dict.fromkeys(one.work.name for one in outcomes):
    own = [one for one in outcomes if one.work.name == name]
    columns = [_figures(one, request) for one in own]
    consoles.print_table(
      ["a step, a device", *(one.topology.name for one in own)],
      [
        (label, *(column.get(label, "") for column in columns))
        for label in dict.fromkeys(key for column in columns for key in column)
      ],
      name,
    )
    for one in own:
      if isinstance(one.found, TooLarge):
        console.print(f"{one.topology.name}: {one.found.message}")
        console.print(*(f"  {line}" for line in one.found.largest), sep="\n")
      else:
        _show_collectives(console, one, one.found)
  copies = f" of {size.copies:,} copies" if size.copies > 1 else ""
  console.print(
    f"assumed: {size.rows:,} examples{copies}, {size.puzzle_ids:,} puzzle ids\n"
    "least times: at the peaks of trm_jax.inspect.chips, if products, memory "
    "or links alone were the limit"
  )


def _figures(outcome: Outcome, request: CompileRequest) -> dict[str, str]:
  """One column of the table: label -> figure."""
  topology, found = outcome.topology, outcome.found
  row = {
    "chips, devices of JAX, hosts": (
      f"{topology.chips}, {len(topology.devices)}, {topology.hosts}"
    )
  }
  if isinstance(found, TooLarge):
    needs = f"{found.needed / _GIB:.2f}" if found.needed else "more"
    return row | {"fits": f"no: needs {needs} of {found.usable / _GIB:.2f} GiB"}
  memory, times = found.memory, found.times
  per_chip = found.flops * topology.chip.devices / outcome.work.devices
  runs = sum(c.times for c in found.collectives) / found.steps
  inside = sum(c.times for c in found.collectives if c.recursive) / found.steps
  row |= {
    "fits": f"yes: {memory.needed / memory.usable:.0%} of "
    f"{memory.usable / _GIB:.2f} GiB",
    "arguments, GiB": f"{memory.arguments / _GIB:.3f}",
    "outputs (aliased), GiB": f"{memory.outputs / _GIB:.3f} "
    f"({memory.aliased / _GIB:.3f})",
    "temporaries, GiB": f"{memory.temporaries / _GIB:.2f}",
    "peak, GiB": f"{memory.peak / _GIB:.2f}",
    "analytic TFLOP, all (a chip)": f"{found.flops / 1e12:.3g} "
    f"({per_chip / 1e12:.3g})",
    "TFLOP as run": f"{found.flops_run / 1e12:.3g}",
    "memory moved, GB": f"{found.bytes / 1e9:.3g}",
    "FLOPs a byte": f"{found.flops_run / max(found.bytes, 1):.0f}",
    "collectives (in the recursion)": f"{runs:.0f} ({inside:.0f})",
    "sent, MB": f"{found.sent / 1e6:.3g}",
    "least ms: products": f"{times.compute * 1e3:.3g}",
    "least ms: memory": f"{times.memory * 1e3:.3g}",
    "least ms: links": f"{times.interconnect * 1e3:.3g}",
    "limited by": times.limit,
    "steps/s, at most": f"{1 / times.seconds:.3g}",
    "MFU, at most": f"{found.utilisation:.0%}",
    "compiler's own estimate, Mcycles": f"{found.cycles / 1e6:.4g}",
  }
  if request.what == "solve":
    puzzles = request.slots / request.depth / times.seconds
    row[f"puzzles/s at depth {request.depth}, at most"] = f"{puzzles:,.0f}"
  return row


def _show_collectives(console: Console, outcome: Outcome, found: Estimate):
  rows = [
    (
      f"{one.kind} {', '.join(one.dtypes)}",
      f"{one.bytes:,}",
      f"{one.groups} x {one.group_size}",
      f"{one.times / found.steps:g}",
      "yes" if one.recursive else "",
      one.where,
    )
    for one in sorted(found.collectives, key=lambda c: -c.bytes * c.times)
  ]
  heads = (
    "collective", "bytes", "groups", "a step", "in the recursion", "from"
  )  # fmt: skip
  if rows:
    title = f"{outcome.work.name}, {outcome.topology.name}"
    consoles.print_table(heads, rows, title, texts=(0, 4, 5))
  loops = dict.fromkeys(
    f"{loop.where} ({loop.trips or 'as data decide, counted once'}"
    f"{', recursion' if loop.recursive else ''})"
    for loop in found.loops
  )
  console.print(f"{outcome.topology.name}: loops: {'; '.join(loops) or 'none'}")
