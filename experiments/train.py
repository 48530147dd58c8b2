"""Trains a model, or goes on where an earlier run of the folder stopped.

    trm train --config=FILE.py[:variant] --workdir=DIR
        [--config.optim.lr=2e-4 ...] [--skip_bad_rows] [--tensorboard]

Any field of the config can be changed on the command line. Running the same
command again resumes from the last checkpoint, bit for bit; another config in
the same folder is refused. SIGTERM or Ctrl-C saves first and exits with 128
plus the signal's number.

Several processes: give each --coordinator=HOST:PORT of process 0,
--num_processes and --process_id (on TPU pods and Slurm, --distributed alone)
and the same --workdir, on a disk that they share or in a bucket (gs://). A
signal to one of them saves on all. When one is lost, the others end within
--heartbeat_seconds with status 75: start all again to go on.
"""

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_SKIP_BAD_ROWS = app.define_skip_bad_rows()
_TENSORBOARD = flags.DEFINE_bool(
  "tensorboard", False, "Write TensorBoard files too (extra 'tensorboard')."
)
_join = app.define_processes()


def main(argv: list[str]) -> int:
  """Trains what `--config` says in `--workdir`."""
  from trm_jax import config as config_lib
  from trm_jax.cli import progress, report
  from trm_jax.run import processes, result
  from trm_jax.run.folder import RunFolder
  from trm_jax.solve import held_out as held_out_lib
  from trm_jax.train import loop

  app.no_arguments(argv)
  _join()
  config, leader = app.config_values(_CONFIG), processes.is_leader()
  overrides = app.config_overrides("config")
  if _SKIP_BAD_ROWS.value:
    config.setdefault("data", {})["skip_bad_rows"] = True
    overrides["data.skip_bad_rows"] = True
  experiment = config_lib.read(config)
  app.agree(config)
  loop.build(experiment)  # refuses what the devices cannot do, before writing
  folder = RunFolder(_WORKDIR.value)
  bar = progress.Bar(experiment.train.steps, quiet=not leader)
  with processes.leader_first("data"):
    experiment, names = held_out_lib.prepare(config, experiment, bar.say)
  if leader:
    folder.claim(config, overrides)
    folder.keep_identifiers(names)
  processes.check_shared(folder.path)
  training, held_out = held_out_lib.load_splits(experiment)
  with bar:
    bar.say(report.describe(experiment, training, held_out))
    try:
      (member,), _ = loop.fit(
        experiment, folder, training, held_out, bar,
        tensorboard=_TENSORBOARD.value,
      )  # fmt: skip
    except loop.Stopped as stopped:
      bar.say(
        f"stopped by a signal; everything is saved up to step {stopped.step}. "
        "The same command goes on from there"
      )
      return 128 + stopped.signal
    if leader and member.records:
      result.write(folder.result, experiment.train.steps, member.records)
    bar.say(f"finished; see {folder.path}")
  return 0


if __name__ == "__main__":
  app.run(main)
