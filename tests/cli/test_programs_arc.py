"""ARC and folders as a user meets them: from json files to a submission."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from programs import ROOT, TINY, TINY_ARC, run_in_forks, run_program

from trm_jax.data import folder as folder_lib

FOLDER = "tests/recorded/folder_arc"

# As in test_programs.py; "arc" stands for the flags of the run in {}/run.
CASES = {
  "no_files": (
    "train",
    "--config=configs/arc_agi_1.py --workdir={}/new "
    "--config.data.test={}/nowhere --config.data.train=",
    r"nowhere.*github\.com/fchollet/ARC-AGI",
  ),
  "bad_grid": (
    "train",
    "arc --workdir={}/new --config.data.test={}/bad",
    r"bad\.json.*row 1 of the grid holds 11; expected colours",
  ),
  "too_large": (
    "train",
    "arc --workdir={}/new --config.data.size=1",
    r"mirror.*2",
  ),
  "no_such_task": (
    "train",
    "arc --workdir={}/new --config.data.only=mirror,none",
    r"only: .*none",
  ),
  "unseen": (
    "evaluate",
    "--workdir={}/run --data={}/others",
    r"7 of 7 puzzles were not trained on.*'other'.*--puzzle_id=mean",
  ),
  "bad_puzzle_id": ("evaluate", "--workdir={}/run --puzzle_id=x", "error|mean"),
  "views": (
    "evaluate",
    "--workdir={}/run --breadth=2 --views",
    "views: arc puzzles are not shown under random symmetries",
  ),
  "no_rules": (
    "evaluate",
    "--workdir={}/run --halt=solved",
    "halt='solved': no rules tell whether an answer to arc is right",
  ),
  "calibrated": (
    "evaluate",
    "--workdir={}/run --calibrate=isotonic",
    "--calibrate=isotonic: needs held-out puzzles without copies",
  ),
  "bad_rows": (
    "evaluate",
    "--workdir={}/run --skip_bad_rows",
    r"--skip_bad_rows: ARC files have no rows",
  ),
  "no_checkpoint": (
    "evaluate",
    "--workdir={}/run --checkpoint=8,999",
    r"checkpoint '999': must be",
  ),
  "torn_names": (
    "evaluate",
    "--workdir={}/torn",
    r"identifiers\.json is damaged",
  ),
  "no_folder": (
    "train",
    "arc --workdir={}/new --config.data.path={}/none",
    r"none",
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
  "blank": "--workdir={}/blank --depth=2 --data={}/others --puzzle_id=blank",
  "never": "--workdir={}/never --depth=1,3 --checkpoint=last "
  "--halt=unchanged --patience=99",
  "broad": "--workdir={}/broad --depth=1,3 --breadth=1,2 --checkpoint=last",
  "learnt": "--workdir={}/learnt --depth=2 --split=train",
  "few": "--workdir={}/few --depth=2 --copies=2 --puzzles=1",
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
  for name in (*DONE, "torn"):
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
  for record in result["depths"]:
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


def test_rollouts_of_copies_vote_as_well(folder, outcomes):
  status, printed = outcomes["broad"]
  assert status == 0, printed
  grid = _result(folder, "broad")["grid"]
  assert [(r["depth"], r["breadth"]) for r in grid] == [
    (1, 1), (1, 2), (3, 1), (3, 2)
  ]  # fmt: skip
  submission = json.loads((folder / "broad" / "submission.json").read_text())
  assert submission.keys() == {"mirror", "turn"}


def test_one_rollout_that_never_halts_is_plain_evaluation(folder, outcomes):
  status, printed = outcomes["never"]
  assert status == 0, printed
  alone, never = (_result(folder, name) for name in ("alone", "never"))
  for one, other in zip(alone["depths"], never["grid"], strict=True):
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


def test_tasks_that_were_not_trained_on(folder, outcomes):
  for name in ("mean", "blank"):
    status, printed = outcomes[name]
    assert status == 0, printed
    assert _result(folder, name)["depths"][0]["puzzles"] == 7


def test_fewer_copies_of_fewer_tasks(folder, outcomes):
  status, printed = outcomes["few"]
  assert status == 0, printed
  assert _result(folder, "few")["depths"][0]["puzzles"] == 2 * 2


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
  split = folder_lib.read(folder / "written", "test")
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


def test_training_puzzles_are_scored_too(folder, outcomes):
  status, printed = outcomes["learnt"]
  assert status == 0, printed
  result = _result(folder, "learnt")
  assert result["split"] == "train"
  assert result["depths"][0]["puzzles"] == 2 * 3 * 7  # three pairs a task
