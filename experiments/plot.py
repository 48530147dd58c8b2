"""Draws the learning curves of one or more runs.

    trm plot DIR [DIR ...] [--out=FILE.png]

By default writes `plots/learning.png` in the first run's folder.
"""

import pathlib

from absl import flags

from trm_jax.cli import app
from trm_jax.errors import UserError

_OUT = flags.DEFINE_string("out", "", "The PNG to write.")


def main(argv: list[str]) -> int:
  """Plots the runs named in `argv`."""
  from trm_jax.cli import report
  from trm_jax.run.folder import RunFolder

  if not argv[1:]:
    raise UserError("expected one or more run folders")
  folders = [RunFolder(path) for path in argv[1:]]
  if _OUT.value and not _OUT.value.endswith(".png"):
    raise UserError(f"--out={_OUT.value}: the name must end in .png")
  picture = pathlib.Path(_OUT.value or folders[0].plots / "learning.png")
  report.plot_learning(folders, picture)
  print(f"wrote {picture}")
  return 0


if __name__ == "__main__":
  app.run(main)
