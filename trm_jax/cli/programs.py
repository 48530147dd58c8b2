"""The command `trm NAME ...`, which runs one of the programs."""

import sys

import trm_jax
from trm_jax.cli import shipped, streams

_USAGE = """\
Recursive reasoning models in JAX: train, study and ship them.

usage: trm PROGRAM [--flag=value ...]
       trm PROGRAM --help
       trm --version

"""


def main(argv: list[str] | None = None) -> int:
  """Runs the program named in `argv`, the command line; the exit status."""
  streams.protect()
  name, *arguments = (sys.argv if argv is None else argv)[1:] or ["--help"]
  if name == "--version":
    print(f"trm_jax {trm_jax.__version__}")
    return 0
  known = shipped.names("experiments")
  if name in ("--help", "-h", "help"):
    print(_USAGE + shipped.listing("experiments"))
    return 0
  if name not in known:
    hint = shipped.suggestion(name, known)
    print(f"error: there is no program {name!r}: {hint}", file=sys.stderr)
    print("       see trm --help", file=sys.stderr)
    return 2
  # As `python -m` would, but with the user's name of the program for absl.
  sys.argv = [f"trm {name}", *arguments]
  shipped.load("__main__", shipped.folder("experiments") / f"{name}.py")
  return 0
