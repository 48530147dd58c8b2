"""Compares the arrays of a checkpoint with the model that a config describes.

Names are those of the reference implementation, see `reference.layout`. Width,
number of layers and puzzle embedding are read from the shapes; all else, such
as heads and cycles, comes from the config.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trm_jax.core.family import FAMILIES
from trm_jax.core.model import ModelConfig
from trm_jax.errors import UserError
from trm_jax.export import reference

Shapes = Mapping[str, tuple[int, ...]]

# Buffers that the reference recomputes.
_BUFFERS = {
  "inner.rotary_emb.cos_cached",
  "inner.rotary_emb.sin_cached",
  "inner.rotary_emb.inv_freq",
  "inner.puzzle_emb.local_weights",
  "inner.puzzle_emb.local_ids",
}

# Prefixes of torch.compile, distributed training and the loss head.
_PREFIX = re.compile(r"(?:_orig_mod\.|module\.|model\.)*")

_MAX_LAYERS = 256  # more than any published model has

# Field -> related fields that cannot be read from shapes.
_RELATED = {
  "family": "cycles and latent_steps",
  "mixer": "heads and positions",
  "puzzle_emb_ndim": "puzzle_emb_len",
}


def plain_names(names: Collection[str]) -> dict[str, str]:
  """Strips the prefixes of wrappers, and leaves out buffers.

  Returns:
    The name in `reference.layout` -> the name in the file.

  Raises:
    UserError: if two names become equal, as in a file of two models.
  """
  plain: dict[str, str] = {}
  for name in sorted(names):
    short = _PREFIX.sub("", name, count=1)
    if short in plain:
      raise UserError(
        f"{plain[short]!r} and {name!r} are the same array of two models; "
        "keep one of the models in the file"
      )
    plain[short] = name
  return {k: v for k, v in plain.items() if k not in _BUFFERS}


def recognise(
  shapes: Shapes, config: ModelConfig, given: Collection[str] = ()
) -> dict[str, Any]:
  """Checks that arrays are those of the configured model, at any size.

  Args:
    shapes: plain name -> shape in the reference's layout.
    config: the model as configured for the task.
    given: fields that the user set for these arrays.

  Returns:
    Field of `ModelConfig` -> its value in the file, where it differs: among
    `width`, `layers`, `answer_layers`, `positions`, `puzzle_emb_ndim`,
    `registers`, and `latent_steps` if each step has its own latent.

  Raises:
    UserError: naming an array, both its shapes, and single changes of the
      config that explain the difference.
  """
  found = _read_shapes(shapes, config)
  try:
    model = dataclasses.replace(config, **found)
  except ValueError as error:
    raise UserError(
      f"the config with what the file says, {found}: {error}"
    ) from error
  if difference := reference.mismatch(shapes, model):
    fits = [
      _flags(changes)
      for changes in _alternatives(shapes, config)
      if _describes(shapes, config, changes)
    ]
    advice = f"these describe it: {'; '.join(fits)}" if fits else (
      "choose the config that it was trained by"
    )  # fmt: skip
    raise UserError(f"{difference}. {advice}")
  name, reason = reference.names(model).lacks(model) or ("", "")
  if name == "puzzle_emb_len" and name not in given and not _length(shapes):
    raise UserError(
      f"config.model.{name}={model.puzzle_emb_len}: the reference "
      f"implementation has no such model: {reason}; set "
      f"--config.model.{name}=0, or its value if the file is from elsewhere"
    )
  return {
    name: value
    for name, value in found.items()
    if value != getattr(config, name) and name != "num_puzzle_ids"
  }


def _read_shapes(shapes: Shapes, config: ModelConfig) -> dict[str, Any]:
  """Reads the fields that are unambiguous for the configured family."""
  tokens = shapes.get(reference.TOKENS, ())
  if len(tokens) == 2 and tokens[0] != config.vocab_size:
    raise UserError(
      f"array {reference.TOKENS!r} has shape {tokens}: the model reads "
      f"{tokens[0]} tokens, and those of the task are {config.vocab_size}; "
      "choose a config of the task that it was trained on"
    )
  found: dict[str, Any] = {"registers": 0}  # the reference has none
  if len(tokens) == 2:
    found["width"] = tokens[1]
  theirs = reference.names(config)
  for their_stack, stack in theirs.stacks:
    if count := _count_layers(shapes, their_stack):
      found[reference.LAYER_FIELDS[stack]] = count
  if found.get("answer_layers") == found.get("layers", config.layers):
    found["answer_layers"] = config.answer_layers and found["answer_layers"]
  if "latent_steps" in config.kind.tied:
    latents = sum(name.endswith("_init") for name in shapes)
    others = len(theirs.latents(config)) - config.latent_steps
    found["latent_steps"] = latents - others
  if reference.POSITIONS in shapes:
    found["positions"] = "learned"
  table = shapes.get(reference.TABLE, (config.num_puzzle_ids, 0))
  # A config without puzzle embedding lacks the length of the prefix.
  if len(table) == 2 and (config.puzzle_emb_ndim or not table[1]):
    found["num_puzzle_ids"], found["puzzle_emb_ndim"] = table
  return found


def _count_layers(shapes: Shapes, stack: str) -> int:
  pattern = re.compile(rf"inner\.{stack}\.layers\.(\d{{1,9}})\.")
  seen = {int(match[1]) for name in shapes if (match := pattern.match(name))}
  if len(seen) > _MAX_LAYERS:
    raise UserError(f"{len(seen):,} layers; at most {_MAX_LAYERS} are read")
  return len(seen)


def _length(shapes: Shapes) -> int | None:
  """L, if a shape contains it."""
  for name, shape in shapes.items():
    if name == reference.POSITIONS and shape:
      return shape[0]
    if name.endswith(".mlp_t.gate_up_proj.weight") and len(shape) == 2:
      return shape[1]
  return None


def _alternatives(
  shapes: Shapes, config: ModelConfig
) -> Iterator[dict[str, Any]]:
  """Yields changes of the config that may explain a difference."""
  for family in FAMILIES.values():
    if family.reference:
      yield {"family": family.name}
  if config.mixer == "mlp":
    yield {"mixer": "attention"}
  else:
    yield {"mixer": "mlp", "positions": "none"}
  yield from ({"positions": positions} for positions in ("rotary", "none"))
  if length := _length(shapes):
    yield {"puzzle_emb_len": length - config.seq_len}
  table = shapes.get(reference.TABLE, ())
  if len(table) == 2 and not config.puzzle_emb_ndim:
    yield {"puzzle_emb_ndim": table[1]}
  for name, shape in shapes.items():
    if name.endswith(".mlp.gate_up_proj.weight") and len(shape) == 2:
      yield {"expansion": 0.75 * shape[0] / max(shape[1], 1)}
      return


def _describes(
  shapes: Shapes, config: ModelConfig, changes: Mapping[str, Any]
) -> bool:
  """Whether a changed config describes the file."""
  try:
    model = dataclasses.replace(config, **changes)
    model = dataclasses.replace(model, **_read_shapes(shapes, model))
    return reference.mismatch(shapes, model) is None
  except (ValueError, ArithmeticError):
    return False


def _flags(changes: Mapping[str, Any]) -> str:
  flags = [f"--config.model.{name}={value}" for name, value in changes.items()]
  related = [_RELATED[name] for name in changes if name in _RELATED]
  advice = f" (check {', '.join(related)} too)" if related else ""
  return " ".join(flags) + advice
