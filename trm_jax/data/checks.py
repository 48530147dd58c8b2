"""Checks of settings; each names the field, its value and what was expected."""

from typing import Any

from trm_jax.errors import UserError


def require_text(settings: Any, *names: str) -> None:
  """Raises a `UserError` unless these fields are text."""
  for name in names:
    value = getattr(settings, name)
    if not isinstance(value, str):
      raise UserError(f"{name}: {value!r} is not text; expected a path.")


def require_flag(settings: Any, *names: str) -> None:
  """Raises a `UserError` unless these fields are True or False."""
  for name in names:
    value = getattr(settings, name)
    if not isinstance(value, bool):
      raise UserError(f"{name}: {value!r}; expected True or False.")


def require_whole(settings: Any, *names: str, least: int) -> None:
  """Raises a `UserError` unless these fields are whole numbers, not too low."""
  for name in names:
    value = getattr(settings, name)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not least <= value < 2**31:
      raise UserError(
        f"{name}: {value!r}; expected a whole number of {least} or more."
      )


def require_source(settings: Any, hub_size: int) -> None:
  """Raises a `UserError` unless a split has a source that fits the size.

  Args:
    settings: has `train`, `test` and `size`.
    hub_size: the size of the puzzles that "hub" stands for.
  """
  if not settings.train and not settings.test:
    raise UserError(
      "train, test: both are empty; give at least one of them a csv path, "
      "'generate' or 'hub'."
    )
  if "hub" in (settings.train, settings.test) and settings.size != hub_size:
    raise UserError(
      f"size: {settings.size}, but the puzzles of the hub are "
      f"{hub_size}x{hub_size}; use size={hub_size}, or set train and test to "
      f"'generate' or to csv paths."
    )
