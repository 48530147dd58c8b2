"""What every program here shares: short errors, exit codes, arguments."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from trm_jax.errors import UserError


def run(main: Callable[[list[str]], int | None]):
  """Runs a program; what its user can mend is told in one line, status 2."""

  def guarded(argv: list[str]) -> int | None:
    logging.set_verbosity(logging.ERROR)
    try:
      return main(argv)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2

  app.run(guarded, flags_parser=_parse_flags)


def only_argument(argv: list[str], name: str) -> str:
  """The program's one positional argument."""
  if len(argv) != 2:
    raise UserError(f"expected exactly one {name}, got {argv[1:]}")
  return argv[1]


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, UserError, AttributeError, KeyError, TypeError) as error:
    print(f"error: {error}", file=sys.stderr)
    print(f"       {argv[0]} --help lists the flags", file=sys.stderr)
    sys.exit(2)
