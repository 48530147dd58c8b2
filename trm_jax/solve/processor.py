"""`TRMProcessor`: a trained model that solves puzzles given in Python."""

import collections
import copy
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge
from scipy import special

from trm_jax.data.questions import Question
from trm_jax.data.task import judge
from trm_jax.errors import UserError
from trm_jax.run import pretrained
from trm_jax.run.pretrained import Pretrained
from trm_jax.solve import calibration as calibration_lib
from trm_jax.solve import forms, reasoning
from trm_jax.solve.choose import Answers
from trm_jax.solve.held_out import with_mean_embedding
from trm_jax.solve.reasoning import Alternative, Reasoning, Step
from trm_jax.solve.rules import SolveConfig
from trm_jax.solve.solver import Solver


class TRMProcessor:
  """Solves puzzles with a trained model.

  ```python
  processor = TRMProcessor.from_pretrained("runs/demo")
  result = processor.reason("1.....2....")
  ```

  Args:
    model: from `pretrained.load`.
    config: fields of `ReasonConfig` by name.
    devices: by default all of this process.

  Raises:
    UserError: a field of the config does not exist, is wrong, or does not suit
      the model.
  """

  def __init__(
    self,
    model: Pretrained,
    config: Mapping[str, Any] | None = None,
    devices: Sequence[Any] | None = None,
  ):
    self.config = reasoning.read_config(config)
    _refuse_fork()
    self.model = model
    self._ids = {name: number for number, name in enumerate(model.names)}
    params = model.params
    if self.config.puzzle_id == "mean":
      params = with_mean_embedding(params, len(model.names))
    self._calibration: Callable[[Any], np.ndarray] = special.expit
    self._threshold = float(special.logit(self.config.confidence_threshold))
    if model.calibration is not None:
      found = calibration_lib.read(model.calibration)
      self._calibration = found
      self._threshold = found.threshold(self.config.confidence_threshold)
    self._cache: collections.OrderedDict[Any, Reasoning]
    self._cache, self._cache_size = collections.OrderedDict(), 0
    experiment = model.experiment
    self._task = experiment.task
    self._devices = jax.local_devices() if devices is None else devices
    self._solver = Solver(
      params, experiment.model, experiment.task, self.config.batch_size,
      self._devices,
    )  # fmt: skip
    # Solving no puzzles checks that the settings suit the model.
    empty = np.zeros((0, experiment.task.seq_len), np.uint8)
    self._solver.solve(empty, np.zeros(0, np.int32), self._settings(False))

  @classmethod
  def from_pretrained(
    cls,
    path: str | os.PathLike,
    config: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
  ) -> "TRMProcessor":
    """Loads a model from a run's folder or an exported `.safetensors`.

    Raises:
      UserError: if it cannot be read, or a field of the config is wrong.
    """
    reasoning.read_config(config)  # report a typo before the weights load
    _refuse_fork()
    return cls(pretrained.load(path, checkpoint), config)

  def reason(self, puzzle: Any, allow_multiple_solutions: bool = False) -> Any:
    """Solves one puzzle, or a list of them.

    Args:
      puzzle: a text in the task's form, or rows of texts or numbers (Sudoku:
        digits, 0 for a blank; ARC: colours) in lists or an array; for ARC also
        a task as in its json, or an object of tasks by id. A list or tuple of
        these, or an array of boards, is many puzzles.
      allow_multiple_solutions: whether to run several rollouts, and return
        all their different answers as `Reasoning.alternatives`.

    Returns:
      A `Reasoning`; for many puzzles, or an ARC task with several test grids,
      a list of them.

    Raises:
      UserError: if something is not a puzzle of the model's task, or all
        rollouts would be the same.
    """
    many = forms.listed(puzzle, self._task)
    if many is None:
      found = forms.read(puzzle, self._task, "puzzle")
      return _unwrapped(self.solve(found, allow_multiple_solutions))
    parts = [
      forms.read(one, self._task, f"puzzle {number}")
      for number, one in enumerate(many, 1)
    ]
    flat = list(itertools.chain.from_iterable(parts))
    results = iter(self.solve(flat, allow_multiple_solutions))
    return [_unwrapped([next(results) for _ in part]) for part in parts]

  def solve(
    self,
    asked: Sequence[Question],
    allow_multiple_solutions: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> list[Reasoning]:
    """Solves questions that have been read; see `reason`.

    `on_progress` is called with (rollouts done, rollouts in all); answers from
    the cache are not counted.
    """
    _refuse_fork()
    ids = [self._puzzle_id(question) for question in asked]
    keys = [
      (question.tokens.tobytes(), number, allow_multiple_solutions)
      for question, number in zip(asked, ids, strict=True)
    ]
    known = {key: self._cache[key] for key in keys if key in self._cache}
    new = {key: row for row, key in enumerate(keys) if key not in known}
    if new:
      rows = list(new.values())
      found = self._solve_new(
        [asked[row] for row in rows],
        np.array([ids[row] for row in rows], np.int32),
        allow_multiple_solutions,
        on_progress,
      )
      known |= dict(zip(new, found, strict=True))
    results = [
      dataclasses.replace(known[key], name=question.name)
      for question, key in zip(asked, keys, strict=True)
    ]
    if self._cache_size:
      results = copy.deepcopy(results)  # callers may change them
      self._cache |= known
      for key in keys:
        self._cache.move_to_end(key)
      while len(self._cache) > self._cache_size:
        self._cache.popitem(last=False)
    return results

  def enable_pattern_cache(self, max_size: int = 1000):
    """Keeps the answers to the last `max_size` puzzles."""
    if type(max_size) is not int or max_size < 1:
      raise UserError(f"max_size={max_size!r}: must be a number of 1 or more")
    self._cache, self._cache_size = collections.OrderedDict(), max_size

  def set_memory_limit(self, limit: str | float):
    """Lowers the batch size until each device needs at most this memory.

    `limit` is in bytes, or a text such as "4GB" or "512MiB". Raises UserError
    if it is neither, or one puzzle needs more.
    """
    allowed = _bytes(limit)
    _refuse_fork()
    # Noise takes memory, so measure with noise if possible.
    settings = self._settings(self._rollouts_differ)
    slots = self.config.batch_size
    least = min(slots, len(self._devices))  # one per device
    marks = self._marks(settings)
    # A sixteenth for the queue and the results; the rest is for computing.
    fits = int(min(self._solver.memory_bytes, allowed / 16))
    self._solver.memory_bytes = fits
    while (needed := self._solver.memory(slots, settings, marks)) > allowed:
      if slots == least:
        raise UserError(
          f"memory limit {limit!r}: a single rollout needs "
          f"{math.ceil(needed / 1e6):,} MB on a device; allow that or more"
        )
      slots = max(slots // 2, least)
    self._solver.slots = slots

  def _puzzle_id(self, question: Question) -> int:
    """The row of the puzzle table of an ARC task; 0 for other tasks."""
    if len(self._ids) <= 1:  # puzzles have no names
      return 0
    number = self._ids.get(question.name.rpartition("_")[0], 0)
    if not number and self.config.puzzle_id == "error":
      raise UserError(
        f"{question.name}: the model was not trained on this task, so it has "
        "no embedding; choose puzzle_id='mean' (of all embeddings) or 'blank' "
        "(none)"
      )
    return number

  @property
  def _rollouts_differ(self) -> bool:
    """Whether several rollouts of a puzzle would differ."""
    is_recursive = self.model.experiment.model.is_recursive
    return self.config.views or (is_recursive and self.config.cycle_noise > 0)

  def _settings(self, several: bool) -> SolveConfig:
    config = self.config
    breadth = config.breadth
    if several:
      breadth = max(breadth, config.alternatives_breadth)
    if (several or breadth > 1) and not self._rollouts_differ:
      option = "allow_multiple_solutions" if several else f"breadth={breadth}"
      raise UserError(
        f"{option}: all rollouts would be the same; set views, or the "
        "cycle_noise of a model that recurs"
      )
    halt = ()
    if config.early_stopping:
      halt = ("q", "solved") if self._task.is_solution else ("q",)
    try:
      return SolveConfig(
        depth=config.max_recursion_depth,
        breadth=breadth,
        halt=halt,
        threshold=self._threshold,
        cycle_noise=config.cycle_noise,
        views=config.views,
        select=config.select,
        seed=config.seed,
      )
    except ValueError as error:
      raise UserError(f"config.{error}") from error

  def _marks(self, settings: SolveConfig) -> Sequence[int]:
    """The depths at which answers are kept."""
    return range(1, settings.depth + 1) if self.config.verbose_reasoning else ()

  def _solve_new(
    self,
    new: Sequence[Question],
    ids: np.ndarray,
    several: bool,
    on_progress: Callable[[int, int], None],
  ) -> list[Reasoning]:
    """Solves questions that are not cached."""
    settings = self._settings(several)
    inputs = np.stack([question.tokens for question in new])
    rollouts = self._solver.solve(
      inputs, ids, settings, self._marks(settings), prune=not several,
      on_progress=on_progress,
    )  # fmt: skip
    found = Answers.of(rollouts, -1, settings.breadth)
    solved = None
    if self._task.is_solution:
      solved = judge(inputs, found.answers, self._task)
    chosen = found.choose(settings.select, solved).tolist()
    confidences = self._calibration(found.q_halt)
    results = []
    for row, (question, k) in enumerate(zip(new, chosen, strict=True)):
      steps = int(found.steps[row, k])
      kept = steps if self.config.verbose_reasoning else 0
      # Copied, because views would keep the whole batch in memory.
      tokens = found.answers[row, k].copy()
      history = rollouts.answers[row, k, :kept].copy()
      after_steps = self._calibration(rollouts.q_halt[row, k, :kept]).tolist()
      alternatives = ()
      if several:
        alternatives = self._alternatives(found, row, confidences[row], solved)
      results.append(
        Reasoning(
          name=question.name,
          answer=self._task.decode(tokens),
          confidence=float(confidences[row, k]),
          steps=steps,
          checked=None if solved is None else bool(solved[row, k]),
          alternatives=alternatives,
          reasoning_history=tuple(
            Step(step, self._task.decode(answer), confidence)
            for step, (answer, confidence) in enumerate(
              zip(history, after_steps, strict=True), 1
            )
          ),
          flops=float(found.steps[row].sum() * rollouts.flops_per_step),
          question=question.tokens,
          tokens=tokens,
          history=history,
        )
      )
    return results

  def _alternatives(
    self,
    found: Answers,
    row: int,
    confidences: np.ndarray,
    solved: np.ndarray | None,
  ) -> tuple[Alternative, ...]:
    """The different answers to a puzzle, the most frequent first."""
    running = np.flatnonzero(found.steps[row] > 0).tolist()
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for k in running:
      # Answers are equal if their texts are: padding makes no difference.
      groups[self._task.render(found.answers[row, k])].append(k)
    alternatives = [
      Alternative(
        answer=self._task.decode(found.answers[row, members[0]]),
        fraction=len(members) / len(running),
        confidence=float(confidences[members].mean()),
        checked=None if solved is None else bool(solved[row, members[0]]),
      )
      for members in groups.values()
    ]
    return tuple(
      sorted(alternatives, key=lambda one: (-one.fraction, -one.confidence))
    )


# Set in a child process, as JAX's threads do not survive a fork of the parent.
_is_forked = False


def _on_fork():
  global _is_forked
  _is_forked = xla_bridge.backends_are_initialized()


os.register_at_fork(after_in_child=_on_fork)


def _refuse_fork():
  """Raises a `UserError` in a fork of a process that has used JAX's devices."""
  if _is_forked:
    raise UserError(
      "this process was made by os.fork() after its parent had used JAX, whose "
      "threads it lacks: any call would wait forever. Make processes with "
      "multiprocessing.get_context('spawn'), and the processor in each of them"
    )


def _unwrapped(results: list[Reasoning]) -> Any:
  return results[0] if len(results) == 1 else results


def _bytes(limit: str | float) -> float:
  size = float("nan")
  if isinstance(limit, str):
    pattern = r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?))?B?\s*"
    if found := re.fullmatch(pattern, limit, re.IGNORECASE):
      number, unit, binary = found.groups()
      power = " KMGT".index(unit.upper()) if unit else 0
      size = float(number) * (1024 if binary else 1000) ** power
  elif type(limit) in (int, float):
    size = float(limit)
  if not 0 < size < math.inf:
    raise UserError(
      f"memory limit {limit!r}: must be bytes, or a text such as '4GB'"
    )
  return size
