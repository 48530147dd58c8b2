"""What halting saves: finds the cheapest rules that cost no accuracy.

    python -m experiments.halting --workdir=DIR [--depth=16] [--within=0.2]
        [--checkpoint=best|last|STEP] [--data=SOURCE] [--puzzles=N]
        [--puzzle_id=error|mean|blank] [--skip_bad_rows]

Half of the held-out puzzles run at fixed depth, and every rule is replayed on
what they answered after each step: the halting head at some thresholds, answers
that stand, latents that rest and, where a task has rules, answers that are
solutions. Of each kind the cheapest within so many points of the fixed depth,
and one notch stricter to be on the safe side, is then used on the other half,
and timed beside it. Prints both tables, and writes
`halting.json` and `plots/halting.png` in the folder.
"""

import dataclasses
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from trm_jax.cli import app, report, rollouts, solve_flags
from trm_jax.data import datasets
from trm_jax.data.task import judge
from trm_jax.draw import curves as plots
from trm_jax.errors import UserError
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.solve import score
from trm_jax.solve.rules import SolveConfig

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "The fixed depth to save from.", lower_bound=2, upper_bound=256
)
_WITHIN = flags.DEFINE_float(
  "within", 0.2, "Points of accuracy that a rule may cost.", lower_bound=0.0
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_DATA = flags.DEFINE_string("data", "", "Test on this source instead.")
_PUZZLES = flags.DEFINE_integer(
  "puzzles", None, "Test puzzles; 0 for all. As in training by default.",
  lower_bound=0,
)  # fmt: skip
_PUZZLE_ID = flags.DEFINE_enum(
  "puzzle_id", "error", datasets.UNSEEN,
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
_SKIP_BAD_ROWS = app.define_skip_bad_rows()

# What is tried of each rule, the laxest first.
_TRIED = {
  "q": ("threshold", (0.0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)),
  "unchanged": ("patience", (1, 2, 3, 4, 6)),
  "residual": ("tolerance", (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)),
  "solved": ("patience", (1,)),
}


def main(argv: list[str]) -> int:
  """Finds and times halting rules for the run in `--workdir`."""
  app.no_arguments(argv)
  folder = RunFolder(_WORKDIR.value)
  experiment, split = report.load_held_out(
    folder, _DATA.value, puzzles=_PUZZLES.value, copies=1,
    unseen=_PUZZLE_ID.value, skip_bad_rows=_SKIP_BAD_ROWS.value,
  )  # fmt: skip
  if not experiment.model.is_recursive:
    raise UserError(
      f"family={experiment.model.family!r} takes a single step: there is "
      "nothing to halt"
    )
  order = np.random.default_rng(experiment.eval.seed).permutation(len(split))
  if len(order) < 2:
    raise UserError("there are fewer than two puzzles: give more with --data")
  tuned, timed = (split.take(half) for half in np.array_split(order, 2))
  _, labels, _ = rollouts.as_shown(timed, experiment)
  for known in (rollouts.as_shown(tuned, experiment)[1], labels):
    if not known.any():
      raise UserError("no puzzle has a label: there is nothing to compare with")
  step, params = report.restore(
    folder, experiment, _CHECKPOINT.value, _PUZZLE_ID.value
  )
  rules = _rules(has_rules=experiment.task.is_solution is not None)
  replayed = _replay(params, experiment, tuned, rules)
  fixed, best = replayed[0], _choose(replayed)
  _print(replayed, f"replayed on {len(tuned)} puzzles", best)
  measured = []
  for record in [fixed, *best]:
    found = rollouts.run(params, experiment, timed, record["rule"], [])
    right = score.is_right(found.answers, labels)[:, 0, 0]
    steps = found.steps[:, 0, 0]
    measured.append(
      _record(record["rule"], right, labels, steps, found.flops_per_step)
      | rollouts.throughput(found)
    )
  for record in measured:
    record["speedup"] = (
      record["puzzles_per_second"] / measured[0]["puzzles_per_second"]
    )
  _print(measured, f"measured on {len(timed)} other puzzles")
  title = report.title(experiment, step)
  picture = folder.plots / "halting.png"
  plots.halting_rules(replayed, picture, title)
  path = folder.path / "halting.json"
  written = {
    name: [
      record | {"rule": dataclasses.asdict(record["rule"])}
      for record in records
    ]
    for name, records in (("replayed", replayed), ("measured", measured))
  }
  write_json(path, {"checkpoint": step, "depth": _DEPTH.value} | written)
  print(f"wrote {path}, {picture}")
  return 0


def _choose(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The cheapest setting of each kind that costs little, but one notch on.

  A setting that is just good enough here is as likely as not to be too lax for
  other puzzles.
  """
  fixed, *others = records
  kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
  for record in others:  # of each kind, the laxest first
    kinds.setdefault(record["rule"].halt, []).append(record)
  chosen = []
  for settings in kinds.values():
    lost = [fixed["exact_accuracy"] - r["exact_accuracy"] for r in settings]
    bad = [i for i, x in enumerate(lost) if 100 * x > _WITHIN.value + 1e-9]
    first = max(bad, default=-1) + 1
    if first < len(settings):
      chosen.append(settings[min(first + 1, len(settings) - 1)])
  return chosen


def _rules(has_rules: bool) -> list[SolveConfig]:
  fixed = SolveConfig(depth=_DEPTH.value)
  return [fixed] + [
    dataclasses.replace(fixed, halt=(halt,), **{field: value})
    for halt, (field, values) in _TRIED.items()
    if has_rules or halt != "solved"
    for value in values
  ]


def _replay(params, experiment, split, rules) -> list[dict[str, Any]]:
  """What each rule would have given, from one run at fixed depth."""
  every = range(1, _DEPTH.value + 1)
  found = rollouts.run(params, experiment, split, rules[0], every)
  inputs, labels, _ = rollouts.as_shown(split, experiment)
  right = score.is_right(found.answers, labels)
  solved = None
  if experiment.task.is_solution:
    solved = judge(inputs, found.answers, experiment.task)
  rows, records = np.arange(len(inputs)), []
  for rule in rules:
    steps = score.halting_steps(found, rule, solved)[:, 0]
    then = right[rows, 0, steps - 1]
    records.append(_record(rule, then, labels, steps, found.flops_per_step))
  return records


def _record(rule, right, labels, steps, flops_per_step) -> dict[str, Any]:
  mean = float(steps.mean())
  return {
    "rule": rule,
    "halt": solve_flags.describe_halting(rule),
    **score.share("exact_accuracy", right[labels.any(-1)]),
    "mean_steps": mean,
    "flops_per_puzzle": mean * flops_per_step,
  }


def _print(records, title: str, chosen=()):
  timed = "speedup" in records[0]
  table = Table("halting", "exact", "mean steps", "FLOPs/puzzle", title=title)
  if timed:
    table.add_column("puzzles/s")
    table.add_column("times as fast")
  for column in table.columns[1:]:
    column.justify = "right"
  for record in records:
    row = [
      record["halt"],
      rollouts.share(record, "exact_accuracy"),
      f"{record['mean_steps']:.2f}",
      f"{record['flops_per_puzzle']:.2e}",
    ]
    if timed:
      row += [f"{record['puzzles_per_second']:.1f}", f"{record['speedup']:.1f}"]
    mark = any(record is one for one in chosen)
    table.add_row(*row, style="bold" if mark else None)
  Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
  app.run(main)
