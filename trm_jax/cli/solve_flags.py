"""Flags of the programs that solve puzzles or test a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from trm_jax.cli import app
from trm_jax.errors import UserError
from trm_jax.solve.rules import HALTS, SELECTS, SolveConfig

flags.disclaim_key_flags()  # see `app`

_DEFAULTS = SolveConfig()
# Equal to `datasets.UNSEEN`, whose import is slow.
UNSEEN = ("error", "blank", "mean")


class RunFlags(NamedTuple):
  """The flags that name a run and the puzzles to test it on."""

  workdir: flags.FlagHolder
  checkpoint: flags.FlagHolder
  data: flags.FlagHolder
  puzzles: flags.FlagHolder
  puzzle_id: flags.FlagHolder
  skip_bad_rows: flags.FlagHolder

  def load(self, split: str = "test", copies: int = -1) -> tuple[Any, Any, Any]:
    """The run's folder, its experiment and the puzzles."""
    from trm_jax.run.folder import RunFolder
    from trm_jax.solve import held_out

    folder = RunFolder(self.workdir.value)
    experiment, puzzles = held_out.load_held_out(
      folder, self.data.value, split, puzzles=self.puzzles.value, copies=copies,
      unseen=self.puzzle_id.value, skip_bad_rows=self.skip_bad_rows.value,
      say=app.say,
    )  # fmt: skip
    return folder, experiment, puzzles


def define_run() -> RunFlags:
  """Defines the flags that name a run and the puzzles to test it on."""
  return RunFlags(
    workdir=flags.DEFINE_string("workdir", "", "Folder of the run."),
    checkpoint=flags.DEFINE_string(
      "checkpoint", "best", "best, last or a step."
    ),
    data=flags.DEFINE_string(
      "data", "", "Test on this file, ARC source or reference folder."
    ),
    puzzles=flags.DEFINE_integer(
      "puzzles", None, "Test puzzles; 0 for all. As in training by default.",
      lower_bound=0,
    ),
    puzzle_id=define_puzzle_id(),
    skip_bad_rows=app.define_skip_bad_rows(),
  )  # fmt: skip


def define_puzzle_id() -> flags.FlagHolder:
  """Defines `--puzzle_id`."""
  return flags.DEFINE_enum(
    "puzzle_id", "error", UNSEEN,
    "The embedding of ARC tasks that the run was not trained on.",
  )  # fmt: skip


def define() -> Callable[..., SolveConfig]:
  """Defines a flag for each field of `SolveConfig` but depth and breadth.

  Returns:
    A function that makes a `SolveConfig` after parsing; its arguments are the
    other fields.
  """
  help_of = {
    "threshold": "--halt=q: halt above this halting logit; 0 in training.",
    "patience": "--halt=unchanged: halt after this many equal answers.",
    "tolerance": "--halt=residual: halt below this relative change of y.",
    "initial_noise": "Standard deviation of noise on the initial y and z of "
    "all rollouts but the first.",
    "cycle_noise": "Standard deviation of noise before each cycle.",
    "views": "Show puzzles under random symmetries to all rollouts but the "
    "first.",
    "flops": "Budget of FLOPs per puzzle; 0 for none.",
    "seconds": "Time limit; then running puzzles halt, and waiting ones take "
    "one step. 0 for none.",
    "seed": "Seed of the noise and the views.",
  }
  kinds = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
  }
  fields: dict[str, flags.FlagHolder] = {
    "halt": flags.DEFINE_list(
      "halt", ["fixed"],
      f"Halt before the depth, by any of {', '.join(HALTS)}; or fixed.",
    )
  }  # fmt: skip
  for name, text in help_of.items():
    default = getattr(_DEFAULTS, name)
    fields[name] = kinds[type(default)](name, default, text)

  def read(**others: Any) -> SolveConfig:
    values = {name: flag.value for name, flag in fields.items()} | others
    halt = tuple(values["halt"])
    values["halt"] = () if halt == ("fixed",) else halt
    try:
      return SolveConfig(**values)
    except ValueError as error:
      raise UserError(f"--{error}") from error

  return read


def check_selects(names: list[str]):
  """Refuses unknown selection rules."""
  for name in names:
    if name not in SELECTS:
      raise UserError(f"--select={name}: must be some of {', '.join(SELECTS)}")
