"""Makes a run of a published PyTorch checkpoint.

    python -m experiments.import_torch --checkpoint=FILE --out=DIR
        --config=FILE.py[:variant] [--config.model.heads=8 ...]
        [--puzzle_table=keep|mean|drop] [--identifiers=FILE.json]

FILE is what the reference implementation saved, or any state dict with its
names, as torch.save writes it (which needs PyTorch: pip install -e
'.[torch]') or as .safetensors (which does not). Code in it is never run.

The architecture is read from the arrays; where the config says otherwise, it
is changed and the change printed. Heads, cycles, latent steps, rotary
positions, rope_theta, norm_eps and all that is not the model come from the
config, so name one of the same task and family. DIR is then a run's folder at
step 0: evaluate it, or train it further with the same config.

A puzzle table of another size than the data needs is refused unless
--puzzle_table says what to do. keep: all of it; --identifiers names its rows,
which are matched by name (the identifiers.json of the data set that it was
trained on). mean: one embedding for all puzzles. drop: zeros.
"""

import os
import pathlib
from typing import Any

from absl import flags

from trm_jax import config as config_lib
from trm_jax.cli import app
from trm_jax.config import Experiment
from trm_jax.core import network
from trm_jax.data import datasets
from trm_jax.errors import UserError
from trm_jax.export import published
from trm_jax.solve import held_out

_CONFIG = app.define_config()
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The file to import.")
_OUT = flags.DEFINE_string("out", "", "Folder of the run to make.")
_PUZZLE_TABLE = flags.DEFINE_enum(
  "puzzle_table", None, published.TABLES, "What becomes of a puzzle table."
)
_IDENTIFIERS = flags.DEFINE_string(
  "identifiers", "", "JSON list of the names of the puzzle table's rows."
)


def main(argv: list[str]) -> int:
  """Imports `--checkpoint`."""
  app.no_arguments(argv)
  path, out = pathlib.Path(_CHECKPOINT.value), pathlib.Path(_OUT.value)
  for flag in (_CHECKPOINT, _OUT):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; see --help")
  if _CONFIG.value is None:
    raise UserError(
      "--config is missing: the file does not tell its task, heads, positions, "
      "cycles and latent steps; name a config of the same task and mixer, as "
      "configs/sudoku_extreme.py:attention, and change it where needed with "
      "--config.model.heads, .positions, .cycles, .latent_steps"
    )
  published.check_new(out)
  config = app.config_values(_CONFIG)
  overrides = app.config_overrides("config")
  given = {name[6:] for name in overrides if name.startswith("model.")}
  arrays = published.read_arrays(path)
  config, notes = published.complete_config(config, arrays, given)
  for note in notes:
    app.say(f"note: {note}")
  names = None
  if _IDENTIFIERS.value:
    names = published.read_names(pathlib.Path(_IDENTIFIERS.value))
  data_names = _names_of_data(config, config_lib.read(config))
  arrays, config, names = published.arrange_table(
    arrays, config, _PUZZLE_TABLE.value, names, data_names
  )
  experiment = config_lib.read(config)
  params = published.to_params(arrays, experiment.model)
  published.write_run(out, config, overrides, experiment, params, names)
  model = experiment.model
  print(
    f"wrote {out}: {model.family}, {model.mixer}, "
    f"{network.count_weights(params):,} weights, "
    f"{model.num_puzzle_ids:,} puzzle embeddings\n"
    f"python -m experiments.evaluate --workdir={out} tells how good it is"
  )
  return 0


def _names_of_data(
  config: dict[str, Any], experiment: Experiment
) -> list[str] | None:
  """The name of each puzzle id of the data, if that is known or needed."""
  data = experiment.data
  if data.path and os.path.isdir(os.path.expanduser(data.path)):
    return datasets.identifiers(data)
  if not experiment.task.view:
    return ["<blank>"]
  if _PUZZLE_TABLE.value != "drop":
    return None  # copies of ARC's tasks are many to make only to count them
  return held_out.prepare(dict(config), experiment, app.say)[1]


if __name__ == "__main__":
  app.run(main)
