"""The export formats of trained models, one record per format."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from trm_jax.errors import UserError
from trm_jax.export import onnx_file, orbax_folder, stablehlo, torch_files
from trm_jax.run import files, weights
from trm_jax.run.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Format:
  """A format."""

  suffixes: tuple[str, ...]  # of its files; empty for a folder
  export: Callable[..., None]  # `(model, path, overwrite=False)` writes it
  use: str  # code that uses it; {path}: the file, {tokens}: tokens of a puzzle
  has_card: bool = False  # whether a card is written beside it
  precisions: tuple[str, ...] = ()  # if any, `export` takes `precision`

  def paths(self, path: pathlib.Path) -> list[pathlib.Path]:
    """The paths that `export` writes; a UserError for a wrong suffix."""
    if self.suffixes and path.suffix not in self.suffixes:
      raise UserError(
        f"{path}: the name of this format must end in "
        f"{' or '.join(self.suffixes)}"
      )
    return [path, files.card_path(path)] if self.has_card else [path]


def _safetensors(model: Pretrained, path: pathlib.Path, overwrite: bool):
  files.refuse_existing(overwrite, path)
  weights.save_weights(path, model.params, model.config, model.facts())


FORMATS = {
  "safetensors": Format(
    (".safetensors",),
    _safetensors,
    """\
  from trm_jax.run import pretrained
  model = pretrained.load("{path}")""",
  ),
  "torch": Format(
    (".pt", ".safetensors"),
    torch_files.export,
    """\
  # of the reference implementation; what it calls arch is in {path}.json
  python pretrain.py load_checkpoint={path}  # .pt
  model.load_state_dict(load_file("{path}"), assign=True)  # .safetensors""",
    has_card=True,
  ),
  "stablehlo": Format(
    (".stablehlo",),
    stablehlo.export,
    """\
  exported = jax.export.deserialize(open("{path}", "rb").read())
  found = jax.jit(exported.call)(inputs, puzzle_ids, depth, threshold)
  # int32 [b, {tokens}], int32 [b], int32 [], float32 [] -> a dict""",
    has_card=True,
  ),
  "onnx": Format(
    (".onnx",),
    onnx_file.export,
    """\
  session = onnxruntime.InferenceSession("{path}")
  session.run(None, dict(inputs=..., puzzle_ids=..., depth=..., threshold=...))
  # int32 [b, {tokens}], int32 [b], int64 [], float32 []""",
    has_card=True,
    precisions=onnx_file.PRECISIONS,
  ),
  "orbax": Format(
    (),
    orbax_folder.export,
    """\
  from orbax.checkpoint import v1 as ocp
  params = ocp.load("{path}")""",
  ),
}


def get(name: str, precision: str | None = None) -> Format:
  """The format of that name, with `export` in that precision."""
  if name not in FORMATS:
    raise UserError(f"--format={name}: must be one of {', '.join(FORMATS)}")
  found = FORMATS[name]
  if precision is None:
    return found
  if precision not in found.precisions:
    known = [name for name, each in FORMATS.items() if each.precisions]
    raise UserError(
      f"--precision={precision}: of --format={', '.join(known)} only"
    )
  export = functools.partial(found.export, precision=precision)
  return dataclasses.replace(found, export=export)


def size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder."""
  found = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in found if file.is_file())
