"""Evaluates a trained run: depth, breadth, halting, votes.

    python -m experiments.evaluate --workdir=DIR [--depth=1,2,4,8,16,32]
        [--checkpoint=best|last|STEP] [--puzzles=N] [--data=SOURCE]
        [--split=test|train] [--copies=N] [--puzzle_id=error|mean|blank]
        [--skip_bad_rows]
    ... [--breadth=1,8] [--halt=q,unchanged,residual,solved] [--views]
        [--select=q,vote,residual,first,solved] [--calibrate=isotonic]

Prints a table, and writes `result.json` and a plot in the folder.

The second form runs several rollouts of each puzzle, halts them early, or
both: each depth x breadth x way of choosing is a row, with the share of
puzzles that any rollout gets right beside it. --calibrate measures how honest
the halting head is, and keeps the cure in `calibration.json`.

In ARC the augmented copies of a task vote: pass@k is the share of test grids
that are among the k answers with most votes, and `submission.json` has the
first two in the form of Kaggle's contest. Several checkpoints separated by
commas vote together, which published scores often do without saying so.
Tasks that were not trained on have no embedding: --puzzle_id says what then.

Several processes share the first form: give each --coordinator,
--num_processes and --process_id, or --distributed, as in training.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from trm_jax.cli import app, report, rollouts, solve_flags
from trm_jax.config import Experiment
from trm_jax.data import datasets
from trm_jax.data.task import Split
from trm_jax.draw import curves as plots
from trm_jax.errors import UserError
from trm_jax.run import files as storage
from trm_jax.run import processes
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.solve import calibration, evaluate, score, vote
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Rollouts

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "best", "best, last, a step; or some of these, with commas."
)
_DEPTH = flags.DEFINE_string(
  "depth", "1,2,4,8,16,32", "Depths to report, in supervision steps."
)
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["test", "train"], "train: the puzzles that it has learnt."
)
_PUZZLES = flags.DEFINE_integer(
  "puzzles", None, "Test puzzles; 0 for all. As in training by default.",
  lower_bound=0,
)  # fmt: skip
_COPIES = flags.DEFINE_integer(
  "copies", -1, "ARC: copies that vote; 0 for all. As in training by default.",
  lower_bound=-1,
)  # fmt: skip
_DATA = flags.DEFINE_string(
  "data", "", "Test on this csv file, ARC source or reference folder instead."
)
_PUZZLE_ID = flags.DEFINE_enum(
  "puzzle_id", "error", datasets.UNSEEN,
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
_BREADTH = flags.DEFINE_string("breadth", "1", "Rollouts to choose from.")
_SELECT = flags.DEFINE_list(
  "select", ["q"], "Which rollout answers: q, vote, residual, first, solved."
)
_CALIBRATE = flags.DEFINE_enum(
  "calibrate",
  None,
  calibration.KINDS,
  "Fit the confidence to held-out puzzles.",
)
_settings = solve_flags.define()
_join = app.define_processes()
_SKIP_BAD_ROWS = app.define_skip_bad_rows()


def main(argv: list[str]) -> int:
  """Evaluates the run in `--workdir`."""
  app.no_arguments(argv)
  # Nothing is to be saved when a signal asks to stop.
  jax.config.update("jax_enable_preemption_service", False)
  _join()
  depths = app.whole_numbers(_DEPTH.value, "depth")
  breadths = app.whole_numbers(_BREADTH.value, "breadth")
  settings = _settings(depth=max(depths), breadth=max(breadths))
  solve_flags.check_selects(_SELECT.value)
  folder = RunFolder(_WORKDIR.value)
  app.agree(folder.read_config())
  with processes.leader_first("data"):
    experiment, split = report.load_held_out(
      folder,
      _DATA.value,
      _SPLIT.value,
      puzzles=_PUZZLES.value,
      copies=_COPIES.value,
      unseen=_PUZZLE_ID.value,
      skip_bad_rows=_SKIP_BAD_ROWS.value,
    )
  is_plain = settings.breadth == 1 and not settings.halt
  if is_plain and not (settings.flops or settings.seconds or _CALIBRATE.value):
    _by_depth(folder, experiment, split, depths)
  else:
    processes.refuse_several("evaluation by rollouts, halting or calibration")
    _by_rollouts(folder, experiment, split, settings, depths, breadths)
  return 0


def _by_depth(
  folder: RunFolder, experiment: Experiment, split: Split, depths: list[int]
):
  """Every depth in one pass, and the votes of one or more checkpoints."""
  copies = experiment.task.copies
  checkpoints = _CHECKPOINT.value.split(",")
  if len(checkpoints) > 1 and not copies:
    raise UserError(
      f"--checkpoint={_CHECKPOINT.value}: several checkpoints can only vote "
      "where puzzles have copies, as in ARC; name one"
    )
  ballots = evaluate.new_ballots(depths) if copies else None
  records, steps = [], []
  for which in checkpoints:
    step, params = report.restore(folder, experiment, which, _PUZZLE_ID.value)
    if step in steps:
      continue  # "best" may be "last", and must not vote twice
    records = report.evaluate_depths(
      experiment, step, params, split, depths, ballots
    )
    steps.append(step)
  told = f"step {steps[-1]}"
  if len(steps) > 1:
    told += f"; votes of steps {', '.join(map(str, steps))} together"
  report.print_depths(records, f"{folder.path}, {told}", _kind())
  if processes.is_leader():
    result = _result(steps[-1]) | {"depths": records}
    if copies:
      result["voting_checkpoints"] = steps
    write_json(folder.result, result)
    made = [folder.result]
    if ballots:
      made.append(_submit(folder, experiment, split, ballots[max(depths)]))
    if "exact_accuracy" in records[0]:
      made.append(folder.plots / "depth.png")
      with storage.written_locally(made[-1]) as picture:
        plots.depth_curve(records, picture, report.title(experiment, steps[-1]))
    print(f"wrote {', '.join(map(str, made))}")


def _by_rollouts(
  folder: RunFolder,
  experiment: Experiment,
  split: Split,
  settings: SolveConfig,
  depths: list[int],
  breadths: list[int],
):
  """Depth x breadth, with halting; and calibration, if asked for."""
  if "," in _CHECKPOINT.value:
    raise UserError(
      f"--checkpoint={_CHECKPOINT.value}: several checkpoints can only vote "
      "at breadth 1 and fixed depth; name one"
    )
  if _CALIBRATE.value and (
    _SPLIT.value != "test" or split.symmetries is not None
  ):
    raise UserError(
      f"--calibrate={_CALIBRATE.value}: needs held-out puzzles without copies, "
      "whose answers can be right or wrong one by one; leave it out here"
    )
  step, params = report.restore(
    folder, experiment, _CHECKPOINT.value, _PUZZLE_ID.value
  )
  found = rollouts.run(params, experiment, split, settings, depths)
  records, ballot = rollouts.grid(
    found, experiment, split, settings, breadths, _SELECT.value
  )
  rollouts.print_grid(records, f"{folder.path}, step {step}", _kind())
  speed = rollouts.throughput(found)
  print(
    f"{speed['puzzles_per_second']:.1f} puzzles/s at breadth "
    f"{settings.breadth}, {speed['flops_per_puzzle']:.2e} FLOPs each"
  )
  result = _result(step) | {"solve": dataclasses.asdict(settings)}
  write_json(folder.result, result | {"grid": records, "speed": speed})
  made = [folder.result]
  if ballot:
    made.append(_submit(folder, experiment, split, ballot))
  title = report.title(experiment, step)
  if "exact_accuracy" in records[0]:
    made.append(folder.plots / "solve.png")
    with storage.written_locally(made[-1]) as picture:
      plots.solve_grid(records, picture, title)
  if _CALIBRATE.value:
    made += _calibrate(folder, step, split, found, settings, title)
  print(f"wrote {', '.join(map(str, made))}")


def _submit(
  folder: RunFolder, experiment: Experiment, split: Split, ballot: vote.Ballot
) -> pathlib.Path:
  """Writes the answers that a vote came to, for Kaggle's contest."""
  task = experiment.task
  _, pairs = vote.questions_of(split, task)
  write_json(folder.submission, vote.submission(ballot, pairs, task))
  return folder.submission


def _calibrate(
  folder: RunFolder,
  step: int,
  split: Split,
  found: Rollouts,
  settings: SolveConfig,
  title: str,
) -> list[pathlib.Path]:
  """Fits confidence to the undisturbed rollouts, at all depths together.

  Whether to halt is asked early as well, where more answers are wrong.
  """
  labels = split.labels[split.rows[0]]
  labelled = np.flatnonzero(labels.any(-1))
  right = score.is_right(found.answers[labelled, :1], labels[labelled])[:, 0]
  q = found.q_halt[labelled, 0]  # [N, M]
  kind = _CALIBRATE.value
  assert kind, "asked for"
  before, after = calibration.evaluate_fit(q, right, kind, settings.seed)
  print(
    f"calibration error {before.error:.1%}, {after.error:.1%} after "
    f"{kind} calibration on the other half of {len(q)} puzzles, over the "
    f"answers at {q.shape[1]} depths"
  )
  fitted = calibration.fit(q, right, kind).to_json()
  write_json(folder.calibration, {"checkpoint": step} | fitted)
  picture = folder.plots / "reliability.png"
  with storage.written_locally(picture) as file:
    plots.reliability(before, after, file, title)
  return [folder.calibration, picture]


def _result(step: int) -> dict[str, Any]:
  return {"checkpoint": step, "data": _DATA.value, "split": _SPLIT.value}


def _kind() -> str:
  return "held-out" if _SPLIT.value == "test" else "training"


if __name__ == "__main__":
  app.run(main)
