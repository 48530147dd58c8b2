"""What every program here shares: short errors, flags and configs."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from trm_jax.errors import UserError


def run(main: Callable[[list[str]], int | None]):
  """Runs a program; what its user can mend is told in a line, status 2."""

  def guarded(argv: list[str]) -> int | None:
    logging.set_verbosity(logging.ERROR)
    try:
      return main(argv)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2

  app.run(guarded, flags_parser=_parse_flags)


def define_config() -> flags.FlagHolder:
  """The flag `--config=FILE.py[:variant]` and its `--config.x.y=value`."""
  return config_flags.DEFINE_config_file(
    "config", None, "The experiment, FILE.py or FILE.py:variant."
  )


def config_values(flag: flags.FlagHolder) -> dict[str, Any]:
  """The resolved config as plain nested dicts."""
  if flag.value is None:
    raise UserError(
      "--config is missing: name a file such as configs/sudoku_extreme.py"
    )
  return flag.value.to_dict()


def config_overrides(name: str) -> dict[str, Any]:
  """What the command line changed in a config."""
  return config_flags.get_override_values(flags.FLAGS[name])


def only_argument(argv: list[str], name: str) -> str:
  """The program's one positional argument."""
  if len(argv) != 2:
    raise UserError(f"expected exactly one {name}, got {argv[1:]}")
  return argv[1]


def no_arguments(argv: list[str]):
  """Refuses positional arguments, which are mostly forgotten dashes."""
  if argv[1:]:
    raise UserError(f"unexpected arguments {argv[1:]}: flags start with --")


def whole_numbers(text: str, flag: str) -> list[int]:
  """Reads "1,2,4" as positive numbers, ascending and without repeats."""
  try:
    numbers = sorted({int(part) for part in text.split(",")})
  except ValueError:
    numbers = [0]
  if numbers[0] < 1:
    raise UserError(f"--{flag}={text}: must be numbers from 1, as in 1,2,4")
  return numbers


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error, UserError, ValueError, AttributeError, KeyError, TypeError,
    OSError, SyntaxError,
  ) as error:  # fmt: skip
    text = str(error).strip().splitlines() or [type(error).__name__]
    print(f"error: {text[0]}", file=sys.stderr)
    print(f"       see python {argv[0]} --help", file=sys.stderr)
    sys.exit(2)
