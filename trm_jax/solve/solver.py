"""The driver: puzzles in host memory -> rollouts, over all devices."""

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

from trm_jax.core import flops, network
from trm_jax.core.network import ModelConfig, Params
from trm_jax.data.task import Task
from trm_jax.errors import UserError
from trm_jax.run import sharding
from trm_jax.solve import layout, vote
from trm_jax.solve.engine import Found, Noise, Plan, Queue, Rules
from trm_jax.solve.rules import SolveConfig

# Bytes that a device keeps of one round of puzzles and their answers.
_ROOM = 2**26
# When a batch is this many times too large for what is left, a smaller takes
# over; but none is smaller than this.
_SHRINK, _SMALLEST = 4, 8
# Supervision steps a call: few enough to show progress, and to mind the time.
_CHUNK, _HURRIED = 32, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
  """What the rollouts of some puzzles came to.

  Attributes:
    marks: ascending depths at which answers were kept, M of them.
    answers: uint8 `[N, K, M, S]`. A rollout that halted before a mark is
      there as it halted.
    q_halt: float32 `[N, K, M]`, the halting margin.
    residual: float32 `[N, K, M]`.
    steps: int32 `[N, K, M]`, supervision steps spent; 0 for a rollout that
      was stopped because a sibling had been first.
    halted: bool `[N, K]`, whether a rule halted the rollout, not its depth.
    spent: supervision steps of all rollouts together.
    passes: supervision steps of the batch, of all devices together.
    flops_per_step: of one rollout.
    seconds: that it took.
  """

  marks: tuple[int, ...]
  answers: np.ndarray
  q_halt: np.ndarray
  residual: np.ndarray
  steps: np.ndarray
  halted: np.ndarray
  spent: int
  passes: int
  flops_per_step: float
  seconds: float

  @property
  def flops_per_puzzle(self) -> float:
    """Mean FLOPs of a puzzle, over all its rollouts."""
    return self.spent * self.flops_per_step / max(len(self.answers), 1)


class Solver:
  """A model on some devices, ready to solve puzzles.

  Programs are compiled once for each number of slots, of puzzles (rounded up
  to a power of four) and of marks; depth, thresholds and noise are numbers in
  them. Each device works through its own part of the puzzles and never waits
  for another.

  Args:
    params: the model; for `lower` it may be only described.
    model: its config.
    task: its task.
    slots: rollouts at once, over all devices. The attribute may be changed; so
      may `room`, the bytes that each device keeps of puzzles and answers.
    devices: of this process; by default all. They may be only described too.
  """

  def __init__(
    self,
    params: Params,
    model: ModelConfig,
    task: Task,
    slots: int = 256,
    devices: Sequence[Any] | None = None,
  ):
    devices = jax.local_devices() if devices is None else devices
    self.model = network.portable(model, devices[0].platform)
    self.task = task
    self.slots = slots
    self.room = _ROOM
    self._mesh = jax.make_mesh(
      (len(devices),), ("device",), (AxisType.Auto,), devices=devices
    )
    whole = sharding.replicated(self._mesh)
    self._weights = _place(params.weights, whole)
    self._initial = _place(params.initial, whole)
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
      settings: how.
      marks: depths at which answers are kept too, besides the last.
      prune: whether rollouts stop when a sibling was first, where that
        decides. Then fewer rollouts do not give a part of what more give.
      on_progress: called with (rollouts done, in all).

    Returns:
      The rollouts.

    Raises:
      UserError: if the settings do not suit the model or the task.
    """
    self._check(settings, puzzle_ids)
    marks = self._marks(settings, marks)
    started = time.perf_counter()
    deadline = started + (settings.seconds or math.inf)
    total, done, parts = len(inputs) * settings.breadth, 0, []
    for first, last in self._rounds(len(inputs), settings, marks):
      room = self._room(last - first)
      queue, places = self._queue(
        inputs[first:last], puzzle_ids[first:last], room
      )
      found = self._round(
        queue, room, settings, marks, prune, deadline,
        lambda now, done=done: on_progress(done + now, total),
      )  # fmt: skip
      done += (last - first) * settings.breadth
      parts.append((found, places))
    return self._join(parts, marks, settings, time.perf_counter() - started)

  def compile(
    self, puzzles: int, settings: SolveConfig, marks: Sequence[int] = ()
  ):
    """Compiles what `solve` will need for so many puzzles, and runs nothing.

    Raises:
      UserError: as `solve`.
    """
    nothing = np.zeros((0, self.model.seq_len), np.uint8)
    ids = np.zeros(0, np.int32)
    self._check(settings, ids)
    marks = self._marks(settings, marks)
    counts = {b - a for a, b in self._rounds(puzzles, settings, marks)}
    for room in {self._room(count) for count in counts}:
      queue, _ = self._queue(nothing, ids, room)
      self._round(queue, room, settings, marks, True, math.inf, lambda _: None)

  def memory(
    self, slots: int, settings: SolveConfig, marks: Sequence[int] = ()
  ) -> int:
    """Bytes that each device needs for so many slots, all told.

    That is for as many puzzles as it can ever be given at once, see `room`.
    """
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
    """The program for so many slots, and as many puzzles as `room` allows."""
    ways, marks = self._mesh.size, self._marks(settings, marks)
    room, shared = self._most(settings, marks), layout.shared(self._mesh)
    begin, go_on = layout.programs(
      self._mesh, self._plan(settings), -(-slots // ways), room, len(marks)
    )

    def placed(dtype, *dims) -> Any:
      shape = (ways * dims[0], *dims[1:])
      return jax.ShapeDtypeStruct(shape, dtype, sharding=shared)

    queue = Queue(
      inputs=placed(np.uint8, room, self.model.seq_len),
      rows=placed(self._table.dtype, room, self._table.shape[1]),
      numbers=placed(np.uint32, room),
      count=placed(np.int32, 1),
    )
    state = jax.tree.map(
      lambda leaf: placed(leaf.dtype, leaf.shape[0] // ways, *leaf.shape[1:]),
      jax.eval_shape(begin),
    )
    numbers = jax.eval_shape(
      lambda: (
        self._rules(settings, 1, True),
        _noise(settings),
        jnp.asarray(marks, jnp.int32),
        jnp.int32(0),
      )
    )
    return go_on.lower(self._weights, self._initial, queue, *numbers, state)

  def depth_of(self, settings: SolveConfig) -> int:
    """Supervision steps that a rollout may take within its budget.

    Raises:
      UserError: if the budget of FLOPs is below one step of each rollout.
    """
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
        "to disturb, so all rollouts would be the same; use breadth=1, or "
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
    depth = self.depth_of(settings)
    return tuple(sorted({mark for mark in marks if mark < depth} | {depth}))

  def _rounds(
    self, puzzles: int, settings: SolveConfig, marks: Sequence[int]
  ) -> list[tuple[int, int]]:
    """Parts of the puzzles whose answers fit: (first, last) of each."""
    most = self._most(settings, marks) * self._mesh.size
    edges = [*range(0, puzzles, most), puzzles]
    return list(itertools.pairwise(edges))

  def _most(self, settings: SolveConfig, marks: Sequence[int]) -> int:
    """Puzzles that a device can be given at once: a power of 4."""
    tokens = self.model.seq_len
    answers = settings.breadth * len(marks) * (tokens + 12)  # and their scores
    each = answers + tokens + 4 * self._table.shape[1]
    return 4 ** ((max(self.room // each, 1).bit_length() - 1) // 2)

  def _room(self, puzzles: int) -> int:
    """Puzzles that each device has room for: a power of 4, to compile few."""
    share = -(-puzzles // self._mesh.size)
    return 4 ** ((max(share - 1, 0).bit_length() + 1) // 2)

  def _round(
    self,
    queue: Queue,
    room: int,
    settings: SolveConfig,
    marks: Sequence[int],
    prune: bool,
    deadline: float,
    on_progress: Callable[[int], None],
  ) -> Found:
    """Solves puzzles that fit together."""
    ways = self._mesh.size
    plan = self._plan(settings)
    slots = min(-(-self.slots // ways), room * settings.breadth)
    begin, go_on = layout.programs(self._mesh, plan, slots, room, len(marks))
    state = begin()
    rules = self._rules(settings, marks[-1], prune)
    noise = _noise(settings)
    kept_at = jnp.asarray(marks, jnp.int32)
    total = int(jnp.sum(queue.count)) * settings.breadth
    is_real = total > 0  # else all sizes are to be compiled
    before = None
    while True:
      smaller = slots // _SHRINK if slots >= _SHRINK * _SMALLEST else 0
      state, now = go_on(
        self._weights, self._initial, queue, rules, noise, kept_at,
        jnp.int32(smaller), state,
      )  # fmt: skip
      # The device has its next work before the host looks at the last.
      if before is not None:
        finished, most = (int(number) for number in before)
        on_progress(finished)
        if is_real and not most:
          break
        if smaller and most <= smaller:
          slots = smaller
          state = layout.compactor(self._mesh, slots)(state)
          _, go_on = layout.programs(self._mesh, plan, slots, room, len(marks))
          before = None
          continue
        if not most:
          break
      before = now
      if time.perf_counter() > deadline:
        rules = rules.replace(depth=jnp.int32(1))
    return jax.device_get(layout.whole(self._mesh)(state.found))

  def _plan(self, settings: SolveConfig) -> Plan:
    return Plan(
      model=self.model,
      task=self.task,
      breadth=settings.breadth,
      noisy=settings.is_noisy and self.model.is_recursive,
      views=settings.shows_views,
      checks="solved" in settings.halt,
      chunk=_HURRIED if settings.seconds else _CHUNK,
    )

  def _queue(
    self, inputs: np.ndarray, puzzle_ids: np.ndarray, room: int
  ) -> tuple[Queue, np.ndarray]:
    """Puts puzzles onto the devices.

    Args:
      inputs: integers `[N, S]`.
      puzzle_ids: integers `[N]`.
      room: of each device.

    Returns:
      The queues of all devices, one after another, and the place of each
      puzzle in them.
    """
    ways = self._mesh.size
    # Dealt out like cards, so that hard puzzles in a row go to all devices.
    cards = np.arange(len(inputs))
    places = cards % ways * room + cards // ways

    def dealt(values):
      values = np.asarray(values)
      out = np.zeros((ways * room, *values.shape[1:]), values.dtype)
      out[places] = values
      return out

    counts = np.bincount(places // room, minlength=ways)
    ids = dealt(np.asarray(puzzle_ids, np.int32))
    rows = np.asarray(_look_up(self._table, ids))
    queue = Queue(
      inputs=dealt(np.asarray(inputs, np.uint8)),
      rows=rows,
      numbers=dealt(_numbers(inputs, puzzle_ids)),
      count=counts.astype(np.int32),
    )
    return sharding.put(queue, layout.shared(self._mesh)), places

  def _rules(self, settings: SolveConfig, depth: int, prune: bool) -> Rules:
    halt, never = settings.halt, np.iinfo(np.int32).max
    return Rules(
      depth=jnp.int32(depth),
      threshold=jnp.float32(settings.threshold if "q" in halt else np.inf),
      patience=jnp.int32(settings.patience if "unchanged" in halt else never),
      tolerance=jnp.float32(settings.tolerance if "residual" in halt else 0),
      solved=jnp.asarray("solved" in halt),
      first=jnp.asarray(prune and settings.select == "first"),
    )

  def _join(self, parts, marks, settings, seconds) -> Rollouts:
    breadth = settings.breadth

    def gather(name):
      values = []
      for found, places in parts:
        array = getattr(found, name)
        values.append(array.reshape(-1, breadth, *array.shape[1:])[places])
      return np.concatenate(values)

    if not parts:
      shape = (0, breadth, len(marks))
      nothing = np.zeros(shape, np.float32)
      return Rollouts(
        marks, np.zeros((*shape, self.model.seq_len), np.uint8), nothing,
        nothing, np.zeros(shape, np.int32), np.zeros(shape[:2], bool), 0, 0,
        float(flops.inference(self.model, 1)), seconds,
      )  # fmt: skip
    return Rollouts(
      marks=marks,
      answers=gather("answers"),
      q_halt=gather("q_halt"),
      residual=gather("residual"),
      steps=gather("steps"),
      halted=gather("halted"),
      spent=sum(int(found.spent.sum()) for found, _ in parts),
      passes=sum(int(found.passes.sum()) for found, _ in parts),
      flops_per_step=float(flops.inference(self.model, 1)),
      seconds=seconds,
    )


def _place(tree: Any, sharding: NamedSharding) -> Any:
  """Arrays on devices; what is only described says where it would be."""

  def one(leaf):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.device_put(leaf, sharding)

  return jax.tree.map(one, tree)


def _numbers(inputs: np.ndarray, puzzle_ids: np.ndarray) -> np.ndarray:
  """What the noise of puzzles is drawn by: their content, and not their place.

  Args:
    inputs: integers `[N, S]`.
    puzzle_ids: integers `[N]`.

  Returns:
    uint32 `[N]`.
  """
  named = np.concatenate([np.asarray(puzzle_ids)[:, None], inputs], axis=1)
  return vote.fingerprints(named, np)[:, 0]


def _noise(settings: SolveConfig) -> Noise:
  return Noise(
    initial=jnp.float32(settings.initial_noise),
    cycle=jnp.float32(settings.cycle_noise),
    key=jax.random.key(settings.seed),
  )


@jax.jit
def _look_up(table, ids):
  return table[ids]
