"""Every kind of input that programs read: a good one, and its reader."""

import dataclasses
import functools
import gzip
import json
import lzma
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import damage
import numpy as np
from programs import ROOT

sys.path += [str(ROOT / "tests" / room) for room in ("export", "study")]


@dataclasses.dataclass(frozen=True)
class Reader:
  """A kind of input.

  Attributes:
    write: makes a good one in a folder.
    read: reads it from there.
    damage: of bytes; by default that of the file's suffix.
    is_sealed: whether a fingerprint covers all that `read` returns.
    opens: whether the program opens the file, which may be no file at all.
  """

  write: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Any]
  damage: Callable[[bytes, np.random.Generator], bytes] | None = None
  is_sealed: bool = False
  opens: bool = True


def _text_readers() -> dict[str, Reader]:
  from trm_jax.data import csv_rows, folder, questions
  from trm_jax.data.arc import files
  from trm_jax.data.arc import predictions as arc_predictions
  from trm_jax.data.arc.task import arc_task
  from trm_jax.data.maze.task import maze_task
  from trm_jax.data.sudoku import generate
  from trm_jax.data.sudoku.rows import csv_format
  from trm_jax.data.sudoku.task import sudoku_task

  task, recorded = sudoku_task(4), ROOT / "tests" / "recorded"
  inputs, labels, _ = generate.generate(4, 12, seed=0, givens=(5, 8))
  pairs = [
    (task.render(i), task.render(o))
    for i, o in zip(inputs, labels, strict=True)
  ]
  pairs = [(i.replace("\n", ""), o.replace("\n", "")) for i, o in pairs]
  table = "source,question,answer,rating\n" + "".join(
    f"x,{i},{o},1\n" for i, o in pairs
  )
  lines = "# puzzles\n" + "".join(f"{i} {o}\n" for i, o in pairs)
  maze = "#####\n#S o#\n# # #\n#  G#\n#####\n".replace("o", " ")

  def asked(task, name):
    def read(at):
      with (at / name).open("rb") as stream:
        return questions.read(stream, task, name)

    return read

  def content(name, text):
    pack = {".gz": gzip.compress, ".xz": lzma.compress}
    data = pack.get(pathlib.Path(name).suffix, bytes)(text.encode())

    def write(at):
      (at / name).parent.mkdir(exist_ok=True)
      (at / name).write_bytes(data)

    return write

  def rows(name):
    return lambda at: csv_rows.read(at / name, csv_format(4), False)

  arc = json.loads((recorded / "arc/test_puzzles.json").read_text())
  single = json.dumps(next(iter(arc.values())) if "test" not in arc else arc)

  def folders(at):
    shutil.copytree(recorded / "folder_maze", at / "folder")

  return {
    "sudoku text": Reader(
      content("q.txt", lines), asked(task, "q.txt"), opens=False
    ),
    "maze text": Reader(
      content("q.txt", maze), asked(maze_task(5), "q.txt"), opens=False
    ),
    "csv question": Reader(
      content("q.csv", table), asked(task, "q.csv"), opens=False
    ),
    "arc question": Reader(
      content("q.json", single), asked(arc_task(30), "q.json"), opens=False
    ),
    "csv": Reader(content("d.csv", table), rows("d.csv")),
    "csv.gz": Reader(content("d.csv.gz", table), rows("d.csv.gz")),
    "csv.xz": Reader(content("d.csv.xz", table), rows("d.csv.xz")),
    "arc json": Reader(
      content("tasks/t.json", single),
      lambda at: files.read(str(at / "tasks")),
    ),
    "predictions": Reader(
      lambda at: shutil.copy(recorded / "arc/predictions.npz", at),
      lambda at: arc_predictions.read(at / "predictions.npz", 9),
    ),
    "folder": Reader(
      folders, lambda at: folder.read(at / "folder", "train", maze_task(5))
    ),
  }


def _run_readers() -> dict[str, Reader]:
  import jax
  from test_study_results import trial

  from trm_jax import config as config_lib
  from trm_jax.cli import configs
  from trm_jax.core import network
  from trm_jax.data import datasets
  from trm_jax.inspect import parity
  from trm_jax.run import metrics, result
  from trm_jax.run.checkpoint import Checkpoints, abstract_state
  from trm_jax.run.folder import RunFolder
  from trm_jax.solve import calibration
  from trm_jax.study import results

  network.shapes = functools.cache(network.shapes)  # the model stays as it is
  random = np.random.default_rng(0)
  config = {
    "data": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
    "model": {
      "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
      "inner_multiple": 8, "puzzle_emb_ndim": 16, "puzzle_emb_len": 1,
      "cycles": 2, "latent_steps": 2, "dtype": "float32",
    },
  }  # fmt: skip
  names = ["<blank>", *(f"task{i}" for i in range(5))]
  rows = [
    {"step": i, "split": "train", "loss": 1.5 / (i + 1), "seconds": 0.25}
    for i in range(2, 12, 2)
  ]
  scores = {"checkpoint": 8, "records": [{"depth": 1, "exact_accuracy": 0.5}]}
  q = random.normal(size=60)
  right = random.random(60) < 1 / (1 + np.exp(-q))
  tree = {
    "step": jax.numpy.int32(4),
    "weights": jax.numpy.asarray(random.normal(size=(8, 3)), "float32"),
  }
  abstract = abstract_state(tree, jax.tree.map(lambda a: a.sharding, tree))

  def write(name, value):
    return lambda at: (at / name).write_text(
      value if isinstance(value, str) else json.dumps(value)
    )

  def save(at):
    with Checkpoints(at / "checkpoints", 3) as checkpoints:
      for step in (4, 8):
        checkpoints.save(step, tree, {"exact_accuracy": 0.5})

  def restore(at):
    with Checkpoints(at / "checkpoints") as checkpoints:
      return checkpoints.restore(checkpoints.find("last"), abstract)

  def data(at):
    changes = {"cache_dir": str(at / "cache"), "num_train": 40}
    return config_lib.read(config | {"data": config["data"] | changes}).data

  def calibrated(at):
    from trm_jax.errors import UserError

    try:
      value = json.loads((at / "calibration.json").read_text())
    except (ValueError, RecursionError) as error:
      raise UserError(f"no JSON: {error}") from error
    return calibration.read(value)(np.array([-1e9, 0.0, 3.0]))

  def recording(at):
    recording = parity.Recording(str(at / "hrm.npz"))
    parity.read_recipe(recording, "float32")

  readers = {
    "config": Reader(
      write("config.json", config),
      lambda at: config_lib.read(RunFolder(at).read_config()),
    ),
    "identifiers": Reader(
      write("identifiers.json", names),
      lambda at: RunFolder(at).read_identifiers(),
    ),
    "metrics": Reader(
      write("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows)),
      lambda at: list(metrics.read(at / "metrics.jsonl")),
    ),
    "result": Reader(
      write("result.json", scores),
      lambda at: result.read(at / "result.json", 8),
    ),
    "trial": Reader(
      lambda at: results.save_trial(at / "trials", trial()),
      lambda at: results.load_trials(at / "trials"),
    ),
    "checkpoint": Reader(save, restore, is_sealed=True),
    "prepared": Reader(
      lambda at: datasets.load(data(at), "train"),
      lambda at: datasets.load(data(at), "train").rows,
      is_sealed=True,
    ),
    "parity": Reader(
      lambda at: shutil.copy(ROOT / "tests/recorded/parity/hrm.npz", at),
      recording,
    ),
    "config name": Reader(
      write("name.txt", "sudoku_extreme:attention"),
      lambda at: configs.load((at / "name.txt").read_text("latin-1")),
      damage.of_bytes,
      opens=False,
    ),
  }
  for kind in ("temperature", "isotonic"):
    fitted = calibration.fit(q, right, kind).to_json()
    readers[kind] = Reader(
      write("calibration.json", fitted), calibrated, opens=False
    )
  return readers


def _model_readers() -> dict[str, Reader]:
  import jax
  from exported_models import pretrained
  from safetensors.numpy import save_file

  from trm_jax import config as config_lib
  from trm_jax.export import (
    onnx_file,
    orbax_folder,
    published,
    reference,
    stablehlo,
  )
  from trm_jax.run import weights

  model = pretrained()
  config, size = model.config, model.experiment.model

  def save_published(at):
    arrays = reference.params_to_reference(model.params, size)
    arrays = {f"model.{name}": array for name, array in arrays.items()}
    save_file(arrays, at / "m.safetensors")

  def read_published(at):
    read = published.read_arrays(at / "m.safetensors")
    config_read, _ = published.complete_config(config, read)
    read, config_read, _ = published.arrange_table(
      read, config_read, None, None, ["<blank>"]
    )
    reference.params_from_reference(read, config_lib.read(config_read).model)

  def save_archive(at):
    import zipfile

    with zipfile.ZipFile(at / "x", "w") as archive:
      for name in ("data.pkl", "version", "data/0"):
        archive.writestr(f"x/{name}", bytes(range(30)))

  def solved(load, name):
    """What an exported model answers."""

    def read(at):
      solver = load(at / name)
      inputs = np.ones((1, size.seq_len), np.int32)
      return solver(inputs, depth=2)

    return read

  return {
    "weights": Reader(
      lambda at: weights.save_weights(
        at / "m.safetensors", model.params, config, {"step": 7}
      ),
      lambda at: jax.device_get(weights.load_weights(at / "m.safetensors")[0]),
      is_sealed=True,
    ),
    "published": Reader(save_published, read_published),
    "archive": Reader(
      save_archive, lambda at: published.read_arrays(at / "x"), damage.of_bytes
    ),
    "names": Reader(
      lambda at: (at / "n.json").write_text(json.dumps(["<blank>", "a", "b"])),
      lambda at: published.read_names(at / "n.json"),
    ),
    "orbax folder": Reader(
      lambda at: orbax_folder.export(model, at / "m"),
      lambda at: jax.device_get(orbax_folder.load(at / "m")[0]),
      is_sealed=True,
    ),
    "stablehlo": Reader(
      lambda at: stablehlo.export(model, at / "m.stablehlo"),
      solved(stablehlo.load, "m.stablehlo"),
      is_sealed=True,
    ),
    "onnx": Reader(
      lambda at: onnx_file.export(model, at / "m.onnx"),
      solved(onnx_file.load, "m.onnx"),
      is_sealed=True,
    ),
  }


def all_readers() -> dict[str, Reader]:
  """Name -> reader."""
  return _text_readers() | _run_readers() | _model_readers()
