"""Loads trained models, from a run's folder or an exported file."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax import config as config_lib
from trm_jax.config import Experiment
from trm_jax.core import network
from trm_jax.core.model import Params
from trm_jax.errors import UserError
from trm_jax.run import result, sharding
from trm_jax.run import weights as weights_file
from trm_jax.run.checkpoint import Checkpoints, abstract_state
from trm_jax.run.files import locate, read_optional
from trm_jax.run.folder import RunFolder


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A trained model and all that is needed to use it.

  Attributes:
    params: the model.
    experiment: the experiment that trained it.
    config: the experiment as plain values.
    names: the name of each puzzle id; `["<blank>"]` if puzzles have no names.
    step: number of optimizer steps.
    scores: its evaluations at several depths; may be empty.
    calibration: of its confidence, see `calibration.Calibration.to_json`; None
      if not measured.
    averaged: whether the weights are the moving average, not the last.
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
    """All but arrays and config, as JSON values."""
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
    """The card of exported weights: format, facts and config."""
    return {
      "format": weights_file.FORMAT,
      **self.facts(),
      "config": dict(self.config),
    }


def load(
  path: str | os.PathLike, checkpoint: str = "best", averaged: bool = True
) -> Pretrained:
  """Loads a model from a run's folder or an exported `.safetensors` file.

  Args:
    path: the folder or the file.
    checkpoint: of a run: "best", "last" or a step.
    averaged: of a run: whether to load the moving average of the weights, to
      which scores and calibration belong, or the last weights.

  Raises:
    UserError: if there is no model, or it cannot be read.
  """
  path = locate(path)
  if path.is_dir():
    return _from_folder(RunFolder(path), checkpoint, averaged)
  if not path.is_file():
    raise UserError(
      f"{path}: there is neither a run's folder nor a file; name one of the two"
    )
  params, config, facts = weights_file.load_weights(path)
  names, step = facts.get("names", ["<blank>"]), facts.get("step", 0)
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise UserError(f"{path}: its names of puzzle ids are not a list of texts")
  if type(step) is not int:
    raise UserError(f"{path}: its step is {step!r:.40}, not a whole number")
  return Pretrained(
    params=params,
    experiment=config_lib.read(config),
    config=config,
    names=names,
    step=step,
    scores=result.checked(path, facts.get("scores", [])),
    calibration=facts.get("calibration"),
    averaged=facts.get("averaged", True) is True,
  )


def _from_folder(
  folder: RunFolder, checkpoint: str, averaged: bool
) -> Pretrained:
  config = folder.read_config()
  experiment = config_lib.read(config)
  step, params = restore_params(experiment, folder, checkpoint, averaged)
  calibration = read_optional(folder.calibration)
  names = folder.read_identifiers()
  scores = result.read(folder.result, step)
  calibrated = averaged and calibration.get("checkpoint") == step
  return Pretrained(
    params=params,
    experiment=experiment,
    config=config,
    names=names,
    step=step,
    scores=scores if averaged else [],
    calibration=calibration if calibrated else None,
    averaged=averaged,
  )


def restore_params(
  experiment: Experiment, folder: RunFolder, which: str, averaged: bool = True
) -> tuple[int, Params]:
  """Loads only the model of a checkpoint, sharded over the devices; see `load`.

  Returns:
    The checkpoint's step, and the model.
  """
  if not folder.checkpoints.is_dir():
    raise UserError(f"{folder.path} holds no checkpoint yet: train first")
  mesh = sharding.inference_mesh(experiment.mesh.model)
  shapes = network.shapes(experiment.model)
  part = {  # of a `TrainState`
    "params": {"puzzle_table": shapes.puzzle_table, "initial": shapes.initial}
  }
  if averaged:
    part["ema"] = shapes.weights
  else:
    part["params"]["weights"] = shapes.weights
  abstract = abstract_state(part, sharding.shardings(part, mesh))
  with Checkpoints(
    folder.checkpoints, best_metric=experiment.task.best_metric
  ) as checkpoints:
    step = checkpoints.find(which)
    found = checkpoints.restore(step, abstract, partial=True)
  weights = found["ema"] if averaged else found["params"]["weights"]
  return step, Params(
    weights=weights,
    puzzle_table=found["params"]["puzzle_table"],
    initial=found["params"]["initial"],
  )
