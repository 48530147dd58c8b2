"""Replays a recording of the reference implementation and reports differences.

    trm parity FILE.npz [--dtype=float32] [--tolerance=1e-4]

Prints the largest absolute difference of each recorded quantity, and the same
relative to the quantity's largest magnitude. Exits with status 1 if a relative
difference exceeds the tolerance.
"""

from absl import flags

from trm_jax.cli import app

_DTYPE = flags.DEFINE_enum(
  "dtype", "float64", ["float64", "float32"], "Arithmetic of the replay."
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-4, "Largest allowed relative difference.", lower_bound=0
)


def main(argv: list[str]) -> int:
  """Replays `argv[1]`."""
  import jax

  from trm_jax.draw import console
  from trm_jax.inspect import parity

  path = app.only_argument(argv, "FILE.npz")
  with jax.enable_x64(_DTYPE.value == "float64"):
    found = list(parity.replay(parity.Recording(path), _DTYPE.value))
  rows = [(name, f"{far:.2e}", f"{part:.2e}") for name, far, part in found]
  different = [i for i, row in enumerate(found) if row[2] > _TOLERANCE.value]
  console.print_table(
    ("quantity", "absolute", "relative"), rows, bold=different
  )
  worst = max((relative for *_, relative in found), default=0.0)
  agrees = worst <= _TOLERANCE.value
  print(
    f"{'agrees' if agrees else 'DIFFERS'}: largest relative difference "
    f"{worst:.2e}, tolerance {_TOLERANCE.value:.0e}, {_DTYPE.value}"
  )
  return 0 if agrees else 1


if __name__ == "__main__":
  app.run(main)
