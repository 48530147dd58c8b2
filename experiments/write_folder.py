"""Writes the data of a config as a folder in the reference's layout.

    trm write_folder --config=NAME[:variant] --out=DIR [--dihedral]
        [--config.data.train=SOURCE ...]

The folder (dataset.json, all__inputs.npy, ...) is the reference's training
input, and a value of --config.data.path. ARC copies are written in full, so
thousands of copies take gigabytes. --dihedral adds the rotations and
reflections of each training grid, as the reference does for mazes.
"""

import pathlib

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_OUT = flags.DEFINE_string("out", "", "Folder to write.")
_DIHEDRAL = flags.DEFINE_bool(
  "dihedral", False, "Add rotations and reflections of training mazes."
)


def main(argv: list[str]) -> int:
  """Writes the data of `--config`."""
  from trm_jax import config as config_lib
  from trm_jax.data import datasets, folder_writer
  from trm_jax.errors import UserError
  from trm_jax.run.folder import write_json

  app.no_arguments(argv)
  if not _OUT.value:
    raise UserError("--out is missing: name the folder to make")
  experiment = config_lib.read(app.config_values(_CONFIG))
  data, task = experiment.data, experiment.task
  if _DIHEDRAL.value:
    folder_writer.check_images(task)
  for note in datasets.prepare(data, app.say):
    app.say(f"note: {note}")
  splits = {
    name: datasets.load(data, name)
    for name in ("train", "test")
    if name == "train" or datasets.has_split(data, name)
  }
  if _DIHEDRAL.value:
    splits["train"] = folder_writer.with_images(splits["train"], task)
  folder_writer.write(_OUT.value, splits, datasets.identifiers(data), task)
  if task.copies:
    path = pathlib.Path(_OUT.value) / "test_puzzles.json"
    write_json(path, folder_writer.test_puzzles(splits, task))
  for name, split in splits.items():
    print(f"{name}: {len(split):,} groups, {len(split.rows[0]):,} examples")
  print(f"wrote {_OUT.value}")
  return 0


if __name__ == "__main__":
  app.run(main)
