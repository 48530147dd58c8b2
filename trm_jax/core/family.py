"""What makes one kind of model differ from the others: a record a family.

All families share the embedding, the blocks, the heads, the carry and the
losses. A `Family` says the rest. Each lies in a file of its own in
`core/families/`; a family defined elsewhere calls `register`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

TOKEN_LOSSES = ("stablemax", "softmax")


@dataclasses.dataclass(frozen=True)
class Style:
  """How a family looks in figures.

  Attributes:
    colour: "#RRGGBB".
    marker: a marker of matplotlib.
    line: a line style of matplotlib.
  """

  colour: str
  marker: str
  line: str | tuple[int, tuple[float, ...]]

  @property
  def ink(self) -> tuple[float, ...]:
    """The colour of text, RGB in [0, 1]: darker, for thin strokes on white."""
    value = int(self.colour[1:], 16)
    return tuple(0.7 * (value >> shift & 255) / 255 for shift in (16, 8, 0))


@dataclasses.dataclass(frozen=True)
class ReferenceNames:
  """What the reference PyTorch implementation calls a family and its arrays.

  Attributes:
    kind: its name in recordings.
    model: its module and class.
    stacks: pairs (its network, our stack of blocks), in its order.
    latents: `config -> pairs (its latent, path in Latents)`.
    lacks: `config -> (field, reason)` for a model of this family that it does
      not have, else None.
  """

  kind: str
  model: str
  stacks: tuple[tuple[str, str], ...]
  latents: Callable[[Any], list[tuple[str, tuple[Any, ...]]]]
  lacks: Callable[[Any], tuple[str, str] | None] = lambda config: None


@dataclasses.dataclass(frozen=True)
class Passes:
  """How often a supervision step applies a stack of blocks.

  Attributes:
    total: with and without gradient.
    learnt: with gradient, in training.
  """

  total: int
  learnt: int


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
  """A kind of model. In the callables, `config` is a `ModelConfig`.

  Attributes:
    name: as in `config.model.family`.
    title: in tables and figures.
    phrase: in a sentence.
    summary: what recurs, in a line.
    source: the paper, or where else it comes from.
    stacks: `config -> {stack of blocks: its number of layers}`, the weights.
    latents: `config -> {"y": shape, "z": shape}` of the initial vectors;
      what is left out does not exist.
    passes: `config -> {stack: Passes}` of one supervision step.
    style: its look in figures.
    step: `(recursion.StepInputs, Latents) -> Latents`, one supervision step.
      None for a family that has `supervise` instead.
    supervise: `(weights, puzzle_rows, inputs, answers, config) -> (logits
      [B, S, V], halting logit [B])`, for a model that is not embed, step, read.
    is_recursive: whether more supervision steps can change an answer.
    unread: fields of `ModelConfig` that are not read.
    tied: fields of `ModelConfig` that a depth schedule cannot change.
    check: refuses configs by a `ValueError` that names the field.
    length: `config -> L`, the tokens that the blocks see.
    has_halting_head: whether it has `q_head`.
    halting_margin: `(q_halt, q_continue) -> margin`, positive to halt.
    bootstraps: whether `q_continue` learns what the next step will say.
    learns_padding: whether PAD is a label like others.
    losses: token losses that it can learn by.
    inference_flops: `config -> FLOPs` of an answer, where it is not
      `passes` over all tokens and the heads.
    is_standard_cycle: whether a step is T cycles of n latent steps
      `z <- think(z + y + x)` and one `y <- answer(y + z)`, or one
      `y <- net(y + x)` or `net(x)` without latent steps, so that exporters that
      write the recursion anew can express it.
    reference: names in the reference implementation; None if it has none.
  """

  name: str
  title: str
  phrase: str
  summary: str
  source: str
  stacks: Callable[[Any], dict[str, int]]
  latents: Callable[[Any], dict[str, tuple[int, ...]]]
  passes: Callable[[Any], dict[str, Passes]]
  style: Style
  step: Callable[[Any, Any], Any] | None = None
  supervise: Callable[..., Any] | None = None
  is_recursive: bool = True
  unread: tuple[str, ...] = ("answer_layers",)
  tied: tuple[str, ...] = ()
  check: Callable[[Any], None] = lambda config: None
  length: Callable[[Any], int] = lambda config: config.prefix + config.seq_len
  has_halting_head: bool = True
  halting_margin: Callable[[Any, Any], Any] = lambda halt, proceed: halt
  bootstraps: bool = False
  learns_padding: bool = False
  losses: tuple[str, ...] = TOKEN_LOSSES
  inference_flops: Callable[[Any], int] | None = None
  is_standard_cycle: bool = False
  reference: ReferenceNames | None = None


def lacks_wide_prefix(config: Any) -> tuple[str, str] | None:
  """For `ReferenceNames.lacks`, where the prefix is as short as can be."""
  tight = -(-config.puzzle_emb_ndim // config.width)
  if config.prefix == tight:
    return None
  return "puzzle_emb_len", (
    f"its {config.family!r} always has {tight} prefix tokens at this width"
  )


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
  """Makes a family known by its name.

  Raises:
    ValueError: if another family has the name.
  """
  if FAMILIES.setdefault(family.name, family) is not family:
    raise ValueError(f"there is a family {family.name!r} already")
  return family


def get(name: str) -> Family:
  """The family of that name.

  Raises:
    ValueError: if there is none.
  """
  if name not in FAMILIES:
    raise ValueError(f"family={name!r}: must be one of {', '.join(FAMILIES)}")
  return FAMILIES[name]
