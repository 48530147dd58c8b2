"""Replays a recording of the reference implementation and compares.

A recording is an `.npz` of arrays (no pickled objects): a `config`, the weights
before training, a fixed-depth evaluation, several training steps, the gradients
of the first step and the weights after the last.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from trm_jax.config import TrainConfig
from trm_jax.core import losses, recursion, rollout
from trm_jax.core.family import FAMILIES
from trm_jax.core.halting import HaltingConfig, Puzzles
from trm_jax.core.model import Latents, ModelConfig, Params
from trm_jax.core.optim import OptimConfig
from trm_jax.data import checks, npz
from trm_jax.data.task import Task
from trm_jax.errors import UserError
from trm_jax.export import reference
from trm_jax.train import step as train

_POSITIONS = {"none": "none", "rope": "rotary", "learned": "learned"}
_LOSSES = {
  "stablemax_cross_entropy": "stablemax",
  "softmax_cross_entropy": "softmax",
}

# Settings that are the lengths of loops and lists, and their largest value.
_STEPS = ("H_layers", "L_layers", "H_cycles", "L_cycles")
_MOST_STEPS = 1000


class Difference(NamedTuple):
  """The difference between a replayed and a recorded quantity."""

  name: str  # the quantity's key in the recording
  absolute: float  # largest absolute difference
  relative: float  # divided by the largest recorded magnitude


class Recording:
  """The arrays of an `.npz` file by name; a UserError if it is not one."""

  def __init__(self, path: str):
    self.path = path
    self.arrays = npz.read(path)
    for name, array in self.arrays.items():
      if name != "config" and array.dtype.kind == "U":
        raise UserError(f"{path}: {name!r} holds text; expected numbers")
    text = str(self["config"])
    try:
      self.config = checks.parse_json(text)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"{path}: 'config' is not valid JSON ({error})"
      ) from error
    if not isinstance(self.config, dict):
      raise UserError(f"{path}: 'config' is not an object of settings")
    for name, value in self.config.items():
      if isinstance(value, (list, dict)):
        raise UserError(f"{path}: {name} is {checks.shorten(value)}, no number")
      if name in _STEPS and not (type(value) is int and value <= _MOST_STEPS):
        raise UserError(
          f"{path}: {name}={checks.shorten(value)}: must be a whole number up "
          f"to {_MOST_STEPS}"
        )

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self.arrays:
      raise UserError(f"{self.path}: key {name!r} is missing")
    return self.arrays[name]

  def setting(self, name: str):
    """A field of the recording's config."""
    if name not in self.config:
      raise UserError(f"{self.path}: 'config' has no field {name!r}")
    return self.config[name]

  def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array, checked to have this shape."""
    array = self[name]
    if array.shape != shape:
      raise UserError(
        f"{self.path}: {name!r} has shape {array.shape}, but its config makes "
        f"it {shape}"
      )
    return array

  def count(self, prefix: str) -> int:
    """The number of groups `prefix/0/...`, `prefix/1/...`."""
    matches = (
      re.match(rf"{prefix}/([0-9]{{1,6}})/", name) for name in self.arrays
    )
    numbers = {int(match.group(1)) for match in matches if match}
    if numbers != set(range(len(numbers))):
      raise UserError(
        f"{self.path}: the groups {prefix}/K are {sorted(numbers)}, not "
        "consecutive from 0"
      )
    return len(numbers)


def read_recipe(recording: Recording, dtype: str) -> train.Recipe:
  """Translates a recording's config."""
  get = recording.setting
  kind = get("kind")
  kinds = {f.reference.kind: f for f in FAMILIES.values() if f.reference}
  if kind not in kinds:
    raise UserError(
      f"{recording.path}: kind={kind!r}: must be one of {', '.join(kinds)}"
    )
  family = kinds[kind]
  assert family.reference
  layers = {  # "H_layers" counts the blocks of "H_level"
    reference.LAYER_FIELDS[ours]: get(f"{theirs[0]}_layers")
    for theirs, ours in family.reference.stacks
  }
  if layers.get("answer_layers") == layers["layers"]:
    del layers["answer_layers"]  # the default 0 means equal

  def choose(name: str, choices: dict[str, str]) -> str:
    if get(name) not in choices:
      raise UserError(
        f"{recording.path}: {name}={get(name)!r}: must be one of "
        f"{', '.join(choices)}"
      )
    return choices[get(name)]

  mixer = "mlp" if recording.config.get("mlp_t", False) else "attention"
  positions = choose("pos_encodings", _POSITIONS)
  if (mixer, positions) == ("mlp", "rotary"):
    positions = "none"  # the reference ignores them without attention
  try:
    model = ModelConfig(
      vocab_size=get("vocab_size"),
      seq_len=get("seq_len"),
      num_puzzle_ids=get("num_puzzle_identifiers"),
      family=family.name,
      width=get("hidden_size"),
      **layers,
      heads=get("num_heads"),
      expansion=get("expansion"),
      mixer=mixer,
      positions=positions,
      rope_theta=recording.config.get("rope_theta", 10000.0),
      norm_eps=recording.config.get("rms_norm_eps", 1e-5),
      puzzle_emb_ndim=get("puzzle_emb_ndim"),
      puzzle_emb_len=recording.config.get("puzzle_emb_len", 0),
      cycles=get("H_cycles"),
      latent_steps=get("L_cycles"),
      dtype=dtype,
      param_dtype=dtype,
    )
    return train.Recipe(
      model=model,
      halting=HaltingConfig(
        max_steps=get("halt_max_steps"),
        exploration=get("halt_exploration_prob"),
      ),
      optim=OptimConfig(
        lr=get("lr"),
        weight_decay=get("weight_decay"),
        beta1=get("beta1"),
        beta2=get("beta2"),
        warmup_steps=0,
        puzzle_lr=get("puzzle_emb_lr"),
        puzzle_weight_decay=get("puzzle_emb_weight_decay"),
      ),
      train=TrainConfig(
        steps=10,
        batch_size=get("batch_size"),
        loss=choose("loss_type", _LOSSES),
      ),
      task=Task(
        name="recording",
        seq_len=model.seq_len,
        vocab_size=model.vocab_size,
        parse=np.array,
        render=str,
        draw=print,
      ),
    )
  except (TypeError, ValueError) as error:
    raise UserError(f"{recording.path}: in 'config': {error}") from error


def replay(recording: Recording, dtype: str) -> Iterator[Difference]:
  """Replays a recording and yields one `Difference` per recorded quantity.

  Args:
    recording: the recording.
    dtype: "float64" (needs `jax_enable_x64`) or "float32".

  Raises:
    UserError: for an unknown kind, a missing key or a wrong shape.
  """
  recipe = read_recipe(recording, dtype)
  names = {entry.name for entry in reference.layout(recipe.model)}
  params = reference.params_from_reference(
    {name: recording[f"params/{name}"] for name in names}, recipe.model
  )
  yield from _replay_evaluation(recording, params, recipe)
  yield from _replay_training(recording, params, recipe)


def _replay_evaluation(
  recording: Recording, params: Params, recipe: train.Recipe
) -> Iterator[Difference]:
  puzzles = _puzzles(recording, "eval", recipe)
  rows = params.puzzle_table[puzzles.puzzle_ids]
  latents = recursion.initial_latents(
    params.initial, rows.shape[0], recipe.model
  )
  step = jax.jit(
    lambda latents: rollout.step(
      params.weights, rows, latents, puzzles.inputs, recipe.model
    )
  )
  for k in range(recording.count("eval")):
    latents, found = step(latents)
    outputs = found.outputs
    steps = jnp.full(rows.shape[:1], k + 1)
    loss, _ = losses.losses_and_metrics(
      outputs, puzzles.labels, steps > 0, steps, recipe.train.loss
    )
    where = f"eval/{k}"
    yield _compare(recording, f"{where}/logits", outputs.logits)
    yield _compare(recording, f"{where}/q_halt_logits", outputs.q_halt)
    yield _compare(recording, f"{where}/loss", loss)


def _replay_training(
  recording: Recording, params: Params, recipe: train.Recipe
) -> Iterator[Difference]:
  state = train.state_from_params(params, recipe)
  learn = jax.jit(lambda s, p: train.learn(s, p, recipe))
  count = recording.count("train")
  for t in range(count):
    where = f"train/{t}"
    state, learned = learn(state, _puzzles(recording, where, recipe))
    outputs, carry = learned.outputs, state.carry
    labels = carry.puzzles.labels
    for name, ours in (
      ("out/logits", outputs.logits),
      ("out/q_halt_logits", outputs.q_halt),
      ("out/q_continue_logits", outputs.q_continue),
      ("loss", learned.loss),
      ("halted", carry.halted),
      ("steps", carry.steps),
      *(
        (f"carry/z_{name}", _latent(carry.latents, path))
        for name, path in reference.names(recipe.model).latents(recipe.model)
      ),
      ("current/inputs", carry.puzzles.inputs),
      # The reference writes -100 where a label is missing.
      ("current/labels", jnp.where(losses.is_labelled(labels), labels, -100)),
      ("current/puzzle_identifiers", carry.puzzles.puzzle_ids),
      *((f"metrics/{name}", v) for name, v in learned.metrics.items()),
    ):
      yield _compare(recording, f"{where}/{name}", ours)
    if t == 0:
      yield from _compare_gradients(recording, learned, params, recipe.model)
  if count:
    arrays = reference.params_to_reference(state.params, recipe.model)
    for name, ours in arrays.items():
      yield _compare(recording, f"updated/{count - 1}/{name}", ours)


def _latent(latents: Latents, path: tuple[Any, ...]) -> jax.Array:
  """The latent at a path of `ReferenceNames.latents`."""
  part, *row = path
  array = getattr(latents, part)
  return array[:, row[0]] if row else array


def _compare_gradients(
  recording: Recording,
  learned: train.Learned,
  params: Params,
  config: ModelConfig,
) -> Iterator[Difference]:
  as_params = params.replace(weights=learned.gradients)
  arrays = reference.params_to_reference(as_params, config)
  for name, ours in arrays.items():
    trained = not name.endswith("_init") and name != "inner.puzzle_emb.weights"
    if trained:
      yield _compare(recording, f"grads/{name}", ours)
  if config.puzzle_emb_ndim:
    name = "grads/puzzle_emb_local"
    yield _compare(recording, name, learned.row_gradients)


def _puzzles(recording: Recording, where: str, recipe: train.Recipe) -> Puzzles:
  batch, tokens = recipe.train.batch_size, recipe.model.seq_len
  arrays = {
    "inputs": recording.array(f"{where}/inputs", (batch, tokens)),
    "labels": np.maximum(
      recording.array(f"{where}/labels", (batch, tokens)), 0
    ),
    "puzzle_ids": recording.array(f"{where}/puzzle_identifiers", (batch,)),
  }
  for name, limit in (
    ("inputs", recipe.model.vocab_size),
    ("puzzle_ids", recipe.model.num_puzzle_ids),
  ):
    if arrays[name].min() < 0 or arrays[name].max() >= limit:
      raise UserError(
        f"{recording.path}: {where}: {name} must lie in [0, {limit})"
      )
  return Puzzles(**{k: jnp.asarray(v, jnp.int32) for k, v in arrays.items()})


def _compare(recording: Recording, name: str, ours: ArrayLike) -> Difference:
  ours = np.asarray(ours, np.float64)
  theirs = recording.array(name, ours.shape).astype(np.float64)
  difference = float(np.max(np.abs(ours - theirs), initial=0))
  if not np.isfinite(difference):
    return Difference(name, np.inf, np.inf)
  scale = float(np.max(np.abs(theirs), initial=0))
  return Difference(name, difference, difference / (scale or 1.0))
