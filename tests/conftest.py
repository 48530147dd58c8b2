"""Eight CPU devices, strict arithmetic, and a tiny experiment to share."""

import dataclasses
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiles in half the time, in the programs that tests start too; what is
# computed is small. `make demo` and `make versions` compile as a user does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Compiling is most of what the tests do: workers, the programs that tests start
# and later runs load what one has compiled.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from trm_jax.config import TrainConfig
from trm_jax.core.halting import HaltingConfig
from trm_jax.core.model import ModelConfig
from trm_jax.core.optim import OptimConfig
from trm_jax.data.batches import Table
from trm_jax.data.sudoku import generate
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.data.task import Split
from trm_jax.train import step as train

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = pathlib.Path(__file__).parent / "recorded"

# Files that take longest: two workers end together if these come first.
_LONG = (
  "test_many_hosts", "test_resume", "test_aot", "test_programs",
  "test_programs_study", "test_programs_arc",
  "test_train", "test_population", "test_programs_solve",
  "test_solve", "test_processor", "test_buckets", "test_profile",
  "test_attention",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Long files first, otherwise the order is as it was."""
  items.sort(key=lambda item: item.path.stem not in _LONG)


def tiny_model(**changes) -> ModelConfig:
  """A model for 4x4 Sudoku that compiles and runs in no time."""
  task = sudoku_task(4)
  settings = dict(
    vocab_size=task.vocab_size,
    seq_len=task.seq_len,
    width=16,
    layers=1,
    heads=2,
    expansion=2.0,
    inner_multiple=8,
    puzzle_emb_ndim=16,
    puzzle_emb_len=1,
    cycles=2,
    latent_steps=2,
    dtype="float32",
  )
  return ModelConfig(**(settings | changes))


@pytest.fixture(scope="session")
def recipe() -> train.Recipe:
  return train.Recipe(
    model=tiny_model(),
    halting=HaltingConfig(max_steps=4),
    optim=OptimConfig(
      lr=2e-3, weight_decay=0.1, warmup_steps=5, puzzle_lr=1e-3, ema=0.9
    ),
    train=TrainConfig(steps=40, batch_size=16, steps_per_dispatch=4),
    task=sudoku_task(4),
  )


@pytest.fixture(scope="session")
def split() -> Split:
  """Forty 4x4 puzzles."""
  inputs, labels, _ = generate.generate(4, 40, seed=0, givens=(5, 8))
  return Split.of_rows(inputs, labels)


@pytest.fixture(scope="session")
def table(split) -> Table:
  return jax.tree.map(jnp.asarray, Table.of(split))


@pytest.fixture(scope="session")
def compiled_steps(recipe):
  """`train_steps` of the shared recipe on one device, compiled once."""
  return jax.jit(lambda state, table: train.train_steps(state, table, recipe))


def with_train(recipe: train.Recipe, **changes) -> train.Recipe:
  """The recipe with another training section."""
  changed = dataclasses.replace(recipe.train, **changes)
  return dataclasses.replace(recipe, train=changed)


@pytest.fixture(scope="module")
def compiled_here():
  """Nothing is loaded that was compiled before, perhaps of other lines."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
