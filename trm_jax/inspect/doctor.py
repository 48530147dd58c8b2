"""Checks that the packages, devices and arithmetic of a machine are sound.

Each check is a function that yields `Finding`s; `examine` makes them all. Small
models of each mixer are differentiated in several ways, which must agree.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from packaging.requirements import Requirement

from trm_jax.core import halting, losses, network, recursion
from trm_jax.core.model import ModelConfig, Weights
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.run.checkpoint import Checkpoints, abstract_state, first_line

OK, NOTE, FAULT = "ok", "note", "fault"
TOLERANCE = 1e-4  # of float32, relative


class Finding(NamedTuple):
  """What a check found."""

  check: str  # the part that was checked
  state: str  # OK, NOTE or FAULT
  found: str
  advice: str = ""  # what to do about it


NO_FUSION = "--xla_cpu_experimental_ynn_fusion_type="
_TAKE_CARE = f"set XLA_FLAGS={NO_FUSION} or use another version"

# Reported faults of jaxlib on x86 CPUs: what happens, and what to do.
FAULTY_BUILDS = {
  "0.10.2": ("sums of small products over 30,000 rows may be wrong, reductions "
             "of 7 axes may crash (jax issues 39103, 39257)", _TAKE_CARE),
  "0.11.0": ("reductions of 7 axes may crash or hang (jax issue 39257)",
             _TAKE_CARE),
  "0.11.1": ("loops that update a part of a large array are slow (jax issue "
             "40101)", "use another version"),
  "0.11.2": ("fused reductions may have wrong gradients", _TAKE_CARE),
}  # fmt: skip

# Variables that change results, devices or memory, except those that programs
# set themselves; what some of them do when they are not 0.
VARIABLES = {
  "JAX_DEBUG_NANS": "every operation is checked, which is slow",
  "JAX_DISABLE_JIT": "nothing is compiled, which is very slow",
  **dict.fromkeys(
    (
      "CUDA_VISIBLE_DEVICES", "JAX_COMPILATION_CACHE_DIR",
      "JAX_DEFAULT_MATMUL_PRECISION", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS",
      "LD_LIBRARY_PATH", "MPLBACKEND", "XLA_FLAGS",
      "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
    ),
    "",
  ),
}  # fmt: skip

_GIB = 2**30
LEAST_SPACE, LEAST_FILES = 2 * _GIB, 1024  # less is worth a note

# The first numbers that threefry2x32 draws from key 7.
THREEFRY = (993572756, 1359526531, 3400050533, 2296557208)

# Programs that faulty builds compute wrongly or that make them crash.
CRASHES = """
import jax, jax.numpy as jnp
a = jnp.ones((3, 1, 2, 2, 8, 8, 8))
jax.block_until_ready(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, a))
"""


def examine() -> Iterator[Finding]:
  """Makes all checks; one that raises is a fault."""
  for check in CHECKS:
    try:
      yield from check()
    except Exception as error:  # a faulty build raises anything
      name = check.__name__.replace("_", " ")
      said = f"{type(error).__name__}: {first_line(error)}"
      yield Finding(name, FAULT, said, "the check could not be made")


def versions() -> Iterator[Finding]:
  """Compares what is installed with what the project allows."""
  found = {"python": platform.python_version()}
  try:
    needs = importlib.metadata.requires("trm_jax") or []
  except importlib.metadata.PackageNotFoundError:
    needs = []
    yield Finding(
      "versions", NOTE, "trm_jax is not installed", "pip install --editable ."
    )
  for need in map(Requirement, needs):
    if need.marker and not need.marker.evaluate({"extra": ""}):
      continue
    try:
      version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
      version = "missing"
    if version == "missing" or not need.specifier.contains(version, True):
      yield Finding(
        "versions", FAULT, f"{need.name} {version}, expected {need.specifier}",
        f"pip install '{need.name}{need.specifier}'",
      )  # fmt: skip
    found[need.name] = version
  found["jaxlib"] = importlib.metadata.version("jaxlib")
  shown = (
    "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
  )  # fmt: skip
  yield Finding(
    "versions", OK, ", ".join(f"{n} {found[n]}" for n in shown if n in found)
  )
  if found["jaxlib"] in FAULTY_BUILDS and _is_x86():
    reason, advice = FAULTY_BUILDS[found["jaxlib"]]
    if not (advice == _TAKE_CARE and _fuses_nothing()):
      yield Finding(
        "versions", NOTE, f"jaxlib {found['jaxlib']}: {reason}", advice
      )


def _is_x86() -> bool:
  is_cpu = jax.default_backend() == "cpu"
  return is_cpu and platform.machine() in ("x86_64", "AMD64")


def _fuses_nothing() -> bool:
  return NO_FUSION in os.environ.get("XLA_FLAGS", "").split()


def machine() -> Iterator[Finding]:
  """Devices, memory, disk and open files."""
  devices = jax.devices()
  limit = (devices[0].memory_stats() or {}).get("bytes_limit")
  each = f" of {limit / _GIB:.1f} GiB" if limit else ""
  yield Finding(
    "devices", OK, f"{len(devices)} x {devices[0].device_kind}{each}"
  )
  memory, disk = psutil.virtual_memory(), psutil.disk_usage(".")
  for check, free, total, advice in (
    ("memory", memory.available, memory.total, "end other programs"),
    ("disk", disk.free, disk.total, "make room, or use another --workdir"),
  ):
    said = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    few = free < LEAST_SPACE
    yield Finding(check, NOTE if few else OK, said, advice if few else "")
  files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  few = 0 <= files < LEAST_FILES
  yield Finding(
    "open files", NOTE if few else OK, f"at most {files}",
    f"ulimit -n {most}" if few else "",
  )  # fmt: skip


def environment() -> Iterator[Finding]:
  """Variables that change results, devices or memory."""
  for name, harm in VARIABLES.items():
    value = os.environ.get(name)
    if value is None:
      continue
    found = f"{name}={value}"
    if harm and value.lower() not in ("", "0", "false"):
      yield Finding("environment", NOTE, f"{found}: {harm}", f"unset {name}")
    else:
      yield Finding("environment", OK, found)


def random_numbers() -> Iterator[Finding]:
  """Threefry must draw the same numbers on all devices and versions."""
  key = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 3)
  drawn = jax.random.bits(key, (4,), jnp.uint32)
  same = tuple(int(number) for number in drawn) == THREEFRY
  yield Finding(
    "random numbers", OK if same else FAULT,
    "threefry's" if same else f"{drawn.tolist()}, expected {list(THREEFRY)}",
    "" if same else "runs cannot be reproduced with this version of jax",
  )  # fmt: skip


def models() -> dict[str, ModelConfig]:
  """A small model of each kind of network."""
  task = sudoku_task(4)
  mlp = ModelConfig(
    vocab_size=task.vocab_size, seq_len=task.seq_len, width=16, layers=1,
    heads=2, expansion=2.0, inner_multiple=8, puzzle_emb_ndim=16,
    puzzle_emb_len=1, cycles=2, latent_steps=2, dtype="float32",
  )  # fmt: skip
  attention = dataclasses.replace(mlp, mixer="attention", positions="rotary")
  return {
    f"{family} {model.mixer}": dataclasses.replace(model, family=family)
    for family in ("trm", "hrm")
    for model in (attention, mlp)
  }


def problem(model: ModelConfig) -> tuple[Callable[[Weights], Any], Weights]:
  """The loss of a supervision step as a function of drawn weights."""
  batch = 4
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(0, 0.25, leaf.shape), leaf.dtype),
    network.shapes(model),
  )
  inputs, labels = jnp.asarray(
    random.integers(1, model.vocab_size, (2, batch, model.seq_len)), jnp.int32
  )
  latents = recursion.initial_latents(params.initial, batch, model)
  rows = params.puzzle_table[jnp.zeros(batch, jnp.int32)]

  def loss(weights: Weights) -> jax.Array:
    _, outputs = halting.supervise(weights, rows, latents, inputs, model)
    steps = jnp.ones(batch, jnp.int32)
    total, _ = losses.losses_and_metrics(
      outputs, labels, steps > 0, steps, "stablemax"
    )
    return total / batch

  return loss, params.weights


def _differ(ours: Any, expected: Any) -> float:
  """The largest difference of two trees, relative to the largest value."""

  def flat(tree):
    leaves = map(np.ravel, jax.device_get(jax.tree.leaves(tree)))
    return np.concatenate([leaf.astype(np.float64) for leaf in leaves])

  ours, expected = flat(ours), flat(expected)
  difference = np.max(np.abs(ours - expected)) / np.max(np.abs(expected))
  return float(difference) if np.isfinite(difference) else np.inf


def gradients() -> Iterator[Finding]:
  """Gradients on this device against finite differences in float64."""
  for name, model in models().items():
    # With one cycle the gradient is that of the whole step.
    model = dataclasses.replace(model, cycles=1, latent_steps=1)
    loss, weights = problem(model)
    with jax.default_matmul_precision("highest"):
      gradient = jax.device_get(jax.jit(jax.grad(loss))(weights))
    exact = dataclasses.replace(model, dtype="float64", param_dtype="float64")
    with jax.enable_x64(True), _on_cpu():
      slopes, expected = _slopes(*problem(exact), gradient)
    yield _agreement(f"gradient of {name}", "float64", slopes, expected)


def _slopes(
  loss: Callable[[Weights], Any], weights: Weights, gradient: Weights
) -> tuple[list[float], list[float]]:
  """The slope of the loss along each array: by gradient, by differences.

  Both are divided by the norm of that array's gradient.
  """
  value, random, small = jax.jit(loss), np.random.default_rng(1), 1e-5
  leaves, structure = jax.tree.flatten(weights)
  ours, expected = [], []
  for index, slope in enumerate(jax.tree.leaves(gradient)):
    slope = slope.astype(np.float64)
    norm = np.linalg.norm(slope)
    # Towards the gradient, and a little to the side of it.
    direction = slope / norm + 0.1 * random.normal(size=slope.shape)
    ends = (
      value(structure.unflatten(
        [*leaves[:index], leaves[index] + step * direction, *leaves[index + 1:]]
      ))
      for step in (small, -small)
    )  # fmt: skip
    ours.append(float(np.sum(slope * direction) / norm))
    expected.append(float((next(ends) - next(ends)) / (2 * small) / norm))
  return ours, expected


def compiled_recursion() -> Iterator[Finding]:
  """Compiled scans against Python loops of single operations."""
  loss, weights = problem(next(iter(models().values())))
  learn = jax.jit(jax.value_and_grad(loss))
  with jax.default_matmul_precision("highest"):
    compiled = learn(weights)
    with jax.disable_jit():
      eager = learn(weights)
  yield _agreement("compiled recursion", "eager", compiled, eager)


def _agreement(check: str, what: str, ours: Any, expected: Any) -> Finding:
  found = _differ(ours, expected)
  sound = found < TOLERANCE
  return Finding(
    check, OK if sound else FAULT, f"{found:.0e} from {what}",
    "" if sound else "do not train with this version of jax on this device",
  )  # fmt: skip


def _on_cpu() -> contextlib.AbstractContextManager:
  """Computes on the CPU, for not all devices have float64."""
  try:
    return jax.default_device(jax.devices("cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return contextlib.nullcontext()


def checkpoint() -> Iterator[Finding]:
  """Saves arrays and restores the same bits."""
  tree = {
    dtype: jnp.linspace(-1, 1, 1000).astype(dtype)
    for dtype in ("float32", "bfloat16", "int32")
  }
  like = abstract_state(tree, jax.tree.map(lambda a: a.sharding, tree))
  with (
    tempfile.TemporaryDirectory() as folder,
    Checkpoints(pathlib.Path(folder) / "checkpoints") as checkpoints,
  ):
    checkpoints.save(0, tree)
    checkpoints.wait()
    restored = checkpoints.restore(0, like)
  same = all(
    np.asarray(restored[name]).tobytes() == np.asarray(array).tobytes()
    for name, array in tree.items()
  )
  yield Finding(
    "checkpoint", OK if same else FAULT,
    "restored bit for bit" if same else "restored with other bits",
    "" if same else "do not rely on checkpoints of this machine",
  )  # fmt: skip


def compiler() -> Iterator[Finding]:
  """Programs that faulty builds for x86 compute wrongly, or crash in."""
  if not _is_x86():
    return
  child = subprocess.Popen(
    [sys.executable, "-c", CRASHES],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  rows = jnp.arange(32_769, dtype=jnp.float32)[:, None] * jnp.eye(1, 3)

  def norms(rows):  # [N, 3] to [N]
    return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

  faults = []
  if _differ(jax.jit(norms)(rows), norms(rows)) > TOLERANCE:
    faults.append("sums of small products over many rows are wrong")
  try:
    status = child.wait(timeout=30)
  except subprocess.TimeoutExpired:
    child.kill()
    status = "timeout"
  if status:
    faults.append(f"a reduction of 7 axes ends with {status}")
  yield Finding(
    "compiler", NOTE if faults else OK,
    "; ".join(faults) or "no known fault", _TAKE_CARE if faults else "",
  )  # fmt: skip


CHECKS = (
  versions, machine, environment, random_numbers, gradients, compiled_recursion,
  checkpoint, compiler,
)  # fmt: skip
