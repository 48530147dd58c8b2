"""Solving, evaluating by rollouts, and halting, as a user meets them."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageSequence
from programs import ROOT, TINY, environment, run_in_forks, run_program

from trm_jax.cli import answers, evaluation
from trm_jax.cli.answers import Form
from trm_jax.data.questions import Fault
from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.errors import UserError
from trm_jax.run import pretrained, weights
from trm_jax.run.folder import RunFolder
from trm_jax.solve import calibration, held_out
from trm_jax.solve.rules import SolveConfig

PUZZLES = ["12..3.1..1.34..1", "....3.1..1.34..1"]
FILE = f"# mine\n{PUZZLES[0]}\n123\n{PUZZLES[1]}\n"

# name -> (program, flags, what the message must say); {} is the test's folder.
BAD = {
  "no_workdir": ("solve", "{}/p.txt", r"--workdir is missing: name a run"),
  "no_file": ("solve", "{run} {}/none.txt", r"none\.txt: cannot be read"),
  "depth": ("solve", "{run} --depth=0 {}/p.txt", r"--depth=0"),
  "halt": (
    "evaluate",
    "{run} --halt=nonsense",
    r"--halt='nonsense': must be some of q, unchanged",
  ),
  "select": (
    "evaluate",
    "{run} --breadth=2 --select=q,nonsense",
    r"--select=nonsense: must be some of q, vote",
  ),
  "not_recursive": (
    "halting",
    "--workdir={}/feedforward",
    r"family='feedforward' takes a single step: there is nothing to halt",
  ),
}

# The same for the functions behind the programs: changed arguments.
BAD_SOLVE = {
  "nowhere": ({"workdir": "{}/none"}, r"neither a run's folder"),
  "a_folder": ({"name": "{}"}, r"cannot be read \(Is a directory"),
  "empty": (
    {"name": "{}/empty.txt"},
    r"holds no puzzle; expected a Sudoku",
  ),
  "same": (
    {"config": {"cycle_noise": 0.0}, "form": Form(True, False, False, "")},
    r"all rollouts would be the same; set views",
  ),
  "too_many": (
    {"name": "{}/many.txt", "form": Form(False, False, True, "")},
    r"21 puzzles are too many to draw; at most 20",
  ),
  "checkpoint": (
    {"checkpoint": "7"},
    r"checkpoint '7': must be 'best', 'last' or one of the steps 24",
  ),
  "damaged": (
    {"workdir": "{}/damaged.safetensors"},
    r"damaged\.safetensors cannot be read as safetensors",
  ),
  "memory": ({"memory": "much"}, r"memory limit 'much': must be bytes"),
}
PLAIN = Form(False, False, False, "")
BAD_FLAGS = {
  "two_files": (["", "a", "b"], 0.5, PLAIN, r"expected one file, or - .*'a'"),
  "png": ([""], 0.5, PLAIN._replace(gif="x.png"), r"--gif=x\.png: .*\.gif"),
  "confidence": ([""], 2.0, PLAIN, r"--confidence=2: must be a"),
  "two_forms": ([""], 0.5, Form(False, True, True, ""), r"--json and --show"),
}
BAD_EVALUATION = {
  "flops": ({"flops": 1.0}, {}, r"flops=1: one supervision step of 1 rollouts"),
  "alike": (
    {"breadth": 2, "cycle_noise": 0.0},
    {},
    r"breadth=2: all rollouts would be the same",
  ),
  "training_puzzles": (
    {},
    {"split": "train", "calibrate": "isotonic"},
    r"--calibrate=isotonic: needs held-out puzzles",
  ),
  "several_checkpoints": (
    {"halt": ("q",)},
    {"checkpoint": "best,last"},
    r"--checkpoint=best,last: several checkpoints can only vote",
  ),
}

# The same for what succeeds: name -> (program, flags, status).
GOOD = {
  "text": ("solve", "{run} --depth=3 {}/p.txt", 1),
  "file": ("solve", "--workdir={}/model.safetensors --depth=3 {}/p.txt", 1),
  "json": ("solve", "{run} --depth=3 --fixed --json {}/p.txt", 1),
  "several": ("solve", "{run} --depth=3 --several --json {}/good.txt", 0),
  "several_text": ("solve", "{run} --depth=3 --several {}/good.txt", 0),
  "show": (
    "solve",
    "{run} --depth=3 --fixed --show --gif={}/films/film.gif {}/good.txt",
    0,
  ),
  "grid": (
    "evaluate",
    "--workdir={}/grid --depth=2,3 --breadth=1,3 --select=q,vote,solved "
    "--views --calibrate=temperature",
    0,
  ),
  "early": ("evaluate", "--workdir={}/early --depth=4 --halt=q,unchanged", 0),
  "halting": ("halting", "--workdir={}/halted --depth=3", 0),
}

KEPT = ("run", "feedforward")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A finished run, copies of it, its weights, and files of puzzles."""
  folder = tmp_path_factory.mktemp("solve")
  run = folder / "run"
  run_program(
    "train", *TINY(folder), "--config.eval.every=24", f"--workdir={run}"
  )
  for copy in ("grid", "early", "halted", "feedforward"):
    shutil.copytree(run, folder / copy)
  path = folder / "feedforward" / "config.json"
  config = json.loads(path.read_text())
  config["model"] |= {"family": "feedforward", "cycles": 1, "latent_steps": 1}
  config["halting"]["max_steps"] = 1
  path.write_text(json.dumps(config))
  model = pretrained.load(run)
  exported = folder / "model.safetensors"
  weights.save_weights(exported, model.params, model.config, model.facts())
  damaged = folder / "damaged.safetensors"
  damaged.write_bytes(exported.read_bytes()[:-1])
  (folder / "p.txt").write_text(FILE)
  (folder / "good.txt").write_text("\n".join(PUZZLES))
  (folder / "many.txt").write_text(f"{PUZZLES[0]}\n" * 21)
  (folder / "empty.txt").write_text("\n# nothing\n")
  return folder


def _contents(folder):
  return {
    path: path.read_bytes()
    for name in KEPT
    for path in (folder / name).rglob("*")
    if path.is_file() and path.name != ".lock"
  }


@pytest.fixture(scope="module")
def outcomes(folder):
  """name -> (status, printed), and whether the runs are as they were."""
  logs = folder / "logs"
  logs.mkdir()
  commands = {}
  for name, (program, flags, _) in (BAD | GOOD).items():
    flags = flags.replace("{run}", f"--workdir={folder / 'run'}")
    commands[name] = [program, *flags.replace("{}", str(folder)).split()]
  before = _contents(folder)
  results = run_in_forks(commands, logs, devices=2)
  return results, before == _contents(folder)


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_flags_that_do_not_go_together_are_refused(name):
  argv, confidence, form, message = BAD_FLAGS[name]
  with pytest.raises(UserError, match=message):
    answers.check(argv, "run", confidence, form)


@pytest.mark.parametrize("name", BAD_SOLVE)
def test_what_cannot_be_solved_is_refused(folder, name):
  changes, message = BAD_SOLVE[name]
  given = {
    "workdir": "{}/run", "checkpoint": "best", "name": "{}/p.txt",
    "config": {}, "form": PLAIN, "memory": "",
  } | changes  # fmt: skip
  for key in ("workdir", "name"):
    given[key] = given[key].replace("{}", str(folder))
  with pytest.raises(UserError, match=message):
    answers.solve(**given)


@pytest.mark.parametrize("name", BAD_EVALUATION)
def test_what_cannot_be_evaluated_is_refused(folder, name):
  settings, asked, message = BAD_EVALUATION[name]
  asked = {"split": "test", "checkpoint": "best", "calibrate": None} | asked
  run = RunFolder(folder / "run")
  split = asked.pop("split")
  loaded = held_out.load_held_out(run, split=split)
  tested = evaluation.Tested(run, *loaded, split, "", "error")
  with pytest.raises(UserError, match=message):
    evaluation.by_rollouts(
      tested, settings=SolveConfig(**settings), depths=[2], breadths=[1],
      selects=["q"], **asked,
    )  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_a_line(outcomes, name):
  status, printed = outcomes[0][name]
  assert status == 2, printed
  assert "Traceback" not in printed
  (message,) = re.findall(r"^error: .*", printed, re.MULTILINE)
  assert re.search(BAD[name][2], message), message


def test_what_fails_changes_nothing(outcomes):
  assert outcomes[1]


@pytest.mark.parametrize("name", GOOD)
def test_it_runs(outcomes, name):
  status, printed = outcomes[0][name]
  assert status == GOOD[name][2], printed
  assert "Traceback" not in printed


def _printed(outcomes, name):
  return outcomes[0][name][1]


def _answers(printed):
  return re.findall(r"^[.?1-4]{16}$", printed, re.MULTILINE)


def _objects(outcomes, name):
  lines = _printed(outcomes, name).splitlines()
  return [json.loads(line) for line in lines if line.startswith("{")]


# Solving.


def test_bad_lines_are_told_and_the_others_solved(folder, outcomes):
  printed = _printed(outcomes, "text")
  assert len(_answers(printed)) == 2
  assert re.search(r"^line 3: a 4x4 .*3 characters.* \[123\]$", printed, re.M)
  assert re.search(
    r"^2 answered, \d of them right by the rules; \d\.\d\d steps a puzzle; "
    r"1 were invalid$",
    printed,
    re.M,
  )


def test_exported_weights_answer_as_their_run_does(outcomes):
  answers = _answers(_printed(outcomes, "file"))
  assert answers == _answers(_printed(outcomes, "text"))


def test_objects_tell_all(outcomes):
  first, fault, second = _objects(outcomes, "json")
  assert fault.keys() == {"line", "error"}
  assert fault["line"] == 3
  answers = _answers(_printed(outcomes, "text"))
  for found, line, puzzle, answer in zip(
    (first, second), (2, 4), PUZZLES, answers, strict=True
  ):
    assert (found["line"], found["name"]) == (line, f"line {line}")
    assert found["answer"] == answer
    assert 0 < found["confidence"] < 1
    tokens = np.array([board.TOKENS.get(cell, 0) for cell in answer])
    asked = board.parse(puzzle, size=4)
    assert found["checked"] == board.solves(asked, tokens, size=4)
    assert found["alternatives"] == []
    assert found["flops"] > 0
    assert found["steps"] == 3
    history = found["history"]
    assert [step["step"] for step in history] == [1, 2, 3]
    assert history[-1]["answer"] == answer
    assert history[-1]["confidence"] == found["confidence"]


def test_several_answers_are_told(outcomes):
  objects = _objects(outcomes, "several")
  told = re.findall(
    r"^# line (\d), ([\d.]+)%\n([.?1-4]{16})$",
    _printed(outcomes, "several_text"),
    re.M,
  )
  assert len(objects) == 2
  assert objects[0]["alternatives"] != objects[1]["alternatives"]
  expected = []
  for number, found in enumerate(objects, 1):
    alternatives = found["alternatives"]
    assert sum(one["fraction"] for one in alternatives) == pytest.approx(1)
    assert found["answer"] in [one["answer"] for one in alternatives]
    expected += [
      (str(number), f"{100 * one['fraction']:.1f}", one["answer"])
      for one in alternatives
    ]
  assert told == expected


def test_each_step_is_drawn(folder, outcomes):
  printed = _printed(outcomes, "show")
  for line in (1, 2):
    for step in (1, 2, 3):
      assert f"line {line}, step {step} of 3" in printed
  assert printed.count("┌─────┬─────┐") == 6
  assert len(re.findall(r"^confidence [\d.]+%, ", printed, re.M)) == 2
  with Image.open(folder / "films" / "film.gif") as film:
    assert film.format == "GIF"
    assert len(list(ImageSequence.Iterator(film))) == 3


def test_puzzles_come_through_a_pipe_one_by_one(folder):
  with subprocess.Popen(
    [sys.executable, "-m", "experiments.solve", f"--workdir={folder / 'run'}",
     "--depth=2", "--fixed", "-"],
    env=environment(), cwd=ROOT, text=True, stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  ) as solve:  # fmt: skip
    assert solve.stdin and solve.stdout and solve.stderr
    for puzzle in PUZZLES:
      solve.stdin.write(puzzle + "\n")
      solve.stdin.flush()
      assert len(_answers(solve.stdout.readline())) == 1
    solve.stdin.close()
    assert solve.wait(timeout=60) == 0
    # And nothing else, so that another program can read it.
    assert not solve.stdout.read()
    assert re.match(
      r"2 answered.* 2\.00 steps a puzzle\n$", solve.stderr.read()
    )


@pytest.mark.parametrize(
  ("texts", "shown", "told"),
  [
    ([f"[[{n}]]" for n in range(30)], 1, "all 30 fail for this reason; .*JSON"),
    (["1" * n for n in range(10)] + ["q"] * 3, 10, "all 13 fail$"),
  ],
)
def test_faults_are_counted_not_repeated(capsys, texts, shown, told):
  task = sudoku_task(4)
  found = [
    Fault.of(line, text, f"no puzzle: {text!r}" + "!" * (text == "q"))
    for line, text in enumerate(texts, 1)
  ]
  output = answers._Output(task, PLAIN)
  output.write(found, [], is_whole=True)
  assert output.finish() == 1
  printed = capsys.readouterr().err
  assert len(re.findall(r"^line \d+: ", printed, re.M)) == shown
  assert re.search(told, printed, re.M), printed
  assert f"{len(texts)} were invalid" in printed


# Evaluating.


def test_depth_and_breadth_are_a_grid(folder, outcomes):
  made = folder / "grid"
  result = json.loads((made / "result.json").read_text())
  places = [(r["depth"], r["breadth"], r["select"]) for r in result["records"]]
  assert places == [
    (depth, breadth, select)
    for depth in (2, 3)
    for breadth in (1, 3)
    for select in ("q", "vote", "solved")
  ]
  for record in result["records"]:
    assert record["puzzles"] == 12
    assert record["mean_steps"] == record["depth"]
    assert record["oracle_accuracy"] >= record["exact_accuracy"]
  assert result["settings"]["views"] is True
  assert result["checkpoint"] == 24
  fitted = calibration.read(json.loads((made / "calibration.json").read_text()))
  assert fitted.kind == "temperature"
  for name in ("solve", "reliability"):
    with Image.open(made / "plots" / f"{name}.png") as picture:
      assert picture.format == "PNG"
  printed = _printed(outcomes, "grid")
  assert re.search(r"calibration error .* 12 puzzles", printed)
  assert "halting: fixed" in printed
  # What is loaded from there now has its confidence mended.
  assert pretrained.load(made).calibration is not None


def test_the_rule_of_halting_is_told(folder, outcomes):
  assert "halting: q > 0 or unchanged for 3" in _printed(outcomes, "early")
  result = json.loads((folder / "early" / "result.json").read_text())
  (record,) = result["records"]
  assert record["halt"] == "q > 0 or unchanged for 3"
  assert record["mean_steps"] <= 4
  assert result["settings"]["halt"] == ["q", "unchanged"]


# Halting.


def test_halting_rules_are_replayed_and_measured(folder, outcomes):
  written = json.loads((folder / "halted" / "halting.json").read_text())
  assert written["checkpoint"] == 24
  assert written["depth"] == 3
  fixed, *others = written["replayed"]
  assert fixed["halt"] == "fixed"
  assert fixed["mean_steps"] == 3
  kinds = {record["rule"]["halt"][0] for record in others}
  assert kinds == {"q", "unchanged", "residual", "solved"}
  assert all(1 <= record["mean_steps"] <= 3 for record in others)
  measured = written["measured"]
  assert measured[0]["halt"] == "fixed"
  assert measured[0]["speedup"] == 1
  assert {record["halt"] for record in measured} <= {
    record["halt"] for record in written["replayed"]
  }
  with Image.open(folder / "halted" / "plots" / "halting.png") as picture:
    assert picture.format == "PNG"
  printed = _printed(outcomes, "halting")
  assert "replayed on 6 held-out puzzles" in printed
  assert "measured on 6 other held-out puzzles" in printed
