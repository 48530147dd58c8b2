"""ARC and folders as a user meets them: from json files to a submission."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from programs import ROOT, TINY, TINY_ARC, run_in_forks, run_program

from trm_jax import config as config_lib
from trm_jax.cli import evaluation
from trm_jax.data import folder as folder_lib
from trm_jax.data.arc.task import arc_task
from trm_jax.errors import UserError
from trm_jax.run.folder import RunFolder
from trm_jax.solve import held_out
from trm_jax.solve.rules import SolveConfig

FOLDER = "tests/recorded/folder_arc"

# Flags of training or settings of its config -> what the message must say;
# {} is the test's folder.
BAD_DATA = {
  "no_files": (
    {"test": "{}/nowhere", "train": ""},
    r"nowhere.*github\.com/fchollet/ARC-AGI",
  ),
  "bad_grid": (
    {"test": "{}/bad"},
    r"bad\.json.*row 1 of the grid holds 11; expected colours",
  ),
  "too_large": ({"size": 1}, r"mirror.*2"),
  "no_such_task": ({"only": "mirror,none"}, r"only: .*none"),
  "no_folder": ({"path": "{}/none"}, r"none"),
}
# Arguments of `load_held_out` or `by_rollouts`.
BAD_EVALUATION = {
  "unseen": (
    {"source": "{}/others"},
    {},
    r"7 of 7 puzzles were not trained on.*'other'.*--puzzle_id=mean",
  ),
  "bad_rows": ({"skip_bad_rows": True}, {}, r"ARC files have no rows"),
  "views": (
    {},
    {"settings": SolveConfig(breadth=2, views=True)},
    "views: arc puzzles are not shown under random symmetries",
  ),
  "no_rules": (
    {},
    {"settings": SolveConfig(halt=("solved",))},
    "halt='solved': no rules tell whether an answer to arc is right",
  ),
  "calibrated": (
    {},
    {"calibrate": "isotonic"},
    "--calibrate=isotonic: needs held-out puzzles without copies",
  ),
  "no_checkpoint": ({}, {"checkpoint": "999"}, r"checkpoint '999': must be"),
}
# Whole programs.
CASES = {
  "bad_puzzle_id": ("evaluate", "--workdir={}/run --puzzle_id=x", "error|mean"),
  "torn_names": (
    "evaluate",
    "--workdir={}/torn",
    r"identifiers\.json is damaged",
  ),
  "another_task": (
    "train",
    f"sudoku --workdir={{}}/new --config.data.path={FOLDER}",
    r"folder_arc.*900.*16",
  ),
  "small_table": (
    "train",
    "arc --workdir={}/new --config.model.num_puzzle_ids=4",
    r"num_puzzle_ids=4: the data has 15 puzzle ids",
  ),
}

DONE = {
  "alone": "--workdir={}/alone --depth=1,3 --checkpoint=last",
  "together": "--workdir={}/together --depth=3 --checkpoint=4,8",
  "mean": "--workdir={}/mean --depth=2 --data={}/others --puzzle_id=mean",
  "never": "--workdir={}/never --depth=1,3 --checkpoint=last "
  "--halt=unchanged --patience=99",
}
# name -> (arguments of `load_held_out`, depths, breadths).
IN_PROCESS = {
  "blank": ({"source": "{}/others", "unseen": "blank"}, [2], [1]),
  "broad": ({}, [1, 3], [1, 2]),
  "learnt": ({"split": "train"}, [2], [1]),
  "few": ({"copies": 2, "puzzles": 1}, [2], [1]),
}


SAMPLE = "tests/recorded/maze_sample.csv"
WRITTEN = {
  "written": "arc --out={}/written",
  "mazes": "--config=configs/maze_hard.py --out={}/mazes --dihedral "
  f"--config.data.train={SAMPLE} --config.data.test={SAMPLE} "
  "--config.data.cache_dir={}/data",
  "twice": "arc --out={}/run",
  "images": "arc --out={}/images --dihedral",
}


def _write_task(path: pathlib.Path, grid):
  pair = {"input": grid, "output": grid}
  other = {"input": [[1, 2]], "output": [[2, 1]]}
  path.parent.mkdir()
  path.write_text(json.dumps({"train": [pair, other], "test": [pair]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("arc")
  _write_task(folder / "bad" / "bad.json", [[11]])
  _write_task(folder / "others" / "other.json", [[1, 0], [2, 3]])
  run_program("train", *TINY_ARC(folder), f"--workdir={folder / 'run'}")
  for name in (*DONE, *IN_PROCESS, "torn"):
    shutil.copytree(folder / "run", folder / name)
  (folder / "torn" / "identifiers.json").write_text('["<blank>", ')
  return folder


@pytest.fixture(scope="module")
def outcomes(folder):
  commands = {}
  for name, (program, flags, _) in CASES.items():
    words = []
    for flag in flags.replace("{}", str(folder)).split():
      short = {"arc": TINY_ARC(folder), "sudoku": TINY(folder)}
      words += short.get(flag, [flag])
    commands[name] = [program, *words]
  for name, flags in DONE.items():
    commands[name] = ["evaluate", *flags.replace("{}", str(folder)).split()]
  for name, flags in WRITTEN.items():
    words = flags.replace("{}", str(folder)).split()
    if words[0] == "arc":
      words[:1] = TINY_ARC(folder)
    commands[name] = ["write_folder", *words]
  logs = folder.parent / "arc_logs"
  logs.mkdir()
  return run_in_forks(commands, logs, devices=1)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_a_line(outcomes, name):
  status, printed = outcomes[name]
  assert status == 2, printed
  assert "Traceback" not in printed
  (message,) = re.findall(r"^error: [^$]*", printed, re.MULTILINE)
  assert re.search(CASES[name][2], message), message


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_refused(folder, name):
  changes, message = BAD_DATA[name]
  config = RunFolder(folder / "run").read_config()
  config["data"] |= {
    field: value.replace("{}", str(folder)) if type(value) is str else value
    for field, value in changes.items()
  }
  with pytest.raises(UserError, match=f"(?s){message}"):
    held_out.prepare(config, config_lib.read(config))


def _tested(folder, name, **asked):
  asked = {
    key: value.replace("{}", str(folder)) if key == "source" else value
    for key, value in asked.items()
  }
  run = RunFolder(folder / name)
  loaded = held_out.load_held_out(run, **asked)
  return evaluation.Tested(
    run, *loaded, asked.get("split", "test"), asked.get("source", ""),
    asked.get("unseen", "error"),
  )  # fmt: skip


@pytest.mark.parametrize("name", BAD_EVALUATION)
def test_what_cannot_be_evaluated_is_refused(folder, name):
  asked, how, message = BAD_EVALUATION[name]
  how = {
    "checkpoint": "last", "settings": SolveConfig(depth=2), "calibrate": None
  } | how  # fmt: skip
  with pytest.raises(UserError, match=message):
    evaluation.by_rollouts(
      _tested(folder, "run", **asked), depths=[2], breadths=[1],
      selects=["q"], **how,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(folder):
  """Runs what `evaluate` does, in this process."""
  for name, (asked, depths, breadths) in IN_PROCESS.items():
    tested = _tested(folder, name, **asked)
    if breadths == [1]:
      evaluation.by_depth(tested, ["last"], depths)
    else:
      settings = SolveConfig(depth=max(depths), breadth=max(breadths))
      evaluation.by_rollouts(
        tested, "last", settings, depths, breadths, ["q"], None
      )


def _result(folder, name):
  return json.loads((folder / name / "result.json").read_text())


def test_a_run_keeps_the_names_of_its_puzzles(folder):
  names = json.loads((folder / "run" / "identifiers.json").read_text())
  assert names[:2] == ["<blank>", "mirror"]
  assert re.fullmatch(r"mirror\|\|\|t\d\|\|\|0\d{9}", names[2])
  assert len(names) == 15  # two tasks with six copies each
  config = json.loads((folder / "run" / "config.json").read_text())
  assert config["model"]["num_puzzle_ids"] == 512


def test_evaluation_votes_and_writes_a_submission(folder, outcomes):
  status, printed = outcomes["alone"]
  assert status == 0, printed
  assert re.search(r"depth.*pass@1.*pass@2", printed)
  result = _result(folder, "alone")
  assert result["voting_checkpoints"] == [8]
  for record in result["records"]:
    assert record["puzzles"] == 2 * 2 * 7  # tasks, test pairs, copies
    scores = [record[f"pass@{k}"] for k in (1, 2, 5, 10, 100, 1000)]
    assert scores == sorted(scores)
  submission = json.loads((folder / "alone" / "submission.json").read_text())
  assert submission.keys() == {"mirror", "turn"}
  for attempts in submission.values():
    assert len(attempts) == 2
    for attempt in attempts:
      assert attempt.keys() == {"attempt_1", "attempt_2"}
  assert (folder / "alone" / "plots" / "depth.png").stat().st_size > 10_000


def test_rollouts_of_copies_vote_as_well(folder, evaluated):
  grid = _result(folder, "broad")["records"]
  assert [(r["depth"], r["breadth"]) for r in grid] == [
    (1, 1), (1, 2), (3, 1), (3, 2)
  ]  # fmt: skip
  submission = json.loads((folder / "broad" / "submission.json").read_text())
  assert submission.keys() == {"mirror", "turn"}


def test_one_rollout_that_never_halts_is_plain_evaluation(folder, outcomes):
  status, printed = outcomes["never"]
  assert status == 0, printed
  alone, never = (_result(folder, name) for name in ("alone", "never"))
  for one, other in zip(alone["records"], never["records"], strict=True):
    for name in ("depth", "puzzles", "pass@1", "pass@2", "pass@1000"):
      assert one[name] == other[name]
  texts = [
    (folder / name / "submission.json").read_text()
    for name in ("alone", "never")
  ]
  assert texts[0] == texts[1]


def test_several_checkpoints_vote_together_and_say_so(folder, outcomes):
  status, printed = outcomes["together"]
  assert status == 0, printed
  assert "votes of steps 4, 8 together" in printed
  assert _result(folder, "together")["voting_checkpoints"] == [4, 8]


def test_tasks_that_were_not_trained_on(folder, outcomes, evaluated):
  status, printed = outcomes["mean"]
  assert status == 0, printed
  for name in ("mean", "blank"):
    assert _result(folder, name)["records"][0]["puzzles"] == 7


def test_fewer_copies_of_fewer_tasks(folder, evaluated):
  assert _result(folder, "few")["records"][0]["puzzles"] == 2 * 2


def test_a_folder_in_the_layout_of_the_reference_trains(tmp_path):
  changes = ["data.size=30", "data.path=" + FOLDER, "train.steps=2",
             "eval.every=2", "eval.depth=1", "eval.copies=2",
             "model.mixer=mlp", "model.positions=none",
             "checkpoint.every=2"]  # fmt: skip
  printed = run_program(
    "train", *TINY_ARC(tmp_path), f"--workdir={tmp_path / 'run'}",
    *(f"--config.{change}" for change in changes),
  )  # fmt: skip
  assert re.search(r"training on 3 puzzles in \d+ copies", printed)
  names = json.loads((ROOT / FOLDER / "identifiers.json").read_text())
  kept = json.loads((tmp_path / "run" / "identifiers.json").read_text())
  assert kept == names
  (row,) = [
    json.loads(line)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    if '"test"' in line
  ]
  groups = np.load(ROOT / FOLDER / "test" / "all__group_indices.npy")
  assert row["puzzles"] >= 2 * (len(groups) - 1)
  assert 0 <= row["pass@1"] <= row["pass@1000"] <= 1


def test_a_dataset_is_written_in_the_layout_of_the_reference(folder, outcomes):
  status, printed = outcomes["written"]
  assert status == 0, printed
  split = folder_lib.read(folder / "written", "test", arc_task())
  assert split.names == ("mirror", "turn")
  assert len(split.rows[0]) == 2 * 2 * 7
  solved = json.loads((folder / "written" / "test_puzzles.json").read_text())
  given = json.loads((folder / "tasks" / "mirror.json").read_text())
  assert solved["mirror"] == given


def test_mazes_are_written_as_the_reference_writes_them(folder, outcomes):
  status, printed = outcomes["mazes"]
  assert status == 0, printed
  with np.load(ROOT / "tests/recorded/maze_sample_reference.npz") as reference:
    for name in ("inputs", "labels"):
      for split, every in (("test", 1), ("train", 8)):
        array = np.load(folder / "mazes" / split / f"all__{name}.npy")
        np.testing.assert_array_equal(array[::every], reference[name])
  turned = np.load(folder / "mazes" / "train" / "all__inputs.npy")
  grids = turned.reshape(-1, 8, 30, 30)
  np.testing.assert_array_equal(grids[0, 3], np.rot90(grids[0, 0], 3))
  np.testing.assert_array_equal(grids[5, 5], np.flipud(grids[5, 0]))


@pytest.mark.parametrize(
  ("name", "reason"),
  [("twice", "something is there already"), ("images", "--dihedral: not for")],
)
def test_folders_are_not_written_over(outcomes, name, reason):
  status, printed = outcomes[name]
  assert status == 2, printed
  assert reason in printed


def test_training_puzzles_are_scored_too(folder, evaluated):
  result = _result(folder, "learnt")
  assert result["split"] == "train"
  assert result["records"][0]["puzzles"] == 2 * 3 * 7  # three pairs a task
