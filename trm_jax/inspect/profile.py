"""Traces a program and reports its costliest operations: `trm profile`.

The traces are kept for Perfetto and XProf.
"""

import collections
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from trm_jax.draw import console
from trm_jax.errors import UserError
from trm_jax.inspect import trace

_TRACES = "plugins/profile/*/*.xplane.pb"  # as written by the profiler


def writable(path: str) -> pathlib.Path:
  """Makes the folder for traces; a UserError if it cannot be written to."""
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


def record(
  call: Callable[[], Any], times: int, name: str, out: pathlib.Path
) -> pathlib.Path:
  """Traces some calls into a new folder.

  Args:
    call: the program; called once before the trace, to compile it.
    times: number of calls in the trace.
    name: of a call in the trace.
    out: the folder for traces.

  Returns:
    The `.xplane.pb` file.

  Raises:
    UserError: if the trace cannot be written.
  """
  jax.block_until_ready(call())
  before = set(out.glob(_TRACES))
  options = jax.profiler.ProfileOptions()
  # Tracing Python calls would slow the host, and devices would wait for it.
  options.python_tracer_level = 0
  options.enable_hlo_proto = True
  pending = None
  try:
    with jax.profiler.trace(
      str(out), create_perfetto_trace=True, profiler_options=options
    ):
      for number in range(times):
        with jax.profiler.StepTraceAnnotation(name, step_num=number):
          result = call()
        # As in training, wait for the dispatch before.
        jax.block_until_ready(pending)
        pending = result
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


def report(file: pathlib.Path, steps: int) -> dict[str, Any]:
  """Summarises a trace as plain values.

  Args:
    file: the trace.
    steps: supervision steps in it.

  Returns:
    `devices`, `seconds`, `busy`; `operations`, the costliest first; `parts`:
    part of the model -> fraction of the time, and the backward part of it; and
    the files for XProf and Perfetto.
  """
  found = trace.read(file)
  total = sum(operation.seconds for operation in found.operations)
  rows, parts = [], collections.defaultdict(lambda: [0.0, 0.0])
  for operation in found.operations:
    source = found.source(operation)
    rate = operation.calls / max(operation.seconds, 1e-12)
    fraction = operation.seconds / total
    parts[source.part][0] += fraction
    parts[source.part][1] += fraction * source.backward
    innermost: dict[str, int] = {}  # file -> innermost line
    for path, line in source.lines:
      innermost.setdefault(pathlib.Path(path).name, line)
    rows.append(
      {
        "name": operation.name,
        "part": source.part,
        "backward": source.backward,
        "fraction": fraction,
        "ms_a_step": 1e3 * operation.seconds / found.devices / steps,
        "calls_a_step": operation.calls / found.devices / steps,
        "gflops_a_second": source.flops * rate / 1e9,
        "gbytes_a_second": source.bytes * rate / 1e9,
        "path": source.path,
        "lines": [f"{name}:{line}" for name, line in innermost.items()][:3],
      }
    )
  return {
    "device": jax.devices()[0].device_kind,
    "devices": found.devices,
    "steps": steps,
    "seconds": found.seconds,
    "busy": found.busy,
    "operations": rows,
    "parts": {
      part: {"fraction": fraction, "backward": backward}
      for part, (fraction, backward) in sorted(
        parts.items(), key=lambda item: -item[1][0]
      )
    },
    "xplane": str(file),
    "perfetto": str(file.with_name("perfetto_trace.json.gz")),
  }


def show(report: dict[str, Any], title: str, out: pathlib.Path):
  """Prints a `report`: operations, parts, and the paths of the trace."""
  heads = (
    "operation, and where it comes from", "time, %", "ms", "calls", "GFLOP/s",
    "GB/s",
  )  # fmt: skip
  operations = []
  for row in report["operations"]:
    direction = ", backward" if row["backward"] else ""
    rates = (row["gflops_a_second"], row["gbytes_a_second"])
    operations.append((
      f"{row['name']}\n{row['part']}{direction}: {row['path']}\n"
      f"{', '.join(row['lines'])}",
      f"{100 * row['fraction']:.1f}",
      f"{row['ms_a_step']:.4g}",
      f"{row['calls_a_step']:.4g}",
      *(f"{rate:,.4g}" if rate else "" for rate in rates),
    ))  # fmt: skip
  parts = []
  for name, row in report["parts"].items():
    backward = row["backward"] / max(row["fraction"], 1e-12)
    parts.append(
      (name, f"{100 * row['fraction']:.1f}", f"{100 * backward:.0f}")
    )
  title += f", a step on {report['devices']} x {report['device']}"
  console.print_table(heads, operations, title, lines=True)
  console.print_table(("part", "time, %", "of that backward, %"), parts)
  seconds, steps = report["seconds"], report["steps"]
  console.make().print(
    f"{steps} steps: {seconds:.4g} s, {1e3 * seconds / steps:.4g} ms a step. "
    f"Busy for {100 * report['busy']:.1f}%; the rest of the time a device "
    f"waits for the host.\n\n"
    f"Perfetto: on https://ui.perfetto.dev open {report['perfetto']}\n"
    f"XProf:    pip install xprof; xprof --logdir={out}",
    soft_wrap=True,
  )
