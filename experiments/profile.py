"""Profiles a config's compiled step: what the devices spend their time on.

    python -m experiments.profile --config=FILE.py[:variant]
        [--what=train|evaluate|solve] [--steps=20] [--out=runs/profile]
        [--top=10] [--json]

Runs the very program that training, evaluation or solving runs, on puzzles
made up on the spot, compiled and warmed up before, and keeps a trace of some
dispatches in a new folder below --out, for Perfetto and for XProf. Prints the
costliest operations and the share of each part of the model: the time in an
operation itself, of all that the devices did, and the lines that it comes from.
GFLOP/s are those of matrix products, GB/s what an operation reads and writes. A
device that is not busy waits for the host.

Evaluation goes to config.eval.depth, with config.eval.batch_size puzzles; so
does solving, with as many slots, and never halts before.
"""

import collections
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AxisType
from rich.console import Console
from rich.table import Table

from trm_jax import config as config_lib
from trm_jax.cli import app, dispatch
from trm_jax.config import Experiment
from trm_jax.core.halting import Puzzles
from trm_jax.data import synthetic as made_up
from trm_jax.data.task import Split
from trm_jax.errors import UserError
from trm_jax.inspect import trace
from trm_jax.run import sharding
from trm_jax.solve import engine, evaluate, layout
from trm_jax.solve.rules import SolveConfig
from trm_jax.train import loop as fit

_CONFIG = app.define_config()
_WHAT = flags.DEFINE_enum(
  "what", "train", ["train", "evaluate", "solve"], "What to profile."
)
_STEPS = flags.DEFINE_integer(
  "steps", 20, "Supervision steps to trace, rounded up to whole dispatches.",
  lower_bound=1,
)  # fmt: skip
_OUT = flags.DEFINE_string("out", "runs/profile", "A folder for traces.")
_TOP = flags.DEFINE_integer("top", 10, "Operations to print.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")

# Supervision steps a call, as `Solver` has it when it is in no hurry.
_CHUNK = 32
_TRACES = "plugins/profile/*/*.xplane.pb"  # where the profiler puts them


@dataclasses.dataclass(frozen=True)
class _Work:
  """A compiled program, ready to run.

  Attributes:
    text: of the program.
    dispatch: runs it once, and returns what the host reads of it.
    steps: supervision steps of a dispatch.
  """

  text: str
  dispatch: Callable[[], Any]
  steps: int


def main(argv: list[str]) -> int:
  """Profiles what `--config` describes."""
  app.no_arguments(argv)
  experiment = config_lib.read(app.config_values(_CONFIG))
  out = _writable(_OUT.value)
  prepare = {"train": _training, "evaluate": _evaluation, "solve": _solving}
  work = prepare[_WHAT.value](experiment, made_up.split(experiment.task))
  dispatches = -(-_STEPS.value // work.steps)
  jax.block_until_ready(work.dispatch())
  file = _record(work, dispatches, out)
  found = trace.read(file)
  table = _rows(found, [trace.Program(work.text)], dispatches * work.steps)
  report = {
    "device": jax.devices()[0].device_kind,
    "devices": found.devices,
    "what": _WHAT.value,
    "steps": dispatches * work.steps,
    "dispatches": dispatches,
    "seconds": found.seconds,
    "busy": found.busy,
    "operations": table[: _TOP.value],
    "parts": _parts(table),
    "xplane": str(file),
    "perfetto": str(file.with_name("perfetto_trace.json.gz")),
  }
  if _JSON.value:
    print(json.dumps(report))
  else:
    _show(report, out)
  return 0


def _writable(path: str) -> pathlib.Path:
  """The folder for traces, which is tried before anything is compiled."""
  folder = pathlib.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise UserError(
      f"--out={path}: cannot be written to ({error.strerror}); name another "
      "folder"
    ) from error
  return folder


def _training(experiment: Experiment, split: Split) -> _Work:
  made = dispatch.prepare(fit.build(experiment), split)
  return _Work(made.compiled.as_text(), made.call, made.steps)


def _evaluation(experiment: Experiment, split: Split) -> _Work:
  program = fit.build(experiment)
  batch, depth = experiment.eval.batch_size, experiment.eval.depth
  rows = np.arange(batch) % len(split)
  inputs, labels, ids, counted = sharding.put(
    (
      split.inputs[rows], split.labels[rows], split.puzzle_ids[rows],
      np.ones(batch, bool),
    ),
    sharding.by_batch(program.mesh),
  )  # fmt: skip
  shown = evaluate.Batch(Puzzles.of(inputs, labels, ids), counted)
  params = program.init().averaged_params
  compiled = (
    evaluate.scorer(program.mesh)
    .lower(params, shown, depth, experiment.model, experiment.task)
    .compile()
  )
  # The scores of a batch are read before the next is shown.
  return _Work(
    compiled.as_text(),
    lambda: jax.device_get(compiled(params, shown)),
    depth,
  )


def _solving(experiment: Experiment, split: Split) -> _Work:
  mesh = jax.make_mesh((jax.device_count(),), ("device",), (AxisType.Auto,))
  ways, model = mesh.size, experiment.model
  depth = experiment.eval.depth if model.is_recursive else 1
  slots = -(-experiment.eval.batch_size // ways)
  dispatches = 1 + -(-_STEPS.value // _CHUNK)
  # So that the queue never runs dry.
  capacity = slots * -(-dispatches * _CHUNK // depth)
  plan = engine.Plan(
    model=model, task=experiment.task, breadth=1, noisy=False, views=False,
    checks=False, chunk=_CHUNK,
  )  # fmt: skip
  begin, go_on = layout.programs(mesh, plan, slots, capacity, marks=1)
  rows = np.arange(ways * capacity)
  queue = engine.Queue(
    inputs=split.inputs[rows % len(split.inputs)],
    rows=np.zeros((ways * capacity, model.puzzle_emb_ndim), model.param_dtype),
    numbers=rows.astype(np.uint32),
    count=np.full(ways, capacity, np.int32),
  )
  settings = engine.Settings.of(SolveConfig(), (depth,), prune=False)
  params = fit.build(experiment).init().averaged_params
  params = jax.device_put(params, sharding.replicated(mesh))
  fixed = (
    params.weights, params.initial, sharding.put(queue, layout.shared(mesh)),
    settings, jnp.int32(0),
  )  # fmt: skip
  state = begin()
  compiled = go_on.lower(*fixed, state).compile()

  def go_on():
    nonlocal state
    state, now = compiled(*fixed, state)
    return now

  return _Work(compiled.as_text(), go_on, _CHUNK)


def _record(work: _Work, dispatches: int, out: pathlib.Path) -> pathlib.Path:
  """Traces some dispatches into a new folder; returns the trace's file."""
  before = set(out.glob(_TRACES))
  options = jax.profiler.ProfileOptions()
  # Following every Python call takes time, in which devices would wait.
  options.python_tracer_level = 0
  pending = None
  try:
    with jax.profiler.trace(
      str(out), create_perfetto_trace=True, profiler_options=options
    ):
      for number in range(dispatches):
        with jax.profiler.StepTraceAnnotation(_WHAT.value, step_num=number):
          now = work.dispatch()
        jax.device_get(pending)  # as the training loop: one dispatch late
        pending = now
      jax.block_until_ready(pending)
  except OSError as error:
    raise UserError(
      f"--out={out}: the trace could not be written ({error.strerror})"
    ) from error
  written = set(out.glob(_TRACES)) - before
  if len(written) != 1:
    raise UserError(
      f"--out={out}: {len(written)} new traces are there where there should be "
      "one; does another profiler write to it? Name another folder"
    )
  return written.pop()


def _rows(
  found: trace.Trace,
  programs: Sequence[trace.Program],
  steps: int,
) -> list[dict[str, Any]]:
  """What is told of each operation, the costliest first."""
  total = sum(operation.seconds for operation in found.operations)
  rows = []
  for operation in found.operations:
    instruction = trace.find(operation, programs)
    runs_a_second = operation.calls / max(operation.seconds, 1e-12)
    rows.append(
      {
        "name": operation.name,
        "part": instruction.part,
        "backward": instruction.is_backward,
        "share": operation.seconds / total,
        "ms_a_step": 1e3 * operation.seconds / found.devices / steps,
        "calls_a_step": operation.calls / found.devices / steps,
        "gflops_a_second": instruction.flops * runs_a_second / 1e9,
        "gbytes_a_second": instruction.bytes * runs_a_second / 1e9,
        "path": instruction.path,
        "lines": _lines(instruction.frames),
      }
    )
  return rows


def _lines(frames: Sequence[trace.Frame]) -> list[str]:
  """The innermost line of each of three files, as "layers.py:125"."""
  innermost: dict[str, int] = {}
  for frame in frames:
    innermost.setdefault(pathlib.Path(frame.file).name, frame.line)
  return [f"{name}:{line}" for name, line in innermost.items()][:3]


def _parts(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """Share of each part, the costliest first, and how much is backward."""
  shares, backward = collections.Counter(), collections.Counter()
  for row in rows:
    shares[row["part"]] += row["share"]
    backward[row["part"]] += row["share"] * row["backward"]
  return {
    part: {"share": share, "backward": backward[part]}
    for part, share in shares.most_common()
  }


def _show(report: dict[str, Any], out: pathlib.Path):
  seconds, steps = report["seconds"], report["steps"]
  operations = Table(
    "operation, and where it comes from", "share, %", "ms", "calls", "GFLOP/s",
    "GB/s",
    title=f"{report['what']}, a step on {report['devices']} x "
    f"{report['device']}", show_lines=True,
  )  # fmt: skip
  rates = ("gflops_a_second", "gbytes_a_second")
  for row in report["operations"]:
    side = ", backward" if row["backward"] else ""
    operations.add_row(
      f"{row['name']}\n{row['part']}{side}: {row['path']}\n"
      f"{', '.join(row['lines'])}",
      f"{100 * row['share']:.1f}",
      f"{row['ms_a_step']:.4g}",
      f"{row['calls_a_step']:.4g}",
      *(f"{row[name]:,.4g}" if row[name] else "" for name in rates),
    )
  parts = Table("part", "share, %", "of that backward, %")
  for name, row in report["parts"].items():
    parts.add_row(
      name,
      f"{100 * row['share']:.1f}",
      f"{100 * row['backward'] / row['share']:.0f}" if row["share"] else "",
    )
  console = Console()
  console.print(operations, parts)
  console.print(
    f"{steps} steps in {report['dispatches']} dispatches: {seconds:.4g} s, "
    f"{1e3 * seconds / steps:.4g} ms a step. Busy for "
    f"{100 * report['busy']:.1f}%; the rest of the time a device waits for the "
    "host.\n\n"
    f"Perfetto: on https://ui.perfetto.dev open {report['perfetto']}\n"
    f"XProf:    pip install xprof; xprof --logdir={out}",
    soft_wrap=True, highlight=False,
  )  # fmt: skip


if __name__ == "__main__":
  app.run(main)
