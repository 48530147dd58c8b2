"""Exports a trained model to files that others read.

    python -m experiments.export --workdir=DIR --out=PATH
        --format=safetensors|torch|stablehlo|onnx|orbax
        [--checkpoint=best|last|STEP] [--weights=ema|raw]
        [--precision=float32|int8] [--overwrite]

--workdir is a run's folder, or a .safetensors file exported from one.

    safetensors  PATH.safetensors  solve and export take it as --workdir
    torch        PATH.pt           the reference implementation's own
                 or .safetensors   checkpoint; .pt needs torch
    stablehlo    PATH.stablehlo    a solver for CPU, GPU and TPU; runs with jax
    onnx         PATH.onnx         a solver for onnxruntime; needs the extra
                                   [onnx]; --precision=int8 stores its matrices
                                   in bytes
    orbax        PATH              a folder that Orbax loads

Config, task, vocabulary, names of the puzzle ids, step and scores are inside
safetensors, onnx and orbax; beside torch and stablehlo, in `PATH.json`.
"""

import dataclasses
import pathlib

from absl import flags

from trm_jax.cli import app
from trm_jax.errors import UserError
from trm_jax.export import (
  onnx_file,
  orbax_folder,
  stablehlo,
  torch_files,
)
from trm_jax.run import files, pretrained, weights
from trm_jax.run.folder import RunFolder
from trm_jax.run.pretrained import Pretrained

# What each format may be called.
_SUFFIXES = {
  "safetensors": (".safetensors",),
  "torch": (".pt", ".safetensors"),
  "stablehlo": (".stablehlo",),
  "onnx": (".onnx",),
  "orbax": (),
}

_WORKDIR = flags.DEFINE_string(
  "workdir", "", "Folder of a run, or an exported .safetensors file."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_FORMAT = flags.DEFINE_enum("format", None, list(_SUFFIXES), "What to write.")
_OUT = flags.DEFINE_string("out", "", "The file or folder to write.")
_WEIGHTS = flags.DEFINE_enum(
  "weights", "ema", ["ema", "raw"], "Averaged over training, or the last."
)
_PRECISION = flags.DEFINE_enum(
  "precision",
  "float32",
  list(onnx_file.PRECISIONS),
  "Of onnx: how it is stored.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there.")

_USES = {
  "safetensors": """\
  from trm_jax import pretrained
  model = pretrained.load("{path}")""",
  ".pt": """\
  python pretrain.py load_checkpoint={path}
  # of the reference; what it calls arch is under "arch" in {path}.json""",
  "torch": """\
  from safetensors.torch import load_file
  model.load_state_dict(load_file("{path}"), assign=True)
  # the reference's, compiled; what it calls arch is in {path}.json""",
  "stablehlo": """\
  exported = jax.export.deserialize(open("{path}", "rb").read())
  found = jax.jit(exported.call)(inputs, puzzle_ids, depth, threshold)
  # int32 [b, {tokens}], int32 [b], int32 [], float32 [] -> a dict""",
  "onnx": """\
  session = onnxruntime.InferenceSession("{path}")
  session.run(None, dict(inputs=..., puzzle_ids=..., depth=..., threshold=...))
  # int32 [b, {tokens}], int32 [b], int64 [], float32 []""",
  "orbax": """\
  from orbax.checkpoint import v1 as ocp
  params = ocp.load("{path}")""",
}


def main(argv: list[str]) -> int:
  """Exports the model in `--workdir`."""
  app.no_arguments(argv)
  paths = _check_flags()
  path = paths[0]
  model = pretrained.load(_WORKDIR.value, _CHECKPOINT.value)
  if _WEIGHTS.value == "raw":
    model = _with_raw_weights(model)
  _write(model, path)
  sizes = [f"{made} ({_size(made):,} bytes)" for made in paths]
  use = _USES[".pt" if path.suffix == ".pt" else str(_FORMAT.value)]
  tokens = model.experiment.task.seq_len
  print(f"wrote {' and '.join(sizes)}, step {model.step}. To use it:")
  print(use.format(path=path, tokens=tokens))
  return 0


def _check_flags() -> list[pathlib.Path]:
  """What will be written, if the flags go together."""
  if not _FORMAT.value:
    raise UserError(f"--format is missing: one of {', '.join(_SUFFIXES)}")
  suffixes = _SUFFIXES[_FORMAT.value]
  if not _OUT.value:
    raise UserError("--out is missing: name what to write")
  path = pathlib.Path(_OUT.value)
  if suffixes and path.suffix not in suffixes:
    raise UserError(
      f"--out={path}: the name of this format must end in "
      f"{' or '.join(suffixes)}"
    )
  if _FORMAT.value != "onnx" and flags.FLAGS["precision"].present:
    raise UserError(f"--precision={_PRECISION.value}: of --format=onnx only")
  if not _WORKDIR.value:
    raise UserError("--workdir is missing: name a run's folder or a file")
  if pathlib.Path(_WORKDIR.value).is_file():
    for flag in ("checkpoint", "weights"):
      if flags.FLAGS[flag].present:
        raise UserError(
          f"--{flag}={flags.FLAGS[flag].value}: there is but one model in "
          f"{_WORKDIR.value}; leave it out, or name a run's folder"
        )
  paths = [path]
  if _FORMAT.value in ("torch", "stablehlo"):
    paths.append(files.card_path(path))
  files.refuse_existing(_OVERWRITE.value, *paths)
  return paths


def _with_raw_weights(model: Pretrained) -> Pretrained:
  """The same step as training left it; what is known of it is of averages."""
  _, params = pretrained.restore_params(
    model.experiment, RunFolder(_WORKDIR.value), str(model.step), averaged=False
  )
  return dataclasses.replace(
    model, params=params, scores=[], calibration=None, averaged=False
  )


def _write(model: Pretrained, path: pathlib.Path):
  overwrite = _OVERWRITE.value
  if _FORMAT.value == "safetensors":
    weights.save_weights(path, model.params, model.config, model.facts())
  elif _FORMAT.value == "torch":
    torch_files.export(model, path, overwrite)
  elif _FORMAT.value == "stablehlo":
    stablehlo.export(model, path, overwrite)
  elif _FORMAT.value == "onnx":
    onnx_file.export(model, path, _PRECISION.value, overwrite=overwrite)
  else:
    orbax_folder.export(model, path, overwrite)


def _size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder."""
  found = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in found if file.is_file())


if __name__ == "__main__":
  app.run(main)
