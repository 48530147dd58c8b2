"""Times steps of this package and of the reference PyTorch code, in turns."""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core import halting, network
from trm_jax.data import synthetic
from trm_jax.errors import UserError
from trm_jax.export import torch_files
from trm_jax.inspect import torch_steps
from trm_jax.solve import evaluate
from trm_jax.train import program as trainer

STEPS = ("training", "inference")
OURS, EAGER, COMPILED = "ours", "reference, eager", "reference, compiled"

Step = Callable[[], float]  # makes one step; returns its seconds


@dataclasses.dataclass(frozen=True)
class Timing:
  """Steps of one kind and dtype, timed in turns.

  Attributes:
    step: "training" or "inference".
    dtype: of the activations.
    batch_size: puzzles a step.
    seconds: name -> seconds of each round.
  """

  step: str
  dtype: str
  batch_size: int
  seconds: Mapping[str, list[float]]

  def puzzles_per_second(self, name: str) -> float:
    """The median over rounds."""
    return self.batch_size / float(np.median(self.seconds[name]))

  def ratio(self) -> tuple[float, float, float]:
    """Median, lower and upper quartile of ours to the faster reference.

    Each round is compared with the reference's step of the same round.
    """
    theirs = [name for name in self.seconds if name != OURS]
    fastest = max(theirs, key=self.puzzles_per_second)
    ratios = np.divide(self.seconds[fastest], self.seconds[OURS])
    middle, low, high = np.quantile(ratios, [0.5, 0.25, 0.75])
    return float(middle), float(low), float(high)

  def to_json(self) -> dict[str, Any]:
    """All figures as JSON values."""
    return dataclasses.asdict(self) | {
      "puzzles_per_second": {
        n: self.puzzles_per_second(n) for n in self.seconds
      },
      "ratio": self.ratio(),
    }


def measure(
  config: Mapping[str, Any],
  checkout: pathlib.Path,
  *,
  python: str,
  batch_size: int,
  rounds: int,
  dtypes: list[str],
  compiles: bool,
  say: Callable[[str], None],
) -> Iterator[Timing]:
  """Yields a timing of each step in each dtype.

  Args:
    config: an experiment whose model the reference has.
    checkout: the reference's repository.
    python: the interpreter of an environment with PyTorch and einops.
    batch_size: puzzles a step.
    rounds: steps of each, after one that is not counted.
    dtypes: of activations.
    compiles: whether the reference is also timed with `torch.compile`.
    say: called with each message.

  Raises:
    UserError: if the reference cannot be run, or has no such model.
  """
  if not (checkout / "models" / "losses.py").is_file():
    raise UserError(
      f"{checkout}: not a checkout of the reference, which has "
      "models/losses.py; clone "
      "https://github.com/SamsungSAILMontreal/TinyRecursiveModels"
    )
  for dtype in dtypes:
    changes = {
      "model": {"dtype": dtype, "inner_multiple": 256},  # fixed there
      "train": {
        "batch_size": batch_size, "microbatch": 0, "steps_per_dispatch": 1,
      },
      "eval": {"batch_size": batch_size},
    }  # fmt: skip
    experiment = config_lib.read(
      {
        name: dict(config.get(name, {})) | changes.get(name, {})
        for name in config.keys() | changes
      }
    )
    torch_files.check(experiment.model)
    for step in STEPS:
      say(f"{dtype}, {step}")
      with ExitStack() as stack:
        makers = {OURS: _ours(experiment, step)}
        kinds = {EAGER: False} | ({COMPILED: True} if compiles else {})
        for name, compiled in kinds.items():
          makers[name] = stack.enter_context(
            _theirs(experiment, step, checkout, python, compiled)
          )
        seconds = {name: [] for name in makers}
        for _ in range(rounds):
          for name, make in makers.items():
            seconds[name].append(make())
      yield Timing(step, dtype, batch_size, seconds)


def _ours(experiment: Experiment, step: str) -> Step:
  split = synthetic.split(experiment.task)
  if step == "training":
    call = trainer.prepare_dispatch(trainer.build(experiment), split).call
  else:
    model, batch = experiment.model, experiment.eval.batch_size
    params = jax.jit(network.init, static_argnums=1)(jax.random.key(0), model)
    tokens = jnp.asarray(split.inputs[:batch], jnp.int32)
    ids = jnp.zeros(batch, jnp.int32)
    puzzles = halting.Puzzles.of(tokens, tokens, ids)

    def call():
      return evaluate.refine(params, puzzles, 1, model)

  def timed() -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started

  timed()
  return timed


@contextmanager
def _theirs(
  experiment: Experiment,
  step: str,
  checkout: pathlib.Path,
  python: str,
  compiles: bool,
) -> Iterator[Step]:
  """Runs `torch_steps` as long as the context lasts."""
  batch = experiment.train.batch_size
  settings = {
    "arch": torch_files.describe(experiment.model, experiment.halting),
    "batch_size": batch,
    "trains": step == "training",
    "compiles": compiles,
    "threads": len(os.sched_getaffinity(0)),
  }
  command = [python, torch_steps.__file__, str(checkout.absolute())]
  log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
  try:
    process = subprocess.Popen(
      command, text=True, bufsize=1,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip
  except OSError as error:
    raise UserError(f"--python={python}: {error.strerror}") from error

  to_process, from_process = process.stdin, process.stdout
  assert to_process and from_process

  def answer(line: str) -> str:
    try:
      print(line, file=to_process, flush=True)
      found = from_process.readline()
    except BrokenPipeError:
      found = ""
    if not found:
      log.seek(0)
      last = log.read().strip().splitlines()[-1:]
      raise UserError(
        f"the reference ended: {''.join(last)[:300]}. It needs torch, einops "
        "and pydantic in the environment of --python"
      )
    return found

  with log, process:
    try:
      answer(json.dumps(settings))
      answer("")  # compiles, or allocates
      yield lambda: float(answer(""))
    finally:
      process.kill()
      with suppress(OSError):  # what an ended process has not read
        to_process.close()
