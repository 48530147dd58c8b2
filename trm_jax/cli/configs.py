"""Loads configs by name or by path: NAME[:variant] or FILE.py[:variant].

A config is a Python file with a function `get_config`, which may take a
variant. It sets what differs from the defaults of `trm_jax.config`; the other
fields are filled in here, so that any field can be overridden and is recorded.
"""

import dataclasses
import inspect
import pathlib
import sys
import traceback
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from trm_jax.cli import shipped
from trm_jax.errors import UserError

# Fields that a study sets for each of its models.
_SET_BY_A_STUDY = (("train", "seed"), ("eval", "every"))


def load(text: str) -> ConfigDict:
  """The config NAME[:variant] or FILE.py[:variant], with all its fields.

  Raises:
    UserError: there is no such config or variant, or the file raises an error.
  """
  if not text.isprintable():
    raise UserError(f"--config={text!r}: a config's name is on one line")
  name, colon, variant = text.partition(":")
  path = find(name)
  try:
    module = shipped.load(_module(path), path)
    variants = list(getattr(module, "VARIANTS", []))
    if colon and variants and variant not in variants:
      raise UserError(
        f"--config={text}: the variant must be one of {', '.join(variants)}"
      )
    if not hasattr(module, "get_config"):
      raise UserError(f"--config={name}: the file has no function get_config()")
    if colon and not inspect.signature(module.get_config).parameters:
      raise UserError(f"--config={text}: this config has no variants")
    config = module.get_config(*([variant] if colon else []))
  except UserError:
    raise
  except Exception as error:  # Python code may raise anything
    message = str(error) or type(error).__name__
    raise UserError(
      f"--config={name}: {message}{_place(error, path)}"
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config={name}: get_config() must return a ConfigDict")
  with config.unlocked():
    _fill(config)
  return config.lock()


def find(name: str) -> pathlib.Path:
  """The path of a config's file."""
  known = shipped.names("configs")
  path = pathlib.Path(name)
  if name not in known and path.is_file():
    return path
  # A shipped config may also be given by its path in a checkout.
  short = path.stem if name == f"configs/{path.stem}.py" else name
  if short in known:
    return shipped.folder("configs") / f"{short}.py"
  if path.suffix == ".py" or len(path.parts) > 1:
    raise UserError(f"--config={name}: there is no such file")
  hint = shipped.suggestion(name, known)
  raise UserError(f"--config={name}: neither a file nor a config; {hint}")


def _module(path: pathlib.Path) -> str:
  """The name to import a config's file by.

  Shipped configs form the package `trm_jax.configs`, so that they can import
  each other; in a checkout it is outside `trm_jax` and must be loaded first.
  """
  package = "trm_jax.configs"
  folder = shipped.folder("configs")
  if package not in sys.modules:
    shipped.load(package, folder / "__init__.py")
  if path.resolve().parent == folder.resolve():
    return f"{package}.{path.stem}"
  return "trm_jax_config"


def _place(error: Exception, path: pathlib.Path) -> str:
  """The text `(FILE, line N)` if an error arose in the config's file."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == str(path)]
  return f" ({path}, line {lines[-1]})" if lines else ""


def _fill(config: Any):
  """Adds missing fields in place, since fields may be references."""
  from trm_jax import config as config_lib  # loads jax

  sections = config_lib.sections(config)
  left_out = ()
  if "grid" in config:
    from trm_jax.study.grid import StudyConfig

    sections["study"] = StudyConfig
    left_out = _SET_BY_A_STUDY
  for name, cls in sections.items():
    if name not in config:
      config[name] = ConfigDict()
    if not isinstance(config[name], ConfigDict):
      continue  # refused when the config is read
    hints = typing.get_type_hints(cls)
    for field in config_lib.settable(cls):
      if (name, field.name) not in left_out:
        _fill_field(config[name], field, hints[field.name])


def _fill_field(section: ConfigDict, field: dataclasses.Field, hint: Any):
  """Sets a missing field's default, and the type for its overrides."""
  value = section.get(field.name, field.default)
  if value is None and field.default is None:
    kind = next(t for t in typing.get_args(hint) if t is not type(None))
    value = config_dict.placeholder(typing.get_origin(kind) or kind)
  elif type(field.default) is float and type(value) is int:
    value = float(value)
  elif field.name in section:
    return
  with section.ignore_type():
    section[field.name] = value
