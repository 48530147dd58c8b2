"""Law 9: imports point one way."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
STDLIB = sys.stdlib_module_names


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
  """The modules of a room, which may be a single file."""
  found = [path for module, path in MODULES.items() if _inside(module, [name])]
  assert found, f"there is no {name}"
  return found


def _foreign(room, allowed, third_party=None):
  """The imports of a room beyond what it may know.

  Args:
    room: the package or module.
    allowed: of our own modules, what it may import.
    third_party: the other packages it may import; None for any.
  """
  return {
    f"{_name(path)} imports {name}"
    for path in _room(room)
    for name in _imports(path)
    if not _inside(name, allowed)
    and name.split(".")[0] not in STDLIB
    and (
      _inside(name, ["trm_jax", "experiments", "configs"])
      or (third_party is not None and not _inside(name, third_party))
    )
  }


@pytest.mark.parametrize(
  ("room", "allowed", "third_party"),
  [
    ("trm_jax.core", ["trm_jax.core"], ["jax", "flax", "chex", "numpy"]),
    ("trm_jax.data", ["trm_jax.data", "trm_jax.errors"], None),
    ("trm_jax.optim", ["trm_jax.errors"], ["jax", "chex", "numpy", "optax"]),
    ("trm_jax.errors", [], []),
    ("trm_jax.sharding", ["trm_jax.errors"], ["jax", "numpy"]),
    ("trm_jax.vote", ["trm_jax.data"], ["jax", "numpy"]),
    ("trm_jax.storage", ["trm_jax.errors"], ["etils"]),
    (
      "trm_jax.processes",
      ["trm_jax.errors", "trm_jax.run_folder"],
      ["jax"],
    ),
    ("trm_jax.metrics", ["trm_jax.errors", "trm_jax.storage"], None),
    ("trm_jax.checkpoint", ["trm_jax.errors", "trm_jax.storage"], None),
    (
      "trm_jax.run_folder",
      ["trm_jax.errors", "trm_jax.storage"],
      ["filelock", "etils"],
    ),
    ("trm_jax.chips", ["trm_jax.errors"], []),
    ("trm_jax.depth", ["trm_jax.core"], ["numpy"]),
    ("trm_jax.calibration", ["trm_jax.errors"], ["numpy", "scipy"]),
    ("trm_jax.terminal", ["trm_jax.data"], ["numpy", "rich"]),
    (
      "trm_jax.solve.engine",
      ["trm_jax.core", "trm_jax.data.task"],
      ["jax", "flax", "numpy"],
    ),
    # What a study has measured is told without knowing any model.
    (
      "trm_jax.study.statistics",
      ["trm_jax.study.results", "trm_jax.errors"],
      ["numpy", "scipy"],
    ),
    (
      "trm_jax.study.figures",
      ["trm_jax.study", "trm_jax.pictures"],
      ["matplotlib", "numpy"],
    ),
    ("trm_jax", ["trm_jax"], None),
    ("configs", ["configs"], ["ml_collections"]),
    ("experiments", ["trm_jax", "experiments", "configs"], None),
  ],
)
def test_rooms_import_only_what_they_may(room, allowed, third_party):
  assert not _foreign(room, allowed, third_party)


def test_the_reader_of_imports_sees_what_it_should():
  """Else the tests above would pass on anything."""
  assert "trm_jax.core.layers" in _imports(MODULES["trm_jax.core.network"])
  assert "trm_jax.errors" in _imports(MODULES["trm_jax.sharding"])
  assert _foreign("trm_jax.fit", [])
  assert _foreign("trm_jax.core", ["trm_jax.core"], ["flax"])


def test_a_config_dict_goes_no_deeper_than_the_programs():
  users = {
    name
    for name, path in MODULES.items()
    if any(_inside(used, ["ml_collections"]) for used in _imports(path))
  }
  assert not [name for name in users if name.startswith("trm_jax")]
  assert "experiments.cli" in users


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
    "import sys, trm_jax.fit\n"
    "banned = {'flax.nnx', 'tensorflow', 'torch', 'ml_collections'}\n"
    "print(banned & set(sys.modules))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.strip() == "set()"
