"""Trained models, wherever they lie: a run's folder or an exported file."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax import config as config_lib
from trm_jax import fit
from trm_jax.config import Experiment
from trm_jax.core import network
from trm_jax.core.network import Params
from trm_jax.errors import UserError
from trm_jax.export import weights
from trm_jax.run_folder import RunFolder, read_optional


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A trained model and all that is needed to use it.

  Attributes:
    params: the model.
    experiment: what it was trained by.
    config: the same as plain values.
    names: the name of each puzzle id; `["<blank>"]` if none has one.
    step: optimizer steps behind it.
    scores: its evaluations at several depths, if there were any.
    calibration: what makes its confidence honest, as
      `calibration.Calibration.to_json` writes it; None if nobody measured.
    averaged: whether the weights are averages over training, and not the last.
  """

  params: Params
  experiment: Experiment
  config: Mapping[str, Any]
  names: list[str]
  step: int
  scores: list[dict[str, Any]]
  calibration: dict[str, Any] | None
  averaged: bool = True

  def facts(self) -> dict[str, Any]:
    """All but arrays and config, as plain values that JSON can hold."""
    task, model = self.experiment.task, self.experiment.model
    return {
      "task": task.name,
      "family": model.family,
      "weights": network.count_weights(self.params),
      "seq_len": task.seq_len,
      "vocabulary": [
        task.render(np.array([token])) for token in range(1, task.vocab_size)
      ],
      "names": self.names,
      "step": self.step,
      "averaged": self.averaged,
      "scores": self.scores,
      "calibration": self.calibration,
    }

  def card(self) -> dict[str, Any]:
    """Facts and config together: what travels with exported weights."""
    return {
      "format": weights.FORMAT,
      **self.facts(),
      "config": dict(self.config),
    }


def load(path: str | os.PathLike, checkpoint: str = "best") -> Pretrained:
  """Loads a model from a run's folder, or from exported safetensors.

  Args:
    path: the folder, or the `.safetensors` file.
    checkpoint: "best", "last" or a step; a file has but one.

  Returns:
    The model, on averaged weights.

  Raises:
    UserError: if there is nothing there, or it cannot be read.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _from_folder(RunFolder(path), checkpoint)
  if not path.is_file():
    raise UserError(
      f"{path}: there is neither a run's folder nor a file; name one of the two"
    )
  params, config, facts = weights.load_weights(path)
  return Pretrained(
    params=params,
    experiment=config_lib.read(config),
    config=config,
    names=_names(path, facts.get("names", ["<blank>"])),
    step=_number(path, facts.get("step", 0)),
    scores=facts.get("scores", []),
    calibration=facts.get("calibration"),
    averaged=facts.get("averaged", True) is True,
  )


def _from_folder(folder: RunFolder, checkpoint: str) -> Pretrained:
  config = folder.read_config()
  experiment = config_lib.read(config)
  step, state, _ = fit.restore_for_inference(experiment, folder, checkpoint)
  result = read_optional(folder.result)
  scored = result.get("checkpoint") == step
  calibration = read_optional(folder.calibration)
  calibrated = calibration.get("checkpoint") == step
  return Pretrained(
    params=state.averaged_params,
    experiment=experiment,
    config=config,
    names=folder.read_identifiers(),
    step=step,
    scores=result.get("depths", result.get("grid", [])) if scored else [],
    calibration=calibration if calibrated else None,
  )


def _names(path: pathlib.Path, names: Any) -> list[str]:
  if isinstance(names, list) and all(isinstance(n, str) for n in names):
    return names
  raise UserError(f"{path}: its names of puzzle ids are not a list of texts")


def _number(path: pathlib.Path, step: Any) -> int:
  if type(step) is int:
    return step
  raise UserError(f"{path}: its step is {step!r:.40}, not a whole number")
