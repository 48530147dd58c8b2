"""Makes a run from a published PyTorch checkpoint.

    trm import_torch --checkpoint=FILE --out=DIR
        --config=NAME[:variant] [--config.model.heads=8 ...]
        [--puzzle_table=keep|mean|drop] [--identifiers=FILE.json]

--checkpoint is a file of the reference implementation, or a state dict with its
names, from torch.save (needs PyTorch) or as .safetensors. Code in it is never
run.

The config describes the model. Width, layers and puzzle embedding are taken
from the file, and differences are printed; other differences are errors. --out
becomes a run's folder at step 0: evaluate it, or train it with the same config.

A puzzle table of another size than the data needs is an error without
--puzzle_table. keep: keep all rows, matched with the data by their names in
--identifiers (the identifiers.json of the dataset of the checkpoint). mean: one
embedding for all puzzles. drop: zeros.
"""

import pathlib

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The file to import.")
_OUT = flags.DEFINE_string("out", "", "Folder of the run to make.")
_PUZZLE_TABLE = flags.DEFINE_enum(
  "puzzle_table", None, ["keep", "mean", "drop"], "Treatment of the table."
)
_IDENTIFIERS = flags.DEFINE_string(
  "identifiers", "", "JSON list of the names of the puzzle table's rows."
)


def main(argv: list[str]) -> int:
  """Imports `--checkpoint`."""
  from trm_jax import config as config_lib
  from trm_jax.core import network
  from trm_jax.errors import UserError
  from trm_jax.export import published, reference

  app.no_arguments(argv)
  for flag in (_CHECKPOINT, _OUT):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; see --help")
  out = pathlib.Path(_OUT.value)
  published.check_new(out)
  config = app.config_values(_CONFIG)
  overrides = app.config_overrides("config")
  given = {name[6:] for name in overrides if name.startswith("model.")}
  arrays = published.read_arrays(pathlib.Path(_CHECKPOINT.value))
  config, notes = published.complete_config(config, arrays, given)
  for note in notes:
    app.say(f"note: {note}")
  names = None
  if _IDENTIFIERS.value:
    names = published.read_names(pathlib.Path(_IDENTIFIERS.value))
  choice = _PUZZLE_TABLE.value
  data_names = published.names_of_data(config_lib.read(config), choice, app.say)
  arrays, config, names = published.arrange_table(
    arrays, config, choice, names, data_names
  )
  model = config_lib.read(config).model
  params = reference.params_from_reference(arrays, model)
  published.write_run(out, config, overrides, params, names)
  print(
    f"wrote {out}: {model.family}, {model.mixer}, "
    f"{network.count_weights(params):,} weights, "
    f"{model.num_puzzle_ids:,} puzzle embeddings\n"
    f"trm evaluate --workdir={out} tells how good it is"
  )
  return 0


if __name__ == "__main__":
  app.run(main)
