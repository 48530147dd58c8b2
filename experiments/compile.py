"""Compiles a config for TPUs that are not here: does it fit, how fast at best?

    python -m experiments.compile --config=FILE.py[:variant]
        --topology=v5e:4x4[,v6e:16x16,...] [--what=train|solve|depth_grid]
        [--json] [--text=FOLDER] [--require_fit]

libtpu's compiler runs on any Linux machine. It is given the very functions that
the loops run, and what it makes of them is read: memory, matrix products, bytes
moved, fusions, loops, and every collective. The least time of a step follows
from the published peaks in `trm_jax.inspect.chips`: a bound, not a forecast.

--what=depth_grid takes the config of a study (configs/depth.py) and compiles
each of its settings with all of its seeds; any other config is trained with
--seeds members. --what=solve is the inference engine on one host's devices.
No data is read: what is assumed of it is printed.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from trm_jax import config as config_lib
from trm_jax.cli import app
from trm_jax.config import Experiment
from trm_jax.errors import UserError
from trm_jax.inspect import estimate, program, topology
from trm_jax.inspect.estimate import Compiled, TooLarge
from trm_jax.inspect.program import Work
from trm_jax.inspect.topology import Topology
from trm_jax.solve.rules import SolveConfig
from trm_jax.study import grid, results

_CONFIG = app.define_config()
_TOPOLOGY = flags.DEFINE_list(
  "topology", [], "Slices, such as v5e:4x4,v6e:16x16,v4:2x2x1,tpu7x:2x2x1."
)
_WHAT = flags.DEFINE_enum(
  "what", "train", ["train", "solve", "depth_grid"], "What is compiled."
)
_SEEDS = flags.DEFINE_integer(
  "seeds", 8, "--what=depth_grid of a config that is no study: its members.",
  lower_bound=1,
)  # fmt: skip
_SLOTS = flags.DEFINE_integer(
  "slots", 256, "--what=solve: rollouts at once, on one host.", lower_bound=1
)
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "--what=solve: steps of a puzzle, for puzzles a second.",
  lower_bound=1,
)  # fmt: skip
_ROWS = flags.DEFINE_integer(
  "rows", 0, "Examples of the data; 0 for what the config tells.", lower_bound=0
)
_PUZZLE_IDS = flags.DEFINE_integer(
  "puzzle_ids", 0, "Rows of the puzzle table; 0 likewise.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")
_TEXT = flags.DEFINE_string("text", "", "Folder to keep the programs' text in.")
_REQUIRE_FIT = flags.DEFINE_bool(
  "require_fit", False, "End with status 1 if something does not fit."
)

_GIB, _MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of one program on one slice."""

  work: Work
  topology: Topology
  found: Compiled | TooLarge


def main(argv: list[str]) -> int:
  """Compiles what `--config` describes for every `--topology`."""
  app.no_arguments(argv)
  # Nothing is run; and what a cache holds takes no time to compile.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  values = app.config_values(_CONFIG)
  if not _TOPOLOGY.value:
    raise UserError("--topology is missing: name slices, such as v5e:4x4")
  slices = [topology.describe(name) for name in _TOPOLOGY.value]
  make, data = _plan(values)
  assumed = (
    f"assumed: {data.rows:,} examples"
    + (f" of {data.copies:,} copies" if data.copies > 1 else "")
    + f", {data.puzzle_ids:,} puzzle ids"
  )
  todo = [(work, one) for one in slices for work in make(one)]
  outcomes = list(_compile(todo))
  if _TEXT.value:
    _keep(outcomes)
  if _JSON.value:
    rows = [_as_json(outcome) for outcome in outcomes]
    print(json.dumps({"assumed": dataclasses.asdict(data), "programs": rows}))
  else:
    _print(outcomes, assumed)
  failed = any(isinstance(one.found, TooLarge) for one in outcomes)
  return 1 if failed and _REQUIRE_FIT.value else 0


def _plan(
  values: dict[str, Any],
) -> tuple[Callable[[Topology], list[Work]], program.Data]:
  """What is to be compiled for a slice, and what is assumed of the data."""
  if _WHAT.value == "depth_grid" and "grid" in values:
    study, settings = grid.read(values)
    names = results.labels(settings)
    data = _assume(settings[0].experiment)

    def make_grid(one: Topology) -> list[Work]:
      return [
        program.population_training(
          names[s.key], s.experiment, study.seeds, one, data
        )
        for s in settings
      ]

    return make_grid, data
  experiment = config_lib.read(values)
  data = _assume(experiment)

  def make(one: Topology) -> list[Work]:
    if _WHAT.value == "depth_grid":
      seeds = range(_SEEDS.value)
      name = f"{_SEEDS.value} seeds"
      return [program.population_training(name, experiment, seeds, one, data)]
    if _WHAT.value == "solve":
      settings = SolveConfig(depth=_DEPTH.value)
      return [program.solving(experiment, one, data, _SLOTS.value, settings)]
    return [program.training(experiment, one, data)]

  return make, data


def _assume(experiment: Experiment) -> program.Data:
  return program.assume(experiment, _ROWS.value, _PUZZLE_IDS.value)


def _compile(todo: list[tuple[Work, Topology]]) -> Iterator[Outcome]:
  """Compiles one after another, and says which."""
  console = Console(stderr=True)
  for number, (work, one) in enumerate(todo, start=1):
    said = f"[{number} of {len(todo)}] compiling {work.name} for {one.name}"
    started = time.perf_counter()
    if console.is_terminal:
      with console.status(said):
        found = estimate.compile_work(work, one)
    else:
      print(said, file=sys.stderr, flush=True)
      found = estimate.compile_work(work, one)
    seconds = time.perf_counter() - started
    fits = "fits" if isinstance(found, Compiled) else "does not fit"
    print(f"{said}: {fits}, {seconds:.0f} s", file=sys.stderr, flush=True)
    yield Outcome(work, one, found)


def _keep(outcomes: list[Outcome]):
  folder = pathlib.Path(_TEXT.value)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for one in outcomes:
      if isinstance(one.found, Compiled):
        name = f"{one.work.name}-{one.topology.name}"
        safe = "".join(c if c.isalnum() else "_" for c in name)
        (folder / f"{safe}.txt").write_text(one.found.text)
  except OSError as error:
    raise UserError(
      f"--text={folder}: cannot be written: {os.strerror(error.errno or 0)}"
    ) from error


def _as_json(outcome: Outcome) -> dict[str, Any]:
  work, one, found = outcome.work, outcome.topology, outcome.found
  row = {
    "program": work.name,
    "topology": one.name,
    "chips": one.chips,
    "devices": len(one.devices),
    "hosts": one.hosts,
    "fits": isinstance(found, Compiled),
  } | dataclasses.asdict(found)
  if isinstance(found, Compiled):
    del row["text"]
    row["memory"]["needed"] = found.memory.needed
    row["times"] |= {
      "seconds": found.times.seconds, "limit": found.times.limit,
    }  # fmt: skip
  return row


def _print(outcomes: list[Outcome], assumed: str):
  console = Console()
  if not console.is_terminal:
    console = Console(width=140)
  for name in dict.fromkeys(one.work.name for one in outcomes):
    own = [one for one in outcomes if one.work.name == name]
    _print_figures(console, name, own)
    for one in own:
      if isinstance(one.found, Compiled):
        _print_collectives(console, one, one.found)
        _print_loops(console, one, one.found)
      else:
        _print_refusal(console, one, one.found)
  console.print(assumed, highlight=False)
  console.print(
    "least times: at the peaks of trm_jax.inspect.chips, if products, memory "
    "or links alone held it up",
    highlight=False,
  )


def _print_figures(console: Console, name: str, own: list[Outcome]):
  columns = [_figures(one) for one in own]
  table = Table("a step, a device", *(o.topology.name for o in own), title=name)
  for label in dict.fromkeys(label for column in columns for label in column):
    table.add_row(label, *(column.get(label, "") for column in columns))
  for column in table.columns[1:]:
    column.justify = "right"
  console.print(table)


def _figures(outcome: Outcome) -> dict[str, str]:
  one, found = outcome.topology, outcome.found
  row = {
    "chips, devices of JAX, hosts":
      f"{one.chips}, {len(one.devices)}, {one.hosts}",
  }  # fmt: skip
  if isinstance(found, TooLarge):
    needs = f"{found.needed / _GIB:.2f}" if found.needed else "more"
    return row | {"fits": f"no: needs {needs} of {found.usable / _GIB:.2f} GiB"}
  memory, times = found.memory, found.times
  per_chip = found.flops * one.kind.devices / outcome.work.devices
  inside = sum(c.times for c in found.collectives if c.recursive)
  rate = 1 / times.seconds
  row |= {
    "fits": f"yes: {memory.needed / memory.usable:.0%} of "
    f"{memory.usable / _GIB:.2f} GiB",
    "arguments, GiB": f"{memory.arguments / _GIB:.3f}",
    "outputs (aliased), GiB": f"{memory.outputs / _GIB:.3f} "
    f"({memory.aliased / _GIB:.3f})",
    "temporaries, GiB": f"{memory.temporaries / _GIB:.2f}",
    "peak, GiB": f"{memory.peak / _GIB:.2f}",
    "program, MiB": f"{memory.code / _MIB:.1f}",
    "compile, s": f"{found.compile_seconds:.0f}",
    "analytic TFLOP, all (a chip)": f"{found.flops / 1e12:.3g} "
    f"({per_chip / 1e12:.3g})",
    "TFLOP as run": f"{found.flops_run / 1e12:.3g}",
    "memory moved, GB": f"{found.bytes / 1e9:.3g}",
    "FLOPs a byte": f"{found.flops_run / max(found.bytes, 1):.0f}",
    "collectives (in the recursion)": f"{_runs(found):.0f} "
    f"({inside / found.steps:.0f})",
    "sent, MB": f"{_sent(found) / 1e6:.3g}",
    "fusions, in the text (run)": f"{found.fusions} ({found.fusions_run:.0f})",
    "least ms: products": f"{times.compute * 1e3:.3g}",
    "least ms: memory": f"{times.memory * 1e3:.3g}",
    "least ms: links": f"{times.interconnect * 1e3:.3g}",
    "limited by": times.limit,
    "steps/s, at most": f"{rate:.3g}",
    "MFU, at most": f"{found.utilisation:.0%}",
    "compiler's own estimate, Mcycles": f"{found.cycles / 1e6:.4g}",
  }
  if _WHAT.value == "solve":
    puzzles = rate * _SLOTS.value / _DEPTH.value
    row[f"puzzles/s at depth {_DEPTH.value}, at most"] = f"{puzzles:,.0f}"
  return row


def _runs(found: Compiled) -> float:
  return sum(c.times for c in found.collectives) / found.steps


def _sent(found: Compiled) -> float:
  return sum(c.sent * c.times for c in found.collectives) / found.steps


def _print_collectives(console: Console, outcome: Outcome, found: Compiled):
  table = Table(
    "collective", "bytes", "groups", "a step", "in the recursion", "from",
    title=f"{outcome.work.name}, {outcome.topology.name}: collectives",
  )  # fmt: skip
  for column in table.columns[1:4]:
    column.justify = "right"
  for one in sorted(found.collectives, key=lambda c: -c.bytes * c.times):
    table.add_row(
      f"{one.kind} {', '.join(one.dtypes)}",
      f"{one.bytes:,}",
      f"{one.groups} x {one.group_size}",
      f"{one.times / found.steps:g}",
      "yes" if one.recursive else "",
      one.where or one.op_name,
    )
  if found.collectives:
    console.print(table)


def _print_loops(console: Console, outcome: Outcome, found: Compiled):
  loops = []
  for loop in found.loops:
    trips = "as data decide" if loop.trips is None else f"{loop.trips} times"
    where = loop.where or loop.name
    mark = ", recursion" if loop.recursive else ""
    loops.append(f"{where} ({trips}{mark})")
  said = "; ".join(dict.fromkeys(loops)) or "none"
  console.print(
    f"{outcome.topology.name}: loops: {said}", highlight=False, markup=False
  )


def _print_refusal(console: Console, outcome: Outcome, found: TooLarge):
  console.print(
    f"{outcome.topology.name}: does not fit: {found.message}",
    highlight=False, markup=False,
  )  # fmt: skip
  for one in found.largest:
    console.print(f"  {one}", highlight=False, markup=False)


if __name__ == "__main__":
  app.run(main)
