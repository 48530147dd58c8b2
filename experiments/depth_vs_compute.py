"""Studies accuracy against recursion depth and compute, over many models.

    trm depth_vs_compute --config=NAME[:variant] --workdir=DIR
        [--merge=DIR,DIR] [--dry_run [--chip=h100] [--utilisation=0.3]]

Trains every model of the config's grid (such as depth:cpu) with every seed,
tests each at many depths, and writes results.csv, report.html (a single file
that opens offline) and plots/. The same command resumes a study. A wider grid
(--config.grid.trm.model.latent_steps="(1,3,6)"), more seeds
(--config.study.seeds="(0,1,2)") and deeper tests train and test only what is
new. --merge adds the finished models of other folders, such as from other
machines.

--dry_run prints what would be trained, its FLOPs, and the time on a --chip at
--utilisation of its peak.

Several processes, as in `trm train`: --distributed, or --coordinator,
--num_processes and --process_id; --heartbeat_seconds, --join_seconds.
"""

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the study.")
_MERGE = flags.DEFINE_list(
  "merge", [], "Other studies' folders, whose finished models are added."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the grid and its cost, and train nothing."
)
_CHIP = flags.DEFINE_string(
  "chip", "h100", "--dry_run: the chip, such as h100, v5e or cpu."
)
_UTILISATION = flags.DEFINE_float(
  "utilisation", 0.3, "--dry_run: fraction of the chip's peak that is reached."
)
_join = app.define_processes()


def main(argv: list[str]) -> int:
  """Trains, tests and reports the study `--config` in `--workdir`."""
  from trm_jax.cli import study

  app.no_arguments(argv)
  study.give_members_cores()
  _join()
  chip = (_CHIP.value, _UTILISATION.value) if _DRY_RUN.value else None
  config = app.config_values(_CONFIG)
  overrides = app.config_overrides("config")
  return study.run(config, _WORKDIR.value, _MERGE.value, chip, overrides)


if __name__ == "__main__":
  app.run(main, prints_log=True)
