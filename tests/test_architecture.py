"""Law 9: imports point one way."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Every import goes to an earlier room; a room may import itself.
ROOMS = (
  "trm_jax.errors",
  "trm_jax.core",
  "trm_jax.data",
  "trm_jax.config",
  "trm_jax.run",
  "trm_jax.solve",
  "trm_jax.draw",
  "trm_jax.train",
  "trm_jax.export",
  "trm_jax.study",
  "trm_jax.inspect",
  "trm_jax.cli",
)

# What else a room may import; None for anything.
THIRD_PARTY = {
  "trm_jax.errors": set(),
  "trm_jax.core": {"jax", "flax", "chex", "numpy", "optax"},
  "trm_jax.config": set(),
  "trm_jax.solve.engine": {"jax", "flax", "numpy"},
}


def _name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
  _name(path): path
  for room in ("trm_jax", "experiments", "configs")
  for path in sorted((ROOT / room).rglob("*.py"))
}


def _imports(path):
  """Every module that a file may import, at its top or inside functions."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide directions"
      # `from a import b` may name the module a.b.
      found |= {
        f"{node.module}.{alias.name}"
        if f"{node.module}.{alias.name}" in MODULES
        else node.module
        for alias in node.names
      }
  return found


def _inside(name, rooms):
  return any(name == room or name.startswith(f"{room}.") for room in rooms)


def _room(name):
  """The number of a module's room."""
  return next(i for i, room in enumerate(ROOMS) if _inside(name, [room]))


def _upward(name):
  """The imports of a module that go to a later room."""
  return [
    f"{name} imports {used}"
    for used in _imports(MODULES[name])
    if used.startswith("trm_jax.") and _room(used) > _room(name)
  ]


INSIDE = [n for n in MODULES if n.startswith("trm_jax.")]
INSIDE.remove("trm_jax.__main__")


def test_every_file_is_in_a_room():
  assert not [name for name in INSIDE if not _inside(name, ROOMS)]


def test_imports_go_to_earlier_rooms():
  assert not [line for name in INSIDE for line in _upward(name)]


def test_programs_import_the_package_and_configs_nothing():
  for name in MODULES:
    used = _imports(MODULES[name])
    if _inside(name, ["trm_jax"]):
      assert not [u for u in used if _inside(u, ["experiments", "configs"])]
    elif _inside(name, ["configs"]):
      used = {u for u in used if not _inside(u, ["trm_jax.configs"])}
      assert not [u for u in used if _inside(u, ["experiments", "trm_jax"])]


@pytest.mark.parametrize("room", THIRD_PARTY)
def test_rooms_import_only_what_they_may(room):
  foreign = {
    f"{name} imports {used}"
    for name in MODULES
    if _inside(name, [room])
    for used in _imports(MODULES[name])
    if used.split(".")[0] not in {*sys.stdlib_module_names, "trm_jax"}
    and used.split(".")[0] not in THIRD_PARTY[room]
  }
  assert not foreign


def test_the_reader_of_imports_sees_what_it_should():
  """Else the tests above would pass on anything."""
  assert "trm_jax.core.layers" in _imports(MODULES["trm_jax.core.network"])
  assert "trm_jax.errors" in _imports(MODULES["trm_jax.run.sharding"])
  assert _room("trm_jax.train.loop") > _room("trm_jax.run.checkpoint")


def test_a_config_dict_goes_no_deeper_than_the_programs():
  users = {
    name
    for name, path in MODULES.items()
    if any(_inside(used, ["ml_collections"]) for used in _imports(path))
  }
  assert not [
    name
    for name in users
    if name.startswith("trm_jax") and not _inside(name, ["trm_jax.cli"])
  ]
  assert "trm_jax.cli.app" in users


def test_no_module_is_an_attic():
  attics = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
  assert not [n for n in MODULES if attics & set(n.split("."))]


def test_no_tensorflow_torch_or_pickle():
  banned = ["tensorflow", "torch", "pickle", "flax.nnx"]
  assert not [
    f"{name} imports {used}"
    for name, path in MODULES.items()
    for used in _imports(path)
    if _inside(used, banned)
  ]


def test_nor_are_they_loaded_by_the_training_loop():
  program = (
    "import sys, trm_jax.train.loop\n"
    "banned = {'flax.nnx', 'tensorflow', 'torch', 'ml_collections'}\n"
    "print(banned & set(sys.modules))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.strip() == "set()"
