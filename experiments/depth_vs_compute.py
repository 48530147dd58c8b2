"""How much does recursion depth buy, at what compute, for which model?

    trm depth_vs_compute --config=configs/depth.py:cpu --workdir=DIR
        [--dry_run] [--merge=DIR,DIR]

Trains every model of the config's grid with every seed, tests each at many
depths, and writes results.csv, report.html (one file, opens offline) and
plots/. Finished models are kept: the same command goes on where it stopped. A
wider grid (--config.grid.trm.model.latent_steps="(1,3,6)"), more seeds
(--config.study.seeds="(0,1,2)") and deeper tests train and test only what is
new. --merge adds the finished models of other folders, trained on other
machines for instance. Several processes: as in `trm train`.
--dry_run shows what would be trained, its cost, and how long a chip would take.
"""

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the study.")
_MERGE = flags.DEFINE_list(
  "merge", [], "Other studies' folders, whose finished models are added."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Show the grid and its cost, and train nothing."
)
_CHIP = flags.DEFINE_string(
  "chip", "h100", "Whose time --dry_run estimates, such as h100, v5e or cpu."
)
_UTILISATION = flags.DEFINE_float(
  "utilisation", 0.3, "Fraction of the chip's peak that --dry_run expects."
)
_join = app.define_processes()


def main(argv: list[str]) -> int:
  """Trains, tests and reports what `--config` says in `--workdir`."""
  from trm_jax.cli import study

  app.no_arguments(argv)
  study.give_members_cores()
  _join()
  chip = (_CHIP.value, _UTILISATION.value) if _DRY_RUN.value else None
  config = app.config_values(_CONFIG)
  overrides = app.config_overrides("config")
  return study.run(config, _WORKDIR.value, _MERGE.value, chip, overrides)


if __name__ == "__main__":
  app.run(main)
