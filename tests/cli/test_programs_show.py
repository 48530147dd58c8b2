"""`show` draws puzzles with and without a model, a tiny one of ARC."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from conftest import DATA, tiny_model
from PIL import Image
from programs import run_program

from trm_jax import config as config_lib
from trm_jax.cli import show
from trm_jax.errors import UserError
from trm_jax.run.checkpoint import Checkpoints
from trm_jax.run.folder import RunFolder, write_json
from trm_jax.solve import held_out
from trm_jax.train.program import build

MAZES = f"{DATA}/maze_sample.csv"

# name -> the request, in which {} is the test's folder, and what must be said.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
  "suffix": (
    {"task": "sudoku", "out": "x.jpg"},
    r"--out=x\.jpg: .*\.png or \.gif",
  ),
  "no_out": ({"task": "sudoku", "out": ""}, r"--out=: "),
  "no_task": ({"out": "x.png"}, "--task is missing"),
  "no_model": ({"task": "sudoku", "out": "x.gif"}, r"x\.gif: .*--workdir"),
  "no_depth": (
    {"task": "sudoku", "depth": 3, "out": "x.png"},
    "--depth=3: .*--workdir",
  ),
  "no_source": ({"task": "arc", "out": "x.png"}, "--data is missing"),
  "no_run": ({"workdir": "{}", "out": "x.png"}, "is not a run folder"),
  "size": (
    {"task": "sudoku", "size": 5, "out": "x.png"},
    "size=5: not the size",
  ),
  "contradiction": (
    {"workdir": "{}/run", "task": "maze", "out": "x.png"},
    "is of arc",
  ),
  "other_size": (
    {"workdir": "{}/run", "size": 3, "out": "x.png"},
    "--size=3: ",
  ),
  "name": (
    {"workdir": "{}/run", "name": ["tern"], "out": "x.png"},
    "--name=tern: .* similar are turn, mirror",
  ),
  "no_names": (
    {"task": "sudoku", "size": 4, "name": ["x"], "out": "x.png"},
    "--name: only ARC tasks",
  ),
  "unwritable": (
    {
      "task": "maze",
      "data": MAZES,
      "puzzles": 1,
      "out": "{}/tasks/turn.json/x.png",
    },
    "cannot write",
  ),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> pathlib.Path:
  """A folder with a run of a tiny ARC model that has learned nothing yet."""
  work = tmp_path_factory.mktemp("show")
  (work / "tasks").mkdir()
  for name, turn in (("mirror", np.fliplr), ("turn", np.rot90)):
    squares = np.random.default_rng(0).integers(0, 4, (5, 2, 2))
    pairs = [
      {"input": square.tolist(), "output": turn(square).tolist()}
      for square in squares
    ]
    text = json.dumps({"train": pairs[:3], "test": pairs[3:]})
    (work / "tasks" / f"{name}.json").write_text(text)
  model = dataclasses.asdict(tiny_model())
  del model["vocab_size"], model["seq_len"]
  config = {
    "data": {
      "task": "arc",
      "test": str(work / "tasks"),
      "num_aug": 3,
      "size": 3,
      "cache_dir": str(work / "data"),
    },
    "model": model,
    "train": {"batch_size": 16},
    "eval": {"batch_size": 16},
  }
  experiment, names = held_out.prepare(config, config_lib.read(config))
  run = RunFolder(work / "run")
  run.claim(config, {})
  write_json(run.identifiers, names)
  with Checkpoints(run.checkpoints, 1, "pass@2") as checkpoints:
    state = build(experiment).init()
    checkpoints.save(10, state)
    checkpoints.score(10, {"pass@2": 0.5})
  run.release()
  return work


def check(path: pathlib.Path, frames: int, across: int, down: int):
  """A picture has so many frames, of so many panels."""
  with Image.open(path) as picture:
    assert getattr(picture, "n_frames", 1) == frames
    # Panels are squares of about equal size.
    for pixels, count in zip(picture.size, (across, down), strict=True):
      assert pixels / count == pytest.approx(350, rel=0.25)


@pytest.mark.draw
def test_the_program_draws_generated_puzzles(tmp_path):
  path = tmp_path / "sudoku.png"
  told = run_program(
    "show", "--task=sudoku", "--size=4", "--copies=1", f"--out={path}"
  )
  assert told.strip().splitlines()[-1] == f"wrote {path}"
  check(path, 1, 3, 3)


@pytest.mark.draw
def test_rows_of_a_file_are_drawn(tmp_path):
  path = tmp_path / "csv.png"
  show.draw(show.ShowRequest(task="maze", data=MAZES, puzzles=1, out=str(path)))
  check(path, 1, 2, 1)


@pytest.mark.draw
def test_a_film_shows_every_step_of_a_model(work):
  """Three examples, two questions, each with an answer, and a copy."""
  path = work / "film.gif"
  show.draw(
    show.ShowRequest(
      workdir=str(work / "run"), task="arc", data=str(work / "tasks"),
      name=["turn"], puzzle_id="mean", depth=3, copies=1, out=str(path),
    )
  )  # fmt: skip
  check(path, 3, 8, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told(name, work):
  values, message = REFUSED[name]
  values = json.loads(json.dumps(values).replace("{}", str(work)))
  with pytest.raises(UserError, match=message):
    show.draw(show.ShowRequest(**values))
