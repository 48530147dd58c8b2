"""The whole journey in some minutes: generate, train, evaluate, draw, save.

    trm demo [--workdir=runs/demo]

Generates 6x6 Sudoku puzzles, trains a small TRM on the CPU, evaluates puzzles
that it has never seen at depths 1 to 32, draws accuracy against depth and
FLOPs, and saves the weights. Interrupted, it goes on where it stopped.
"""

import time

from absl import flags

from trm_jax.cli import app, configs

DEPTHS = (1, 2, 4, 8, 16, 32)

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the run.")


def main(argv: list[str]) -> int:
  """Does all of it."""
  from rich.console import Console

  from trm_jax import config as config_lib
  from trm_jax.cli import progress, report
  from trm_jax.draw import curves
  from trm_jax.run import result, weights
  from trm_jax.run.folder import RunFolder
  from trm_jax.solve import held_out as held_out_lib
  from trm_jax.train import loop

  app.no_arguments(argv)
  started = time.perf_counter()
  config = configs.load("demo").to_dict()
  folder = RunFolder(_WORKDIR.value)
  config["data"]["cache_dir"] = str(folder.path / "data")
  experiment = config_lib.read(config)
  folder.claim(config, overrides={})
  with Console().status("generating puzzles, each with exactly one solution"):
    experiment, _ = held_out_lib.prepare(config, experiment)
    training, held_out = held_out_lib.load_splits(experiment)
  assert held_out, "the demo's config names a test split"
  with progress.Bar(experiment.train.steps) as bar:
    bar.say(report.describe(experiment, training, held_out))
    try:
      loop.fit(experiment, folder, training, held_out, bar)
    except loop.Stopped as stopped:
      bar.say("stopped; everything is saved. The same command goes on")
      return 128 + stopped.signal
  step, params = held_out_lib.restore(folder, experiment, "best")
  records = report.evaluate_depths(experiment, step, params, held_out, DEPTHS)
  title = report.title(experiment, step)
  report.print_records(records, title)
  made = {
    "accuracy against depth": folder.plots / "depth.png",
    "learning curves": folder.plots / "learning.png",
    "weights": folder.path / "weights.safetensors",
    "scores": folder.result,
  }
  curves.depth_curve(records, made["accuracy against depth"], title)
  report.plot_learning([folder], made["learning curves"])
  weights.save_weights(
    made["weights"],
    params,
    config,
    {"step": step, "scores": records},
  )
  result.write(made["scores"], step, records)
  for what, path in made.items():
    print(f"{what + ':':24s}{path}")
  print(f"took {time.perf_counter() - started:.0f} s")
  return 0


if __name__ == "__main__":
  app.run(main)
