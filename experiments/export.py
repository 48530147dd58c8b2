"""Exports a trained model to safetensors, PyTorch, StableHLO, ONNX or Orbax.

    trm export --workdir=DIR --out=PATH
        --format=safetensors|torch|stablehlo|onnx|orbax
        [--checkpoint=best|last|STEP] [--weights=ema|raw]
        [--precision=float32|int8] [--overwrite]

--workdir is a run's folder, or a .safetensors file exported from one.

    safetensors  PATH.safetensors  for --workdir of solve and export
    torch        PATH.pt           a checkpoint of the reference
                 or .safetensors   implementation; .pt needs PyTorch
    stablehlo    PATH.stablehlo    a solver for CPU, GPU and TPU; needs jax
    onnx         PATH.onnx         a solver for onnxruntime; needs the extra
                                   [onnx]; --precision=int8 stores matrices as
                                   8-bit integers
    orbax        PATH              a folder that Orbax loads

Config, task, vocabulary, names of the puzzle ids, step and scores are in the
file for safetensors, onnx and orbax, and in `PATH.json` for torch, stablehlo
and onnx.
"""

import pathlib

from absl import flags

from trm_jax.cli import app

_WORKDIR = flags.DEFINE_string(
  "workdir", "", "Folder of a run, or an exported .safetensors file."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_FORMAT = flags.DEFINE_string("format", "", "The format, see above.")
_OUT = flags.DEFINE_string("out", "", "The file or folder to write.")
_WEIGHTS = flags.DEFINE_enum(
  "weights", "ema", ["ema", "raw"], "Moving average, or last weights."
)
_PRECISION = flags.DEFINE_enum(
  "precision", None, ["float32", "int8"], "Storage of matrices in onnx."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing files.")


def main(argv: list[str]) -> int:
  """Exports the model in `--workdir`."""
  from trm_jax.errors import UserError
  from trm_jax.export import formats
  from trm_jax.run import files, pretrained, result

  app.no_arguments(argv)
  for flag in (_FORMAT, _OUT, _WORKDIR):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; see --help")
  chosen = formats.get(_FORMAT.value, _PRECISION.value)
  path = pathlib.Path(_OUT.value)
  paths = chosen.paths(path)
  files.refuse_existing(_OVERWRITE.value, *paths)
  is_file = pathlib.Path(_WORKDIR.value).is_file()
  for flag in (_CHECKPOINT, _WEIGHTS):
    if is_file and flags.FLAGS[flag.name].present:
      raise UserError(
        f"--{flag.name}={flag.value}: there is only one model in "
        f"{_WORKDIR.value}; leave it out, or name a run's folder"
      )
  model = pretrained.load(
    _WORKDIR.value, _CHECKPOINT.value, averaged=_WEIGHTS.value == "ema"
  )
  chosen.export(model, path, overwrite=_OVERWRITE.value)
  sizes = [f"{made} ({formats.size(made):,} bytes)" for made in paths]
  print(f"wrote {' and '.join(sizes)}, step {model.step}")
  for scores in result.in_words(model.scores):
    print(f"its scores: {scores}")
  print("To use it:")
  print(chosen.use.format(path=path, tokens=model.experiment.task.seq_len))
  return 0


if __name__ == "__main__":
  app.run(main)
