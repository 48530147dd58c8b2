"""The flags by which programs say how puzzles are to be solved."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from rich.progress import Progress

from trm_jax.errors import UserError
from trm_jax.solve.rules import HALTS, SELECTS, SolveConfig

# They belong to the program that asks for them, see `cli`.
flags.disclaim_key_flags()

_DEFAULTS = SolveConfig()


def define() -> Callable[..., SolveConfig]:
  """Defines them for a program.

  Returns:
    A function that reads them after parsing; it takes the fields that the
    program knows by flags of its own.
  """
  fields = {
    "halt": flags.DEFINE_list(
      "halt", ["fixed"],
      f"Halt before the depth, by any of {', '.join(HALTS)}; or fixed.",
    ),
    "threshold": flags.DEFINE_float(
      "threshold", _DEFAULTS.threshold,
      "--halt=q: the halting logit to exceed; training halts by 0.",
    ),
    "patience": flags.DEFINE_integer(
      "patience", _DEFAULTS.patience,
      "--halt=unchanged: steps for which the answer must stand.",
    ),
    "tolerance": flags.DEFINE_float(
      "tolerance", _DEFAULTS.tolerance,
      "--halt=residual: the relative change of y to fall below.",
    ),
    "initial_noise": flags.DEFINE_float(
      "initial_noise", _DEFAULTS.initial_noise,
      "Deviation of the noise on the initial y and z of all rollouts but the "
      "first.",
    ),
    "cycle_noise": flags.DEFINE_float(
      "cycle_noise", _DEFAULTS.cycle_noise, "The same, before each cycle."
    ),
    "views": flags.DEFINE_bool(
      "views", _DEFAULTS.views,
      "All rollouts but the first see the puzzle under a random symmetry.",
    ),
    "flops": flags.DEFINE_float(
      "flops", _DEFAULTS.flops, "FLOPs that a puzzle may cost; 0 for any."
    ),
    "seconds": flags.DEFINE_float(
      "seconds", _DEFAULTS.seconds,
      "When these are over, what runs halts, and what waits gets one step.",
    ),
    "seed": flags.DEFINE_integer(
      "seed", _DEFAULTS.seed, "Of the noise and the views."
    ),
  }  # fmt: skip

  def read(**own: Any) -> SolveConfig:
    values = {name: flag.value for name, flag in fields.items()} | own
    halt = tuple(values["halt"])
    values["halt"] = () if halt == ("fixed",) else halt
    try:
      return SolveConfig(**values)
    except ValueError as error:
      raise UserError(f"--{error}") from error

  return read


def check_selects(names: list[str]):
  """Refuses ways of choosing that there are not."""
  for name in names:
    if name not in SELECTS:
      raise UserError(f"--select={name}: must be some of {', '.join(SELECTS)}")


def describe_halting(settings: SolveConfig) -> str:
  """A rule in some words."""
  words = {
    "q": f"q > {settings.threshold:g}",
    "unchanged": f"unchanged for {settings.patience}",
    "residual": f"residual < {settings.tolerance:g}",
    "solved": "solved",
  }
  return " or ".join(words[name] for name in settings.halt) or "fixed"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
  """A bar, and the function to move it: `(done, total)`."""
  with Progress(transient=True) as progress:
    bar = progress.add_task(what, total=None)
    yield lambda done, total: progress.update(bar, completed=done, total=total)
