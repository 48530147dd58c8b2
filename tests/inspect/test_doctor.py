"""The self-check of a machine: sound here, and able to find each fault."""

import importlib.metadata
import json

import jax
import jax.numpy as jnp
import pytest
from programs import run_here

from trm_jax.inspect import doctor


def test_this_machine_is_sound(tmp_path, monkeypatch):
  few = {name: doctor.models()[name] for name in ("trm attention", "hrm mlp")}
  monkeypatch.setattr(doctor, "models", lambda: few)
  out = tmp_path / "found.json"
  status, printed = run_here("doctor", f"--out={out}")
  assert status == 0, printed
  found = json.loads(out.read_text())
  assert {f["state"] for f in found} <= {doctor.OK, doctor.NOTE}, printed
  checks = {f["check"] for f in found}
  assert {
    "versions", "devices", "memory", "disk", "open files", "random numbers",
    "gradient of trm attention", "gradient of hrm mlp", "compiled recursion",
    "checkpoint", "compiler",
  } <= checks  # fmt: skip


def _worst(check) -> str:
  """The worst state that a check finds; what is not ok has an advice."""
  found = list(check())
  assert all(f.advice for f in found if f.state != doctor.OK)
  states = [f.state for f in found]
  return max(states, key=(doctor.OK, doctor.NOTE, doctor.FAULT).index)


def _with_version(monkeypatch, **versions):
  known = importlib.metadata.version
  monkeypatch.setattr(
    importlib.metadata, "version", lambda name: versions.get(name, known(name))
  )


@pytest.mark.parametrize(
  "versions, flags, state",
  [
    ({"jax": "0.4.1"}, "", doctor.FAULT),
    ({"numpy": "1.26.4"}, "", doctor.FAULT),
    ({"jaxlib": "0.11.1"}, "", doctor.NOTE),
    ({"jaxlib": "0.10.2"}, "", doctor.NOTE),
    ({"jaxlib": "0.10.2"}, doctor.NO_FUSION, doctor.OK),
    ({"jaxlib": "99.0"}, "", doctor.OK),
  ],
)
def test_versions(versions, flags, state, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", flags)
  _with_version(monkeypatch, **versions)
  assert _worst(doctor.versions) == state


def _change_loss(monkeypatch, change):
  """Lets `change` replace the loss of a model."""
  problem = doctor.problem

  def changed(model):
    loss, weights = problem(model)
    return change(loss), weights

  monkeypatch.setattr(doctor, "problem", changed)
  name, model = next(iter(doctor.models().items()))
  monkeypatch.setattr(doctor, "models", lambda: {name: model})


def test_a_wrong_gradient_is_found(monkeypatch):
  def change(loss):
    def changed(weights):
      head = jnp.sum(weights["lm_head"]["kernel"])
      return loss(weights) + 0.01 * (head - jax.lax.stop_gradient(head))

    return changed

  _change_loss(monkeypatch, change)
  assert _worst(doctor.gradients) == doctor.FAULT


def test_a_wrong_compilation_is_found(monkeypatch):
  def change(loss):
    return lambda weights: (
      loss(weights) * (1.01 if jax.config.jax_disable_jit else 1.0)
    )

  _change_loss(monkeypatch, change)
  assert _worst(doctor.compiled_recursion) == doctor.FAULT


def test_other_random_numbers_are_found(monkeypatch):
  monkeypatch.setattr(doctor, "THREEFRY", (1, 2, 3, 4))
  assert _worst(doctor.random_numbers) == doctor.FAULT


def test_other_bits_of_a_checkpoint_are_found(monkeypatch):
  def restore(self, step, abstract):
    return jax.tree.map(
      lambda like: jnp.zeros(like.shape, like.dtype), abstract
    )

  monkeypatch.setattr(doctor.Checkpoints, "restore", restore)
  assert _worst(doctor.checkpoint) == doctor.FAULT


def test_a_crash_of_the_compiler_is_noted(monkeypatch):
  monkeypatch.setattr(doctor, "CRASHES", "import os; os.abort()")
  assert _worst(doctor.compiler) == doctor.NOTE


@pytest.mark.parametrize("limit", ["LEAST_SPACE", "LEAST_FILES"])
def test_scarcity_is_noted(limit, monkeypatch):
  assert _worst(doctor.machine) == doctor.OK
  monkeypatch.setattr(doctor, limit, 2**60)
  assert _worst(doctor.machine) == doctor.NOTE


@pytest.mark.parametrize(
  "name, value, state",
  [
    ("JAX_DISABLE_JIT", "1", doctor.NOTE),
    ("JAX_DISABLE_JIT", "0", doctor.OK),
    ("XLA_FLAGS", "--x=1", doctor.OK),
  ],
)
def test_variables(name, value, state, monkeypatch):
  monkeypatch.setenv(name, value)
  assert _worst(doctor.environment) == state


def test_a_check_that_raises_is_a_fault(monkeypatch):
  def random_numbers():
    raise RuntimeError("no device")

  monkeypatch.setattr(doctor, "CHECKS", (random_numbers,))
  assert _worst(doctor.examine) == doctor.FAULT
