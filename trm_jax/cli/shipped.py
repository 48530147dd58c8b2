"""The programs and configs that come with the package.

Their folders, experiments/ and configs/, are beside the package in a checkout,
and inside it when installed.
"""

import ast
import difflib
import importlib.util
import pathlib
import sys
import types

import trm_jax

_PACKAGE = pathlib.Path(trm_jax.__file__).parent


def folder(kind: str) -> pathlib.Path:
  """The folder of "experiments" or "configs"."""
  inside, beside = _PACKAGE / kind, _PACKAGE.parent / kind
  return inside if inside.is_dir() else beside


def names(kind: str) -> list[str]:
  """The names of all programs or configs."""
  return sorted(path.stem for path in folder(kind).glob("[!_]*.py"))


def docstring(kind: str, name: str) -> str:
  """The docstring of a program or config, without running it."""
  text = (folder(kind) / f"{name}.py").read_text("utf-8")
  return ast.get_docstring(ast.parse(text)) or ""


def listing(kind: str) -> str:
  """The names of programs or configs with their summary lines."""
  width = max(map(len, names(kind)))
  return "\n".join(
    f"  {name:{width}s}  {docstring(kind, name).splitlines()[0]}"
    for name in names(kind)
  )


def load(name: str, path: pathlib.Path) -> types.ModuleType:
  """Runs a Python file as the module `name`."""
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader, path
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def suggestion(name: str, known: list[str]) -> str:
  """A hint with the closest known name, else with all of them."""
  close = difflib.get_close_matches(name, known, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"there are {', '.join(known)}"
