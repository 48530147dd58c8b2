"""Compares configs: what differs, and what may differ when a run resumes."""

from collections.abc import Callable, Mapping
from typing import Any

from trm_jax.config import complete
from trm_jax.errors import UserError

# Fields that do not change the results: where and how a run computes.
_WITHOUT_EFFECT = (
  ("mesh",),
  ("data", "cache_dir"),
  ("model", "attention", "query_block", "remat"),
  ("train", "microbatch"),
)
# Fields that may change when a run resumes: also how it is watched, and its
# length, which is compared otherwise.
_MAY_CHANGE = (
  *_WITHOUT_EFFECT,
  ("checkpoint",),
  ("eval", "every", "batch_size"),
  ("train", "log_every", "steps"),
)
# What is compared by content, if the run has saved a digest of it.
_SOURCES = ("data.train", "data.test", "data.path")


def differences(
  ours: Mapping[str, Any],
  theirs: Mapping[str, Any],
  there: str = "there",
  here: str = "here",
) -> list[str]:
  """The fields in which two nested configs differ, with both values."""
  ours, theirs = _flatten(ours), _flatten(theirs)
  missing = "(missing)"
  return [
    f"{name}: {theirs.get(name, missing)!r} {there}, "
    f"{ours.get(name, missing)!r} {here}"
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name, missing) != theirs.get(name, missing)
  ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config without the fields that do not change the results."""
  return _without(config, _WITHOUT_EFFECT)


def changes_results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
  """Whether two configs differ in more than where and how a run computes."""
  return bool(differences(computed(complete(ours)), computed(complete(theirs))))


def refuse(
  ours: Mapping[str, Any],
  theirs: Mapping[str, Any],
  where: str,
  saved_facts: Callable[[], Mapping[str, Any]],
):
  """Refuses to go on with a run under a config that trains otherwise.

  Training may become longer, and may be watched in another way. The sources of
  the data may change if the run has saved digests of their content, which the
  caller compares.

  Args:
    ours: the config of this command.
    theirs: the config that the run was made with.
    where: the run, for the message.
    saved_facts: returns what its latest checkpoint tells of itself.

  Raises:
    UserError: naming the fields that differ.
  """
  ours, theirs = complete(ours), complete(theirs)
  found = differences(
    _without(ours, _MAY_CHANGE), _without(theirs, _MAY_CHANGE)
  )
  moved = [field for field in found if field.split(":")[0] in _SOURCES]
  if moved and "data" in saved_facts():
    found = [field for field in found if field not in moved]
  lengths = [each["train"]["steps"] for each in (ours, theirs)]
  spread = [
    f"config.{section}.schedule={ours[section]['schedule']!r}"
    for section, changing in (("optim", "cosine"), ("depth", "curriculum"))
    if ours[section]["schedule"] == changing
  ]
  if lengths[0] < lengths[1] or (lengths[0] > lengths[1] and spread):
    reason = "a run can only become longer"
    if lengths[0] > lengths[1]:
      reason = f"{spread[0]} depends on it"
    found.append(
      f"train.steps: {lengths[1]} there, {lengths[0]} here, and {reason}"
    )
  if found:
    raise UserError(
      f"{where} was made with another config; use another --workdir, "
      "or the same settings. They differ in\n  " + "\n  ".join(found)
    )


def _without(config: Mapping[str, Any], names) -> dict[str, Any]:
  kept = {name: dict(section) for name, section in config.items()}
  for section, *fields in names:
    if not fields:
      kept.pop(section, None)
    for field in fields:
      kept.get(section, {}).pop(field, None)
  return kept
