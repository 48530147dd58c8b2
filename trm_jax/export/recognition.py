"""Which model a set of arrays is: read from their names and shapes.

The names are those of the reference implementation, see `reference.layout`.
Shapes tell most of an architecture, not all of it: heads, and how often the
network is applied, leave no trace in any array.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from trm_jax.core import layers
from trm_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

# What the reference computes or overwrites before it reads it. Some of its
# relatives save them too.
_BUFFERS = {
  "inner.rotary_emb.cos_cached",
  "inner.rotary_emb.sin_cached",
  "inner.rotary_emb.inv_freq",
  "inner.puzzle_emb.local_weights",
  "inner.puzzle_emb.local_ids",
}

# What wrappers put before a name: torch.compile, the loss head, and training
# on several devices.
_PREFIX = re.compile(r"(?:_orig_mod\.|module\.|model\.)*")

_LAYER = re.compile(r"inner\.([HL]_level)\.layers\.(\d{1,9})\.")
_LATENT = re.compile(r"inner\.([HL]\d{0,3})_init")

# The reference's inner widths are multiples of this.
_INNER_MULTIPLE = 256

# Beyond it numbers of floating point are too coarse to mean a width.
_LARGEST_EXPANSION = 1e6

# More than any such model has. Describing one takes time for each.
_MOST_LAYERS = 256

# Names of initial latents and of networks -> the family.
_PARTS = {
  ("H,L", "H_level,L_level"): "hrm",
  ("H,L", "L_level"): "trm",
  ("L", "L_level"): "single_latent",
  ("H", "H_level"): "transformer",
}


def plain_names(names: Collection[str]) -> dict[str, str]:
  """Frees names from what wrappers put before them.

  Returns:
    The name as in `reference.layout` -> the name as it was given.

  Raises:
    UserError: if two names would then be one, as in a file of two models.
  """
  plain: dict[str, str] = {}
  for name in sorted(names):
    match = _PREFIX.match(name)
    short = name[match.end() :] if match else name
    if short in plain:
      raise UserError(
        f"{plain[short]!r} and {name!r} are the same array of two models; "
        "keep one of the models in the file"
      )
    plain[short] = name
  return plain


def is_buffer(name: str) -> bool:
  """Whether an array holds nothing that was learnt."""
  return name in _BUFFERS


def recognise(
  shapes: Shapes,
  settings: Mapping[str, Any],
  seq_len: int,
  vocab_size: int,
  given: Collection[str] = (),
) -> dict[str, Any]:
  """Reads a model's architecture from the shapes of its arrays.

  Args:
    shapes: plain name -> shape in the reference's layout, buffers included.
    settings: every field of `ModelConfig` as configured; where shapes leave a
      choice, what is configured is taken.
    seq_len: S of the task.
    vocab_size: V of the task.
    given: fields that were named by hand, for this file: to be trusted even
      where the rest was configured for another kind of model.

  Returns:
    Fields of `ModelConfig` and their values, to be put over `settings`.

  Raises:
    UserError: if they are no model known here, one of another task, or one of
      which shapes and settings leave something open; then naming it.
  """
  family = _family(shapes)
  tokens, width = _matrix(shapes, "inner.embed_tokens.embedding_weight")
  if tokens != vocab_size:
    raise UserError(
      f"the model reads {tokens} tokens, and those of the task are "
      f"{vocab_size}: choose a config of the task that it was trained on"
    )
  stack = "H_level" if family == "transformer" else "L_level"
  block = f"inner.{stack}.layers.0"
  is_attention = f"{block}.self_attn.qkv_proj.weight" in shapes
  found: dict[str, Any] = {
    "family": family,
    "width": width,
    "layers": _count_layers(shapes, family),
    "mixer": "attention" if is_attention else "mlp",
    "registers": 0,  # the reference has none
  }
  if family == "multi_latent":
    found["latent_steps"] = len(_latents(shapes)) - 1
  inner = [(width, _inner_width(shapes, f"{block}.mlp"))]
  length = _length(shapes, block)
  if not is_attention:
    assert length is not None, "a token mixer has the sequence in its shape"
    inner.append((length, _inner_width(shapes, f"{block}.mlp_t")))
  found |= _expansion(inner, settings)
  found |= _positions(shapes, found, settings, given)
  found |= _prefix(shapes, found, length, seq_len, settings, given)
  _refuse_open_recursion(family, settings, given)
  return found


def _family(shapes: Shapes) -> str:
  latents = _latents(shapes)
  stacks = sorted(
    {match[1] for name in shapes if (match := _LAYER.match(name))}
  )
  several = {f"L{i + 1}" for i in range(len(latents) - 1)}
  if stacks == ["L_level"] and several and set(latents) == {"H", *several}:
    return "multi_latent"
  parts = (",".join(latents), ",".join(stacks))
  if parts not in _PARTS:
    raise UserError(
      "the arrays are of no model known here: initial latents "
      f"{', '.join(latents[:9]) or '(none)'} (inner.*_init) with networks "
      f"{', '.join(stacks) or '(none)'} (inner.*_level)"
    )
  return _PARTS[parts]


def _latents(shapes: Shapes) -> list[str]:
  matches = (_LATENT.fullmatch(name) for name in shapes)
  return sorted(match[1] for match in matches if match)


def _count_layers(shapes: Shapes, family: str) -> int:
  numbers: dict[str, set[int]] = {}
  for name in shapes:
    if match := _LAYER.match(name):
      numbers.setdefault(match[1], set()).add(int(match[2]))
  counts = set()
  for stack, seen in numbers.items():
    if seen != set(range(len(seen))):
      raise UserError(
        f"the layers of inner.{stack} are not numbered from 0 without a gap"
      )
    counts.add(len(seen))
  if len(counts) > 1:
    raise UserError(
      f"inner.H_level has {len(numbers['H_level'])} layers and inner.L_level "
      f"{len(numbers['L_level'])}; here both networks of {family!r} have as "
      "many"
    )
  (count,) = counts
  if count > _MOST_LAYERS:
    raise UserError(f"{count:,} layers; at most {_MOST_LAYERS} are read")
  return count


def _inner_width(shapes: Shapes, layer: str) -> int:
  doubled, _ = _matrix(shapes, f"{layer}.gate_up_proj.weight")
  if doubled % 2:
    raise UserError(
      f"array '{layer}.gate_up_proj.weight' has {doubled} rows, which are not "
      "those of a gate and as many values"
    )
  return doubled // 2


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
  """The shape of an array that must be there, and be a matrix."""
  shape = shapes.get(name)
  if shape is None or len(shape) != 2 or 0 in shape:
    there = "missing" if shape is None else f"of shape {list(shape)}"
    raise UserError(f"array {name!r} is {there}; expected a matrix")
  return shape[0], shape[1]


def _length(shapes: Shapes, block: str) -> int | None:
  """L, if any array has it in its shape."""
  for name, axis in (
    (f"{block}.mlp_t.gate_up_proj.weight", 1),
    ("inner.embed_pos.embedding_weight", 0),
    ("inner.rotary_emb.cos_cached", 0),
  ):
    if name in shapes:
      return _matrix(shapes, name)[axis]
  if f"{block}.self_attn.qkv_proj.weight" not in shapes:
    raise UserError(
      f"{block} mixes tokens neither by 'self_attn' nor by 'mlp_t'; no other "
      "way is known here"
    )
  return None


def _expansion(
  inner: list[tuple[int, int]], settings: Mapping[str, Any]
) -> dict[str, Any]:
  """An expansion and a multiple that give the inner widths.

  Many pairs do, and all of them make the same model: what is configured is
  taken if it does, then the simplest number with the largest multiple.

  Args:
    inner: pairs of a width and its inner width.
    settings: as configured.
  """
  configured = (settings["expansion"], settings["inner_multiple"])
  common = math.gcd(*(wanted for _, wanted in inner))
  powers = (2**k for k in range(10, -1, -1))
  multiples = [configured[1], _INNER_MULTIPLE, *powers]
  candidates = [configured]
  for multiple in multiples:
    if multiple < 1 or common % multiple:
      continue
    # All that is rounded up to the inner widths.
    low = max(1.5 * (to - multiple + 0.5) / width for width, to in inner)
    high = min(1.5 * (to + 0.5) / width for width, to in inner)
    for parts in (1, 2, 4, 8, 16, 32):
      candidates.append((math.floor(high * parts) / parts, multiple))
    candidates.append(((low + high) / 2, multiple))
  for expansion, multiple in candidates:
    if 0 < expansion < _LARGEST_EXPANSION and all(
      layers.inner_width(expansion, width, multiple) == wanted
      for width, wanted in inner
    ):
      return {"expansion": expansion, "inner_multiple": multiple}
  raise UserError(
    "no expansion makes the inner widths "
    + " and ".join(f"{wanted} of {width}" for width, wanted in inner)
  )


def _positions(
  shapes: Shapes,
  found: Mapping[str, Any],
  settings: Mapping[str, Any],
  given: Collection[str],
) -> dict[str, Any]:
  """How positions are told, and the heads where that is known."""
  if "inner.embed_pos.embedding_weight" in shapes:
    positions = "learned"
  elif found["mixer"] == "mlp":
    return {"positions": "none"}
  elif "inner.rotary_emb.cos_cached" in shapes:
    _, head = _matrix(shapes, "inner.rotary_emb.cos_cached")
    if found["width"] % head:
      raise UserError(
        f"'inner.rotary_emb.cos_cached' is for heads of {head} channels, "
        f"which do not divide the width {found['width']}"
      )
    return {"positions": "rotary", "heads": found["width"] // head}
  else:
    positions = None
  if found["mixer"] == "mlp":
    return {"positions": positions}
  is_foreign = settings["mixer"] != "attention"
  asked = ["heads=N"] if is_foreign and "heads" not in given else []
  if positions is None:
    is_told = settings["positions"] in ("rotary", "none")
    if not is_told or (is_foreign and "positions" not in given):
      asked.append("positions=rotary (or none)")
  if asked:
    raise UserError(
      _ask(
        asked, f"an attention model, with mixer={settings['mixer']!r} and "
        f"positions={settings['positions']!r} in the config",
      )
    )  # fmt: skip
  return {"positions": positions} if positions else {}


def _prefix(
  shapes: Shapes,
  found: Mapping[str, Any],
  length: int | None,
  seq_len: int,
  settings: Mapping[str, Any],
  given: Collection[str],
) -> dict[str, Any]:
  """Width and tokens of the puzzle embedding."""
  width, table = found["width"], "inner.puzzle_emb.weights"
  channels = _matrix(shapes, table)[1] if table in shapes else 0
  least = -(-channels // width)
  needed = f"{channels} channels of puzzle embedding in tokens of {width}"
  if length is not None:
    prefix = length - seq_len
    if prefix < least or (prefix and not channels):
      raise UserError(
        f"the model reads {length} tokens with {needed}; a puzzle of the task "
        f"has {seq_len}: choose a config of the task that it was trained on"
      )
  elif "puzzle_emb_len" not in given and (
    not channels or found["family"] in ("hrm", "transformer")
  ):
    prefix = least  # in the reference, these have no choice
  else:
    prefix = settings["puzzle_emb_len"] or least
    is_told = settings["puzzle_emb_ndim"] or "puzzle_emb_len" in given
    if prefix < least or not is_told:
      raise UserError(
        _ask(["puzzle_emb_len=P"], f"a model with {needed}, {least} or more")
      )
  if not channels:
    return {"puzzle_emb_ndim": 0}
  told = settings["puzzle_emb_len"]
  return {
    "puzzle_emb_ndim": channels,
    "puzzle_emb_len": told if (told or least) == prefix else prefix,
  }


def _refuse_open_recursion(
  family: str, settings: Mapping[str, Any], given: Collection[str]
):
  """Families differ in how often they recur: 2 and 2, or 3 and 6."""
  if family in ("transformer", settings["family"]):
    return
  asked = {"cycles": "cycles=T", "latent_steps": "latent_steps=N"}
  if family == "multi_latent":
    del asked["latent_steps"]
  asked = [flag for name, flag in asked.items() if name not in given]
  if asked:
    raise UserError(
      _ask(
        asked, f"family={family!r}, with family={settings['family']!r} in the "
        "config",
      )
    )  # fmt: skip


def _ask(flags: list[str], model: str) -> str:
  flags = [f"--config.model.{flag}" for flag in flags]
  return (
    f"this is {model}: shapes do not tell {' and '.join(flags)}; add that, or "
    "take a config of such a model"
  )
