"""The programs `evaluate` and `halting`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from trm_jax.cli import app, report
from trm_jax.config import Experiment
from trm_jax.core.model import Params
from trm_jax.data.task import Split
from trm_jax.draw import curves
from trm_jax.errors import UserError
from trm_jax.run import files, processes, result
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.solve import calibration, evaluate, held_out, score, vote
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Rollouts, Solver


@dataclasses.dataclass(frozen=True)
class Tested:
  """A run and the puzzles to test it on."""

  folder: RunFolder
  experiment: Experiment  # of the run, with the data of the test
  puzzles: Split
  split: str  # "test" or "train"
  data: str  # source of the puzzles if not the run's own, or ""
  unseen: str  # the embedding of puzzles that were not trained on

  @property
  def kind(self) -> str:
    """Name of the puzzles in titles."""
    return result.puzzles_in_words(self.split, self.data)

  def restore(self, checkpoint: str) -> tuple[int, Params]:
    """The run's model at a checkpoint, see `held_out.restore`."""
    return held_out.restore(
      self.folder, self.experiment, checkpoint, self.unseen
    )

  def write(
    self, step: int, records: Sequence[Any], ballot: Any, **more: Any
  ) -> list[pathlib.Path]:
    """Writes `result.json` and, with a ballot, the submission."""
    paths = [self.folder.result]
    result.write(
      paths[0], step, records, split=self.split, data=self.data, **more
    )
    if ballot:
      task = self.experiment.task
      _, pairs = vote.questions_of(self.puzzles, task)
      paths.append(self.folder.submission)
      write_json(paths[-1], vote.submission(ballot, pairs, task))
    return paths

  def draw(self, name: str, step: int, plot: Any, *values: Any) -> pathlib.Path:
    """Draws a picture into the run's folder, which may be remote."""
    path = self.folder.plots / f"{name}.png"
    with files.written_locally(path) as file:
      plot(*values, file, report.title(self.experiment, step, self.kind))
    return path


@contextlib.contextmanager
def several_processes(join: Callable[[], None], workdir: str) -> Iterator[None]:
  """Joins the processes; the first runs the block before the others."""
  # There is nothing to save on SIGTERM.
  jax.config.update("jax_enable_preemption_service", False)
  join()
  app.agree(RunFolder(workdir).read_config())
  with processes.leader_first("data"):
    yield


def by_depth(tested: Tested, checkpoints: Sequence[str], depths: list[int]):
  """Evaluates every depth; the copies of several checkpoints vote together."""
  has_copies = tested.puzzles.symmetries is not None
  if len(checkpoints) > 1 and not has_copies:
    raise UserError(
      f"--checkpoint={','.join(checkpoints)}: several checkpoints can only "
      "vote where puzzles have copies, as in ARC; name one"
    )
  if not tested.experiment.model.is_recursive:
    depths = [1]
  ballots = evaluate.new_ballots(depths) if has_copies else None
  records, steps = [], []
  for which in checkpoints:
    step, params = tested.restore(which)
    if step in steps:
      continue  # "best" may equal "last", and must not vote twice
    records = report.evaluate_depths(
      tested.experiment, step, params, tested.puzzles, depths, ballots
    )
    steps.append(step)
  if not processes.is_leader():
    return
  title = f"{tested.folder.path}, step {steps[-1]}"
  if len(steps) > 1:
    title += f"; votes of steps {', '.join(map(str, steps))} together"
  more: dict[str, Any] = {"voting_checkpoints": steps} if has_copies else {}
  ballot = ballots and ballots[max(depths)]
  paths = tested.write(steps[-1], records, ballot, **more)
  if "exact_accuracy" in records[0]:
    paths.append(tested.draw("depth", steps[-1], curves.depth_curve, records))
  report.print_records(records, title, tested.kind)
  print(f"wrote {', '.join(map(str, paths))}")


def run_rollouts(
  params: Params,
  experiment: Experiment,
  puzzles: Split,
  settings: SolveConfig,
  depths: Sequence[int],
) -> Rollouts:
  """Runs the rollouts of a split; `seconds` does not include compiling."""
  solver = Solver(
    params, experiment.model, experiment.task, experiment.eval.batch_size
  )
  inputs, _, ids = evaluate.as_shown(puzzles, experiment.task)
  with report.progress_bar("solving") as on_progress:
    solver.compile(len(inputs), settings, depths)
    return solver.solve(
      inputs, ids, settings, depths, prune=False, on_progress=on_progress
    )


def by_rollouts(
  tested: Tested,
  checkpoint: str,
  settings: SolveConfig,
  depths: list[int],
  breadths: list[int],
  selects: list[str],
  calibrate: str | None,
):
  """Evaluates depth x breadth with halting, and fits a calibration."""
  experiment, puzzles = tested.experiment, tested.puzzles
  task = experiment.task
  if "," in checkpoint:
    raise UserError(
      f"--checkpoint={checkpoint}: several checkpoints can only vote at "
      "breadth 1 and fixed depth; name one"
    )
  if calibrate and (tested.split != "test" or puzzles.symmetries is not None):
    raise UserError(
      f"--calibrate={calibrate}: needs held-out puzzles without copies, whose "
      "answers can be right or wrong one by one; leave it out here"
    )
  step, params = tested.restore(checkpoint)
  found = run_rollouts(params, experiment, puzzles, settings, depths)
  if not processes.is_leader():
    return  # all have the same results
  ballot = None
  inputs, labels, _ = evaluate.as_shown(puzzles, task)
  if puzzles.symmetries is not None:
    records, ballot = score.vote_grid(found, puzzles, task, breadths)
  else:
    records = score.grid(found, inputs, labels, task, breadths, selects)
  records = [r | {"halt": settings.halting_label} for r in records]
  speed = score.throughput(found)
  paths = tested.write(
    step, records, ballot, settings=dataclasses.asdict(settings), speed=speed
  )
  if "exact_accuracy" in records[0]:
    paths.append(tested.draw("solve", step, curves.solve_grid, records))
  calibrated = ""
  if calibrate:
    made, calibrated = _calibrate(
      tested, step, labels, found, calibrate, settings.seed
    )
    paths += made
  report.print_records(
    records, f"{tested.folder.path}, step {step}", tested.kind
  )
  print(
    f"{speed['puzzles_per_second']:.1f} puzzles/s at breadth "
    f"{settings.breadth}, {speed['flops_per_puzzle']:.2e} FLOPs each"
  )
  if calibrated:
    print(calibrated)
  print(f"wrote {', '.join(map(str, paths))}")


def _calibrate(
  tested: Tested,
  step: int,
  labels: np.ndarray,
  found: Rollouts,
  kind: str,
  seed: int,
) -> tuple[list[pathlib.Path], str]:
  """Fits the confidence of first rollouts at all depths, as halting uses it.

  Returns the written files, and what to print.
  """
  labelled = np.flatnonzero(labels.any(-1))
  right = score.is_right(found.answers[labelled, :1], labels[labelled])[:, 0]
  q = found.q_halt[labelled, 0]  # [N, M]
  before, after = calibration.evaluate_fit(q, right, kind, seed)
  fitted = calibration.fit(q, right, kind).to_json()
  fitted |= {"checkpoint": step, "data": tested.data}
  write_json(tested.folder.calibration, fitted)
  picture = tested.draw("reliability", step, curves.reliability, before, after)
  return [tested.folder.calibration, picture], (
    f"calibration error {before.error:.1%}, {after.error:.1%} after "
    f"{kind} calibration on the other half of {len(q)} puzzles, over the "
    f"answers at {q.shape[1]} depths"
  )


def compare_halting(tested: Tested, checkpoint: str, depth: int, within: float):
  """Chooses halting rules on half of the puzzles, and times them on the others.

  They may lose `within` percentage points of accuracy.
  """
  experiment = tested.experiment
  if not experiment.model.is_recursive:
    raise UserError(
      f"family={experiment.model.family!r} takes a single step: there is "
      "nothing to halt"
    )
  count = len(tested.puzzles)
  order = np.random.default_rng(experiment.eval.seed).permutation(count)
  if count < 2:
    raise UserError("there are fewer than two puzzles: give more with --data")
  tuned, timed = (tested.puzzles.take(h) for h in np.array_split(order, 2))
  inputs, tuned_labels, _ = evaluate.as_shown(tuned, experiment.task)
  labels = evaluate.as_shown(timed, experiment.task)[1]
  if not (tuned_labels.any() and labels.any()):
    raise UserError("no puzzle has a label: there is nothing to compare with")
  step, params = tested.restore(checkpoint)
  fixed = SolveConfig(depth=depth)
  found = run_rollouts(params, experiment, tuned, fixed, range(1, depth + 1))
  replayed = score.replay(found, inputs, tuned_labels, experiment.task, depth)
  best = score.cheapest(replayed, within)
  measured = []
  for settings in (record["rule"] for record in [replayed[0], *best]):
    found = run_rollouts(params, experiment, timed, settings, [])
    right = score.is_right(found.answers, labels)[labels.any(-1), 0, 0]
    steps = found.steps[:, 0, 0]
    record = score.halting_record(settings, right, steps, found.flops_per_step)
    measured.append(record | score.throughput(found))
  for record in measured:
    record["speedup"] = (
      record["puzzles_per_second"] / measured[0]["puzzles_per_second"]
    )
  path = tested.folder.path / "halting.json"
  written = {
    name: [r | {"rule": dataclasses.asdict(r["rule"])} for r in records]
    for name, records in (("replayed", replayed), ("measured", measured))
  }
  facts = {"checkpoint": step, "depth": depth, "data": tested.data}
  write_json(path, facts | written)
  picture = tested.draw("halting", step, curves.halting_rules, replayed)
  bold = {i for i, r in enumerate(replayed) if any(r is one for one in best)}
  title = f"replayed on {len(tuned)} {tested.kind}"
  report.print_records(replayed, title, bold=bold)
  report.print_records(
    measured, f"measured on {len(timed)} other {tested.kind}"
  )
  print(f"wrote {path}, {picture}")
