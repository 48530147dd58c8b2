"""`Solver`: runs rollouts of puzzles in host memory on all devices."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from trm_jax.core import flops
from trm_jax.core.model import ModelConfig, Params, portable
from trm_jax.data.task import Task
from trm_jax.errors import UserError
from trm_jax.run import sharding
from trm_jax.solve import layout, vote
from trm_jax.solve.engine import EngineSettings, Found, Plan, Queue
from trm_jax.solve.rules import SolveConfig

# Bytes of puzzles and answers that a device holds at once.
_MEMORY_BYTES = 2**26
# Shrink the batch by this factor when fewer slots suffice, but not below this.
_SHRINK, _SMALLEST = 4, 8
# Supervision steps per call; fewer with a time limit, to notice its end.
_CHUNK, _TIMED_CHUNK = 32, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
  """The results of K rollouts of N puzzles, at M marks."""

  marks: tuple[int, ...]  # ascending depths at which answers were kept
  # uint8 [N, K, M, S]; after halting, a rollout keeps its last answer.
  answers: np.ndarray
  q_halt: np.ndarray  # float32 [N, K, M], the halting margin
  residual: np.ndarray  # float32 [N, K, M]
  steps: np.ndarray  # int32 [N, K, M]; 0 for pruned rollouts
  halted: np.ndarray  # bool [N, K], by a rule rather than the depth
  spent: int  # supervision steps, summed over rollouts
  passes: int  # supervision steps of batches, summed over devices
  flops_per_step: float  # of one rollout
  seconds: float  # wall time

  @property
  def flops_per_puzzle(self) -> float:
    """Mean FLOPs per puzzle, over all its rollouts."""
    return self.spent * self.flops_per_step / max(len(self.answers), 1)


class Solver:
  """A model on some devices, ready to solve puzzles.

  Programs are compiled for each number of slots, puzzles (rounded up to a power
  of four) and marks, not for each depth, limit or noise. Each device works on
  its part of the puzzles. All processes must call the same methods, and get the
  same results.

  Args:
    params: the model; for `lower`, shapes suffice.
    model: the model's config.
    task: the task.
    slots: rollouts at once, over all devices. May be changed later, as may the
      attribute `memory_bytes`: bytes of puzzles and answers on each device.
    devices: by default those of all processes; for `lower`, descriptions
      suffice.
  """

  def __init__(
    self,
    params: Params,
    model: ModelConfig,
    task: Task,
    slots: int = 256,
    devices: Sequence[Any] | None = None,
  ):
    devices = jax.devices() if devices is None else devices
    self.model = portable(model, devices[0].platform)
    self.task = task
    self.slots = slots
    self.memory_bytes = _MEMORY_BYTES
    self._mesh = jax.make_mesh(
      (len(devices),), ("device",), (AxisType.Auto,), devices=devices
    )
    everywhere = sharding.replicated(self._mesh)
    self._weights = _place(params.weights, everywhere)
    self._initial = _place(params.initial, everywhere)
    self._table = params.puzzle_table

  def solve(
    self,
    inputs: np.ndarray,
    puzzle_ids: np.ndarray,
    settings: SolveConfig,
    marks: Sequence[int] = (),
    *,
    prune: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> Rollouts:
    """Runs all rollouts of some puzzles.

    Args:
      inputs: integers `[N, S]`.
      puzzle_ids: integers `[N]`, rows of the puzzle table.
      settings: depth, breadth, halting and noise.
      marks: depths at which answers are kept, besides the last.
      prune: with select "first", whether to stop the rollouts of a puzzle when
        one halts. Then the first k rollouts do not equal a run of breadth k.
      on_progress: called with (rollouts done, rollouts in all).

    Raises:
      UserError: if the settings do not suit the model or the task.
    """
    self._check(settings, puzzle_ids)
    marks = self._marks(settings, marks)
    started = time.perf_counter()
    deadline = started + (settings.seconds or math.inf)
    total, done, parts = len(inputs) * settings.breadth, 0, []
    for first, last in self._rounds(len(inputs), settings, marks):
      found, places = self._round(
        inputs[first:last], puzzle_ids[first:last],
        self._capacity(last - first), settings, marks, prune, deadline,
        lambda now, done=done: on_progress(done + now, total),
      )  # fmt: skip
      done += (last - first) * settings.breadth
      parts.append((found, places))
    return self._join(parts, marks, settings, time.perf_counter() - started)

  def compile(
    self, puzzles: int, settings: SolveConfig, marks: Sequence[int] = ()
  ):
    """Compiles what `solve` needs for this number of puzzles; solves none."""
    empty = np.zeros((0, self.model.seq_len), np.uint8)
    ids = np.zeros(0, np.int32)
    self._check(settings, ids)
    marks = self._marks(settings, marks)
    counts = {b - a for a, b in self._rounds(puzzles, settings, marks)}
    for capacity in {self._capacity(count) for count in counts}:
      self._round(
        empty, ids, capacity, settings, marks, True, math.inf, lambda _: None
      )

  def memory(
    self, slots: int, settings: SolveConfig, marks: Sequence[int] = ()
  ) -> int:
    """Bytes each device needs with this many slots and a full queue."""
    compiled: Any = self.lower(slots, settings, marks).compile()
    found = compiled.memory_analysis()
    return (
      found.argument_size_in_bytes
      + found.temp_size_in_bytes
      + found.output_size_in_bytes
      - found.alias_size_in_bytes
    )

  def lower(
    self, slots: int, settings: SolveConfig, marks: Sequence[int] = ()
  ) -> jax.stages.Lowered:
    """The program for this many slots and as many puzzles as fit."""
    devices, marks = self._mesh.size, self._marks(settings, marks)
    capacity = self._most_puzzles(settings, marks)
    shared = layout.shared(self._mesh)
    begin, go_on = layout.programs(
      self._mesh, self._plan(settings), -(-slots // devices), capacity,
      len(marks),
    )  # fmt: skip

    def placed(dtype, *dims) -> Any:
      shape = (devices * dims[0], *dims[1:])
      return jax.ShapeDtypeStruct(shape, dtype, sharding=shared)

    queue = Queue(
      inputs=placed(np.uint8, capacity, self.model.seq_len),
      rows=placed(self._table.dtype, capacity, self._table.shape[1]),
      numbers=placed(np.uint32, capacity),
      count=placed(np.int32, 1),
    )
    state = jax.tree.map(
      lambda leaf: placed(
        leaf.dtype, leaf.shape[0] // devices, *leaf.shape[1:]
      ),
      jax.eval_shape(begin),
    )
    numbers = jax.eval_shape(
      lambda: (EngineSettings.of(settings, marks, True), jnp.int32(0))
    )
    return go_on.lower(self._weights, self._initial, queue, *numbers, state)

  def depth_of(self, settings: SolveConfig) -> int:
    """The depth that the budget `settings.flops` allows."""
    if not self.model.is_recursive:
      return 1
    if not settings.flops:
      return settings.depth
    step = flops.inference(self.model, 1) * settings.breadth
    if settings.flops < step:
      raise UserError(
        f"flops={settings.flops:.3g}: one supervision step of "
        f"{settings.breadth} rollouts takes {step:.3g}; allow that or more, or "
        "lower the breadth"
      )
    return min(settings.depth, int(settings.flops // step))

  def _check(self, settings: SolveConfig, puzzle_ids: np.ndarray):
    model, task = self.model, self.task
    if settings.is_noisy and not model.is_recursive and not settings.views:
      raise UserError(
        f"breadth={settings.breadth}: family={model.family!r} has no latents "
        "to perturb, so all rollouts would be the same; use breadth=1, or "
        "views"
      )
    if settings.breadth > 1 and not (settings.is_noisy or settings.views):
      raise UserError(
        f"breadth={settings.breadth}: all rollouts would be the same; set "
        "cycle_noise, initial_noise or views"
      )
    if settings.shows_views and task.views is None:
      raise UserError(
        f"views: {task.name} puzzles are not shown under random symmetries; "
        "leave it out"
      )
    for field, wanted in (
      ("halt", "solved" in settings.halt),
      ("select", settings.select == "solved"),
    ):
      if wanted and task.is_solution is None:
        raise UserError(
          f"{field}='solved': no rules tell whether an answer to {task.name} "
          "is right; choose another"
        )
    rows = self._table.shape[0]
    if len(puzzle_ids) and not 0 <= puzzle_ids.min() <= puzzle_ids.max() < rows:
      raise UserError(
        f"puzzle ids go from {puzzle_ids.min()} to {puzzle_ids.max()}, but the "
        f"model has embeddings for 0 to {rows - 1}"
      )

  def _marks(
    self, settings: SolveConfig, marks: Sequence[int]
  ) -> tuple[int, ...]:
    """Ascending marks that end with the depth."""
    depth = self.depth_of(settings)
    return tuple(sorted({mark for mark in marks if mark < depth} | {depth}))

  def _rounds(
    self, puzzles: int, settings: SolveConfig, marks: Sequence[int]
  ) -> list[tuple[int, int]]:
    """Ranges (first, end) of puzzles that fit into memory together."""
    most = self._most_puzzles(settings, marks) * self._mesh.size
    return list(itertools.pairwise([*range(0, puzzles, most), puzzles]))

  def _most_puzzles(self, settings: SolveConfig, marks: Sequence[int]) -> int:
    """Puzzles that fit into `memory_bytes` of a device: a power of 4."""
    tokens = self.model.seq_len
    # 12 bytes for q_halt, residual and steps.
    answers = settings.breadth * len(marks) * (tokens + 12)
    each = answers + tokens + 4 * self._table.shape[1]
    return 4 ** ((max(self.memory_bytes // each, 1).bit_length() - 1) // 2)

  def _capacity(self, puzzles: int) -> int:
    """Queue size per device: a power of 4, to compile few sizes."""
    each = -(-puzzles // self._mesh.size)
    return 4 ** ((max(each - 1, 0).bit_length() + 1) // 2)

  def _round(
    self,
    inputs: np.ndarray,
    puzzle_ids: np.ndarray,
    capacity: int,
    settings: SolveConfig,
    marks: Sequence[int],
    prune: bool,
    deadline: float,
    on_progress: Callable[[int], None],
  ) -> tuple[Found, np.ndarray]:
    """The results of all devices, and the place of each puzzle in them.

    The puzzles must fit into memory; without any, it compiles all sizes.
    """
    queue, places = self._queue(inputs, puzzle_ids, capacity)
    plan = self._plan(settings)
    slots = min(-(-self.slots // self._mesh.size), capacity * settings.breadth)
    shape = capacity, len(marks)
    begin, go_on = layout.programs(self._mesh, plan, slots, *shape)
    state = begin()
    numbers = EngineSettings.of(settings, marks, prune)
    previous = None
    while True:
      smaller = slots // _SHRINK if slots >= _SHRINK * _SMALLEST else 0
      state, counts = go_on(
        self._weights, self._initial, queue, numbers, jnp.int32(smaller), state
      )  # fmt: skip
      # Dispatch the next call before reading the counts of the last.
      if previous is not None:
        finished, most = (int(number) for number in previous)
        on_progress(finished)
        if len(inputs) and not most:
          break
        if smaller and most <= smaller:
          slots = smaller
          state = layout.compactor(self._mesh, slots)(state)
          _, go_on = layout.programs(self._mesh, plan, slots, *shape)
          previous = None
          continue
        if not most:
          break
      previous = counts
      if time.perf_counter() > deadline:
        numbers = numbers.replace(depth=jnp.int32(1))
    return jax.device_get(layout.whole(self._mesh)(state.found)), places

  def _plan(self, settings: SolveConfig) -> Plan:
    return Plan(
      model=self.model,
      task=self.task,
      breadth=settings.breadth,
      noisy=settings.is_noisy and self.model.is_recursive,
      views=settings.shows_views,
      checks="solved" in settings.halt,
      chunk=_TIMED_CHUNK if settings.seconds else _CHUNK,
    )

  def _queue(
    self, inputs: np.ndarray, puzzle_ids: np.ndarray, capacity: int
  ) -> tuple[Queue, np.ndarray]:
    """The queues of all devices, concatenated, and each puzzle's place."""
    devices = self._mesh.size
    # Round robin, so that a run of hard puzzles is spread over all devices.
    order = np.arange(len(inputs))
    places = order % devices * capacity + order // devices

    def scattered(values):
      out = np.zeros((devices * capacity, *values.shape[1:]), values.dtype)
      out[places] = values
      return out

    # Noise depends on content rather than place.
    content = np.concatenate([np.asarray(puzzle_ids)[:, None], inputs], axis=1)
    rows = _look_up(self._table, scattered(np.asarray(puzzle_ids, np.int32)))
    if not rows.is_fully_addressable:
      rows = layout.whole(rows.sharding.mesh)(rows)
    queue = Queue(
      inputs=scattered(np.asarray(inputs, np.uint8)),
      rows=np.asarray(rows),
      numbers=scattered(vote.fingerprints(content, np)[:, 0]),
      count=np.bincount(places // capacity, minlength=devices).astype(np.int32),
    )
    return sharding.put(queue, layout.shared(self._mesh)), places

  def _join(self, parts, marks, settings, seconds) -> Rollouts:
    """Concatenates the results of all rounds, in the order of the puzzles."""
    breadth, shape = settings.breadth, (0, settings.breadth, len(marks))
    arrays: dict[str, list[np.ndarray]]
    dtypes = {"q_halt": np.float32, "residual": np.float32, "steps": np.int32}
    arrays = {name: [np.zeros(shape, dtype)] for name, dtype in dtypes.items()}
    arrays["answers"] = [np.zeros((*shape, self.model.seq_len), np.uint8)]
    arrays["halted"] = [np.zeros(shape[:2], bool)]
    for found, places in parts:
      for name, values in arrays.items():
        array = getattr(found, name)
        array = array.reshape(-1, breadth, *array.shape[1:])
        values.append(array[places])
    return Rollouts(
      marks=marks,
      **{name: np.concatenate(values) for name, values in arrays.items()},
      spent=sum(int(found.spent.sum()) for found, _ in parts),
      passes=sum(int(found.passes.sum()) for found, _ in parts),
      flops_per_step=float(flops.inference(self.model, 1)),
      seconds=seconds,
    )


def _place(tree: Any, placed: NamedSharding) -> Any:
  """Puts arrays on devices; shapes get the sharding."""

  def one(leaf):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
    if getattr(leaf, "is_fully_addressable", True):
      return jax.device_put(leaf, placed)
    # With several processes, the mesh of the leaf may have another order.
    return sharding.put(layout.whole(leaf.sharding.mesh)(leaf), placed)

  return jax.tree.map(one, tree)


@jax.jit
def _look_up(table, ids):
  return table[ids]
