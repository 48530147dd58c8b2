"""Trains a model, or resumes the run of a folder.

    trm train --config=NAME[:variant] --workdir=DIR
        [--config.optim.lr=2e-4 ...] [--skip_bad_rows] [--tensorboard]

Any field of the config can be changed on the command line. The same command
resumes from the last checkpoint, bit for bit. A run may become longer
(train.steps, unless a schedule depends on it) and be watched in another way
(eval.every, checkpoint, train.log_every); other changes of the config are
refused. SIGTERM, SIGHUP or Ctrl-C saves first and exits with 128 plus the
signal's number.

Several processes: give each --coordinator=HOST:PORT of process 0,
--num_processes and --process_id (on TPU pods and Slurm, --distributed alone)
and the same --workdir, on a shared disk or in a bucket (gs://). They wait
--join_seconds for each other. A signal to one saves on all. If one is lost, the
others end within --heartbeat_seconds with status 75; start all again to resume.
"""

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_SKIP_BAD_ROWS = app.define_skip_bad_rows()
_TENSORBOARD = flags.DEFINE_bool(
  "tensorboard", False, "Also write TensorBoard files; needs [tensorboard]."
)
_join = app.define_processes()


def main(argv: list[str]) -> int:
  """Trains `--config` in `--workdir`."""
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
  loop.build(experiment)  # refuse what the devices cannot do before writing
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
  app.run(main, prints_log=True)
