"""Checkpoints of any pytree, through Orbax: the latest few and the best.

A checkpoint is written to a temporary folder and renamed when complete, so
that it stays intact if the process is killed. Each has a fingerprint of its
bits, which detects storage errors.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from trm_jax.core.hashing import mix
from trm_jax.errors import UserError
from trm_jax.run import processes
from trm_jax.run.changes import differences
from trm_jax.run.files import is_remote, read_json, refuse_irregular, write_json

_PARTIAL = ocp.options.PyTreeOptions(
  loading=ocp.options.PyTreeOptions.Loading(partial_load=True)
)


class Checkpoints:
  """The checkpoints of one run; use it as a context manager.

  Args:
    directory: folder of the numbered folders of checkpoints.
    keep: number of latest checkpoints kept. None for readers, which change
      nothing: a half-written checkpoint may belong to a run in progress.
    best_metric: the checkpoint with its largest value is kept as well.

  Raises:
    UserError: if the folder cannot be used, or a score in it is damaged.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    keep: int | None = None,
    best_metric: str = "exact_accuracy",
  ):
    self.directory = directory
    refuse_irregular(directory)
    self._scores = _read_scores(directory, best_metric)
    self._best_metric = best_metric
    self._keep = keep
    self._saving: Any = None  # the save under way, or the last one
    try:
      self._orbax = ocp.training.Checkpointer(
        os.fspath(directory if is_remote(directory) else directory.absolute()),
        preservation_policy=cast(Any, self),
        cleanup_tmp_directories=keep is not None,  # left by a killed process
      )
    except OSError as error:
      raise UserError(f"cannot use {directory}: {error.strerror}") from error
    except Exception as error:  # Orbax reads the metadata of all of them
      raise UserError(
        f"the metadata of a checkpoint in {directory} is damaged; delete that "
        f"checkpoint's folder. Cause: {first_line(error)}"
      ) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, *_):
    try:
      self.wait()
      with self._writing():
        self._orbax.close()
    except UserError:
      if kind is None:  # keep an exception raised in the block
        raise

  @property
  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return sorted(found.step for found in self._orbax.checkpoints)

  @property
  def latest(self) -> int | None:
    """Step of the latest complete checkpoint."""
    return max(self.steps, default=None)

  @property
  def best(self) -> int | None:
    """Step of the checkpoint with the best metric; ties go to the latest."""
    return self._best_of(self.steps)

  def _best_of(self, steps: list[int]) -> int | None:
    scored = [
      (self._scores[step], step) for step in steps if step in self._scores
    ]
    return max(scored)[1] if scored else None

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """Orbax's question which checkpoints to keep."""
    del context
    steps = [found.step for found in checkpoints]
    kept = {*sorted(steps)[-(self._keep or 0) :], self._best_of(steps)}
    return [step in kept for step in steps]

  def find(self, which: str) -> int:
    """The step of checkpoint `which`: "best", "last" or a number.

    Raises:
      UserError: if there is none, naming those that exist.
    """
    if not self.steps:
      raise UserError(f"{self.directory} holds no complete checkpoint")
    if which == "last":
      return self.steps[-1]
    if which == "best":
      # Without an evaluation there is no best one.
      return self.steps[-1] if self.best is None else self.best
    if which not in map(str, self.steps):
      raise UserError(
        f"checkpoint {which!r}: must be 'best', 'last' or one of the steps "
        f"{', '.join(map(str, self.steps))}"
      )
    return int(which)

  def save(self, step: int, state: Any, facts: Mapping[str, Any] | None = None):
    """Starts saving in the background, after any save still under way.

    Args:
      step: the checkpoint's number; does nothing if it exists.
      state: a tree of arrays, which may be donated once this returns.
      facts: JSON values to keep with it.

    Raises:
      UserError: if this or the previous save could not be written.
    """
    if step in self.steps:
      return
    self.wait()
    own = {"step": step, "fingerprints": _fingerprints(state)}
    kept = {**(facts or {}), **own}
    with self._writing():
      self._saving = self._orbax.save_async(
        step,
        without_empty(state),
        force=True,
        custom_metadata=cast(Any, kept | {"digest": _digest(kept)}),
      )

  def wait(self):
    """Waits until everything is written; raises a `UserError` if it fails."""
    saving, self._saving = self._saving, None
    with self._writing():
      if saving:
        saving.result()  # also ends its thread and closes its event loop

  def score(self, step: int, metrics: Mapping[str, float]):
    """Adds the scores of a saved state, which select the best checkpoint.

    Raises:
      UserError: if the state or the scores could not be written.
    """
    self.wait()
    self._scores[step] = metrics[self._best_metric]
    if processes.is_leader():
      write_json(_score_file(self.directory, step), metrics)

  def facts(self, step: int) -> dict[str, Any]:
    """The JSON values kept with a checkpoint.

    Raises:
      UserError: if they are damaged, or those of another step.
    """
    try:
      found = self._orbax.metadata(step).custom_metadata
      facts = dict(cast(dict, found or {}))
      if not facts:  # Orbax takes damaged metadata for empty
        raise ValueError("its metadata cannot be read")
      digest = facts.pop("digest", None)
      if (digest or "step" in facts) and digest != _digest(facts):
        raise ValueError("its metadata is not that which was saved")
      # The first checkpoints of this format did not name their step.
      if facts.get("step", step) != step:
        raise ValueError(f"it is of step {facts['step']}")
    except Exception as error:  # Orbax and TensorStore raise many types
      raise self._damaged(step, first_line(error)) from error
    return facts

  def restore(self, step: int, abstract: Any, partial: bool = False) -> Any:
    """Loads a checkpoint directly onto the devices.

    Args:
      step: the checkpoint's number.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings, which may
        differ from those it was saved with.
      partial: whether `abstract` may omit arrays of the checkpoint, which are
        then not read; dicts may replace dataclasses.

    Raises:
      UserError: if it is damaged or belongs to another model.
    """
    # Shapes are compared first, so that an intact checkpoint of another model
    # is not reported as damaged, with the advice to delete it.
    storable = without_empty(abstract)
    expected = described(storable)
    saved_fingerprints = self.facts(step).get("fingerprints", {})
    try:
      stored = described(self._orbax.metadata(step).metadata)
      saved_fingerprints = dict(saved_fingerprints)
    except Exception as error:  # Orbax and TensorStore raise many types
      raise self._damaged(step, first_line(error)) from error
    if not expected.keys() & stored.keys():
      raise self._damaged(step, "its list of arrays cannot be read")
    if partial:
      stored = {name: stored[name] for name in expected if name in stored}
    if stored != expected:
      found = differences(expected, stored)
      more = [f"{len(found) - 3} more"] if found[3:] else []
      raise UserError(
        f"checkpoint {self.directory / str(step)} is of another model than "
        f"the config describes: {'; '.join(found[:3] + more)}. If config.json "
        "was edited, undo that"
      )
    try:
      with ocp.Context(pytree_options=_PARTIAL if partial else None):
        state = with_empty(self._orbax.load(step, storable), abstract)
    except Exception as error:
      raise self._damaged(step, first_line(error)) from error
    for part, found in _fingerprints(state).items():
      if saved_fingerprints.get(part, found) != found:
        raise self._damaged(step, f"bits of {part} are not those saved")
    return state

  def _damaged(self, step: int, cause: str) -> UserError:
    advice = "there is no other one to go back to"
    if others := [other for other in self.steps if other != step]:
      advice = f"delete that folder to go back to step {max(others)}"
    return UserError(
      f"checkpoint {self.directory / str(step)} is damaged; {advice}. "
      f"Cause: {cause}"
    )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      where = f"step {self.latest}" if self.steps else "the beginning"
      raise UserError(
        f"a checkpoint could not be written to {self.directory}; once there "
        f"is space, the same command goes on from {where}. "
        f"Cause: {first_line(error)}"
      ) from error


def abstract_state(tree: Any, shardings: Any) -> Any:
  """A tree of `jax.ShapeDtypeStruct`s with shardings, for `restore`."""

  def abstract(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(abstract, tree, shardings)


def without_empty(tree: Any) -> Any:
  """A tree without its empty arrays, which Orbax cannot write."""
  return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def with_empty(stored: Any, abstract: Any) -> Any:
  """The inverse of `without_empty`, with the structure of `abstract`."""
  leaves = iter(jax.tree.leaves(stored))

  def fill(leaf):
    if leaf.size:
      return next(leaves)
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

  return jax.tree.map(fill, abstract)


def fingerprint(tree: Any) -> jax.Array:
  """A checksum of a tree's bits, uint32 []; independent of its sharding.

  Arrays may have any dtype but that of typed keys.
  """
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(tree):
    if leaf.dtype == bool:
      bits = leaf.astype(jnp.uint32)
    else:
      width = min(leaf.dtype.itemsize, 4) * 8
      bits = jax.lax.bitcast_convert_type(leaf, f"uint{width}")
    # Hash each value with its index, so that neither flipped bits nor swapped
    # values cancel in the sum, whose order does not matter modulo 2**32.
    indices = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    indexed = bits.astype(jnp.uint32) ^ (indices * jnp.uint32(0x9E3779B9))
    # Fingerprints on disk lack the first step of `mix`; doing it twice cancels
    # it.
    hashed = mix(indexed ^ (indexed >> 16))
    total = total * 31 + jnp.sum(hashed, dtype=jnp.uint32)
  return total


def _fingerprints(tree: Any) -> dict[str, int]:
  """The fingerprint of each part of a tree, such as "params/weights"."""
  parts: dict[str, list[jax.Array]] = {}
  for name, leaf in named_leaves(tree).items():
    part = "/".join(name.split("/")[:2])
    parts.setdefault(part, []).append(leaf)
  found = jax.device_get(_fingerprint_each(parts))  # in one transfer
  return {name: int(value) for name, value in found.items()}


@jax.jit
def _fingerprint_each(parts: dict[str, Any]) -> dict[str, jax.Array]:
  return {name: fingerprint(part) for name, part in parts.items()}


def _digest(facts: Mapping[str, Any]) -> str:
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _score_file(directory: pathlib.Path, step: int) -> pathlib.Path:
  return directory / str(step) / "metrics" / "metrics"


def _read_scores(directory: pathlib.Path, metric: str) -> dict[int, float]:
  """Step -> score of the checkpoints that have one."""
  scores = {}
  for path in directory.iterdir() if directory.is_dir() else ():
    if path.name.isdecimal():
      found = read_json(
        _score_file(directory, int(path.name)),
        lambda value: (
          isinstance(value, dict) and type(value.get(metric)) in (int, float)
        ),
        f"an object with a number {metric!r}",
        "delete that file to go on without the score of this checkpoint",
      )
      if found:
        scores[int(path.name)] = found[metric]
  return scores


def named_leaves(tree: Any) -> dict[str, Any]:
  """Path -> array, or what describes it: "weights/embed/tokens"."""
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda node: hasattr(node, "shape")
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def described(tree: Any) -> dict[str, str]:
  """Path -> dtype and shape of each array, as in "float32[3, 4]"."""
  return {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in named_leaves(tree).items()
  }


def first_line(error: BaseException) -> str:
  """The first line of an error's root cause; Orbax wraps errors deeply."""
  seen = set()  # a chain of errors may end in a circle
  while cause := error.__cause__ or error.__context__:
    if id(error) in seen:
      break
    seen.add(id(error))
    error = cause
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0]
  # Cut the middle, which is often a long path; the reason is at the end.
  return line if len(line) < 200 else f"{line[:90]} ... {line[-100:]}"
