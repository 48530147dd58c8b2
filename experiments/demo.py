"""Trains and evaluates a small TRM on the CPU in some minutes.

    trm demo [--workdir=runs/demo]

Generates 6x6 Sudoku puzzles, trains, evaluates held-out puzzles at depths 1 to
32, draws accuracy against depth and FLOPs, and saves the weights. When
interrupted, the same command resumes it.
"""

import time

from absl import flags

from trm_jax.cli import app, configs

DEPTHS = (1, 2, 4, 8, 16, 32)

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the run.")


def main(argv: list[str]) -> int:
  """Generates, trains, evaluates, draws and saves."""
  from trm_jax import config as config_lib
  from trm_jax.cli import progress, report
  from trm_jax.draw import console, curves
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
  with console.make().status(
    "generating puzzles, each with exactly one solution"
  ):
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
  title = report.title(experiment, step, "held-out puzzles")
  paths = {
    "accuracy against depth": folder.plots / "depth.png",
    "learning curves": folder.plots / "learning.png",
    "weights": folder.path / "weights.safetensors",
    "scores": folder.result,
  }
  result.write(paths["scores"], step, records)
  scores = result.read(folder.result, step)
  facts = {"step": step, "scores": scores}
  weights.save_weights(paths["weights"], params, config, facts)
  curves.depth_curve(records, paths["accuracy against depth"], title)
  report.plot_learning([folder], paths["learning curves"])
  report.print_records(records, f"{folder.path}, step {step}")
  for what, path in paths.items():
    print(f"{what + ':':24s}{path}")
  print(f"took {time.perf_counter() - started:.0f} s")
  return 0


if __name__ == "__main__":
  app.run(main, prints_log=True)
