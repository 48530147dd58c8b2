import copy
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from conftest import DATA

from trm_jax.data import datasets, questions
from trm_jax.data.arc import files, groups, predictions
from trm_jax.data.arc.task import ArcData, arc_task
from trm_jax.errors import UserError


def pair(question, answer):
  return {"input": [[question, 0]], "output": [[answer], [answer]]}


def content(*colours, tests=1):
  """A task with the pairs (c, c + 1), the last ones as its test pairs."""
  pairs = [pair(colour, colour + 1) for colour in colours]
  return {"train": pairs[:-tests], "test": pairs[-tests:]}


GOOD = content(1, 2, 3)


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return path


def write_folder(folder, tasks):
  for name, task in tasks.items():
    write(folder / f"{name}.json", task)
  return str(folder)


def write_challenges(folder, tasks, solved=True):
  """Writes tasks as competitions do; returns the path of the challenges."""
  tasks = json.loads(json.dumps(tasks))
  solutions = {
    name: [entry.pop("output") for entry in task["test"]]
    for name, task in tasks.items()
  }
  if solved:
    write(folder / "arc_solutions.json", solutions)
  return str(write(folder / "arc_challenges.json", tasks))


def as_lists(task):
  """What a task holds, to compare."""
  parts = [
    [[None if g is None else g.tolist() for g in pair] for pair in pairs]
    for pairs in (task.train, task.test)
  ]
  return task.name, *parts


# Reading.


def test_both_layouts_hold_the_same_tasks(tmp_path):
  tasks = {"b/two": content(4, 5, 6, tests=2), "a/three": GOOD, "one": GOOD}
  folder = write_folder(tmp_path / "folder", tasks)
  write(tmp_path / "folder" / "readme.txt", "no task")
  write(tmp_path / "folder" / "._one.json", "left by an archiver")
  named = {path.split("/")[-1]: task for path, task in tasks.items()}
  read = files.read(folder)
  assert [task.name for task in read] == ["one", "three", "two"]
  challenges = files.read(write_challenges(tmp_path, named))
  assert list(map(as_lists, read)) == list(map(as_lists, challenges))
  assert as_lists(read[2]) == (
    "two",
    [[[[4, 0]], [[5], [5]]]],
    [[[[5, 0]], [[6], [6]]], [[[6, 0]], [[7], [7]]]],
  )
  assert read[0].train[0][0].dtype == np.uint8
  assert read[2].source.endswith("folder/b/two.json")


def test_solutions_may_be_missing(tmp_path):
  (task,) = files.read(write_challenges(tmp_path, {"t": GOOD}, solved=False))
  assert [answer for _, answer in task.test] == [None]
  hidden = copy.deepcopy(GOOD)
  del hidden["test"][0]["output"]
  (same,) = files.read(write_folder(tmp_path / "folder", {"t": hidden}))
  assert as_lists(same) == as_lists(task)


def test_links_are_followed_and_hidden_files_are_not_read(tmp_path):
  folder, far = tmp_path / "folder", tmp_path / "far"
  write(folder / "one.json", GOOD)
  write(folder / ".ipynb_checkpoints" / "one-checkpoint.json", GOOD)
  write(folder / ".git" / "a" / "config.json", "{")
  write(far / "deep" / "two.json", GOOD)
  (folder / "linked").symlink_to(far)
  (folder / "again").symlink_to(far)
  (far / "circle").symlink_to(folder)
  (far / "itself").symlink_to(far)
  write(tmp_path / "three.json", GOOD)
  (folder / "three.json").symlink_to(tmp_path / "three.json")
  assert [t.name for t in files.read(str(folder))] == ["one", "three", "two"]
  (tmp_path / ".hidden").symlink_to(folder)  # asked for by its name
  assert len(files.read(str(tmp_path / ".hidden"))) == 3
  os.mkfifo(folder / "pipe.json")
  with pytest.raises(UserError, match=r"pipe\.json: not JSON \(not a reg"):
    files.read(str(folder))


CASES = {  # file -> (names of its tasks, known outputs)
  "arc_task_with_id": (["0a0a0a0a"], 0),
  "arc_task_list": (["0a0a0a0a", "0b0b0b0b"], 0),
  "arc_output_null": (["arc_output_null"], 0),
  "arc_key_twice": (r"key 'test' stands twice", 0),
}


@pytest.mark.parametrize("name", ["-", ""])
@pytest.mark.parametrize("case", CASES)
def test_kept_forms_of_tasks(case, name, tmp_path):
  path = DATA / "cases" / f"{case}.json"
  names, known = CASES[case]

  def as_questions():
    with open(path, "rb") as stream:
      return questions.read(stream, arc_task(), name or str(path))

  shutil.copy(path, tmp_path)
  readers = (lambda source: as_questions(), files.read)
  if isinstance(names, str):
    for read in (*readers, predictions.read_pairs):
      with pytest.raises(UserError, match=names):
        read(path)
    return
  found = as_questions()
  asked = ["-"] if name and case == "arc_output_null" else names
  assert [q.name for q in found] == [f"{task}_0" for task in asked]
  assert sum(q.label is not None for q in found) == known
  for source in (path, tmp_path):
    tasks = files.read(str(source))
    assert [task.name for task in tasks] == names
    assert sum(task.test[0][1] is not None for task in tasks) == known
  assert list(predictions.read_pairs(path)) == names
  data = datasets.tested_on(ArcData(test="x", size=4), str(path))
  data = dataclasses.replace(data, cache_dir=str(tmp_path / "c"), num_aug=0)
  (note,) = [n for n in datasets.prepare(data, print) if "duplicates" not in n]
  assert "no solution; they are not scored" in note
  assert list(datasets.load(data, "test").names) == names


def test_tasks_of_a_list_may_lack_names(tmp_path):
  path = write(tmp_path / "some.json", [GOOD, GOOD | {"id": 7}, GOOD])
  assert [t.name for t in files.read(str(path))] == ["7", "some_1", "some_3"]
  write(path, [GOOD | {"id": "a"}, GOOD | {"id": "a"}])
  with pytest.raises(UserError, match="two tasks have the id 'a'"):
    files.read(str(path))


def changed(path, value):
  """The good task with the value at a path of keys replaced."""
  task = copy.deepcopy(GOOD)
  part = task
  for key in path[:-1]:
    part = part[key]
  part[path[-1]] = value
  return task


IN, OUT = ("train", 1, "input"), ("test", 0, "output")
BAD_TASKS = [
  ({"a": 1}, r"expected an object with 'train' and 'test'"),
  ({"train": GOOD["train"]}, r"'test' is None"),
  (changed(["train"], []), r"'train' is \[\]; expected .* one or more"),
  (changed(["test"], {"input": 1}), r"'test' is \{'input': 1\}"),
  (changed(["train", 1], [1, 2]), r"training pair 2: \[1, 2\]"),
  (changed(IN, None), r"training pair 2, input: .*None"),
  (changed(IN, []), r"training pair 2, input: "),
  (changed(IN, [[]]), r"training pair 2, input: "),
  (changed(IN, [1, 2]), r"training pair 2, input: "),
  (changed(IN, [[1, 2], [1]]), r"training pair 2, input: .*one length"),
  (changed(IN, [[1] * 31]), r"training pair 2, input: .*1x31"),
  (changed(IN, [[1]] * 31), r"training pair 2, input: .*31x1"),
  (changed(OUT, [[1, 10]]), r"test pair 1, output: .*10"),
  (changed(OUT, [[1, -1]]), r"test pair 1, output: .*-1"),
  (changed(OUT, [[1, 1.0]]), r"test pair 1, output: .*1\.0"),
  (changed(OUT, [[1, True]]), r"test pair 1, output: .*True"),
  (changed(OUT, [[1, "2"]]), r"test pair 1, output: .*'2'"),
  (changed(OUT, [[1, None]]), r"test pair 1, output: .*None"),
  (changed(("train", 1, "output"), None), r"pair 2, output: .*None"),
  (changed(("train", 0), {"input": [[1]]}), r"training pair 1, output: .*None"),
]


@pytest.mark.parametrize(("task", "reason"), BAD_TASKS)
def test_bad_tasks_are_refused_with_file_and_place(tmp_path, task, reason):
  folder = write_folder(tmp_path, {"good": GOOD, "bad": task})
  with pytest.raises(UserError, match=rf"bad\.json: task '(bad|a)'.*{reason}"):
    files.read(folder)


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "not JSON"),
    ('{"train": [', "not JSON"),
    ('{"train": [], "train": []}', "'train' stands twice"),
    ("[" * 100_000, "recursion depth"),
    ('{"train": [], "test": ' + "9" * 5000 + "}", "not JSON"),
    ('{"train": [], "test": NaN}', "'train' is"),
    ('"\\ud800', "not JSON"),
  ],
)
def test_what_is_no_json_is_refused(tmp_path, text, reason):
  write(tmp_path / "bad.json", text)
  with pytest.raises(UserError, match=rf"bad\.json: .*{reason}"):
    files.read(str(tmp_path))
  (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"bad\.json: not JSON"):
    files.read(str(tmp_path))


@pytest.mark.parametrize("depth", [50, 800, 900, 950, 980, 990])
def test_a_grid_of_nested_lists_is_refused(tmp_path, depth):
  nested = json.dumps(GOOD).replace("[[1, 0]]", "[" * depth + "]" * depth)
  write(tmp_path / "bad.json", nested)
  with pytest.raises(UserError, match=r"bad\.json: ") as refusal:
    files.read(str(tmp_path))
  assert len(str(refusal.value)) < 2500


@pytest.mark.parametrize(
  "name", ["<blank>", "a|||t1|||0123456789", " ", "a\nb"]
)
def test_names_that_copies_could_not_carry_are_refused(tmp_path, name):
  path = write_challenges(tmp_path, {name: GOOD})
  with pytest.raises(UserError, match="not a name for a task"):
    files.read(path)


def test_challenges_and_solutions_must_belong_together(tmp_path):
  path = write_challenges(tmp_path, {"t": GOOD, "u": GOOD})
  solutions = tmp_path / "arc_solutions.json"

  def refuses(value, words):
    write(solutions, value)
    with pytest.raises(UserError, match=words):
      files.read(path)

  grid = GOOD["test"][0]["output"]
  refuses({"t": [grid]}, r"solutions\.json: task 'u': is not there")
  refuses({"t": [grid], "u": [grid, grid]}, r"task 'u': .*list of 1 grids")
  refuses({"t": [grid], "u": 3}, r"task 'u': has 3")
  refuses({"t": [grid], "u": [[[11]]]}, r"task 'u', solution 1: .*11")
  refuses([grid], r"solutions\.json: holds .*expected an object")
  refuses('{"t": 1, "t": 2}', r"solutions\.json: .*'t' stands twice")
  write(solutions, {"t": [grid], "u": [grid], "of another file": []})
  assert len(files.read(path)) == 2
  write(tmp_path / "arc_challenges.json", {})
  with pytest.raises(UserError, match="holds no task"):
    files.read(path)


def test_sources_that_are_none_are_refused(tmp_path):
  def refuses(path, words):
    with pytest.raises(UserError, match=words):
      files.read(str(path))

  refuses(tmp_path / "no", r"no: expected a folder.* is not there")
  refuses("x" * 5000, "is not there")
  refuses(write(tmp_path / "a" / "tasks.json", {}), "holds no task")
  refuses(tmp_path / "empty_challenges.json", "is not there")
  (tmp_path / "b").mkdir()
  refuses(tmp_path / "b", "holds no json file")
  write_challenges(tmp_path / "b", {"t": GOOD})
  refuses(tmp_path / "b", "give the path of their file")


# Settings.


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("train", 3),
    ("train", " , "),
    ("test", None),
    ("num_aug", -1),
    ("num_aug", 2.5),
    ("seed", True),
    ("size", 0),
    ("size", 31),
    ("only", ["a"]),
    ("refuse_overlap", 1),
    ("cache_dir", 3),
    ("path", 3),
  ],
)
def test_settings_are_checked(field, value):
  with pytest.raises(UserError, match=field):
    ArcData(**({"train": "a" if field != "train" else ""} | {field: value}))


def test_settings_say_where_data_comes_from():
  with pytest.raises(UserError, match=r"(?s)fchollet/ARC-AGI.*Kaggle"):
    ArcData()
  settings = ArcData(train="a, b,", test="c", only=" x,y ")
  assert settings.train_sources == ("a", "b")
  assert settings.test_sources == ("c",)
  assert settings.only_names == ("x", "y")
  assert ArcData(path="a folder").task.seq_len == 900


# Groups: what is trained on, and what leaks.


@pytest.fixture
def source(tmp_path):
  """Writes a folder of tasks; returns its path."""

  def source(name, **tasks):
    return write_folder(tmp_path / name, tasks)

  return source


def colours(pairs):
  """The colours by which `content` tells pairs apart."""
  return [int(question[0, 0]) for question, _ in pairs]


def test_training_sources_show_all_and_test_sources_their_training_pairs(
  source,
):
  a = source("a", t2=content(1, 2, 3, tests=2), t1=content(4, 5))
  b = source("b", t0=content(6, 7))
  tasks, notes = groups.gather(ArcData(train=a, test=b, refuse_overlap=True))
  assert not notes
  assert [task.name for task in tasks] == ["t1", "t2", "t0"]
  assert [colours(task.train) for task in tasks] == [[4, 5], [1, 2, 3], [6]]
  assert [colours(task.test) for task in tasks] == [[], [], [7]]


def test_a_task_of_both_kinds_is_one_group_and_a_leak(source):
  a = source("a", t=content(1, 2), u=content(4, 5))
  b = source("b", t=content(1, 2), v=content(6, 7))
  tasks, notes = groups.gather(ArcData(train=a, test=b))
  assert [task.name for task in tasks] == ["t", "u", "v"]
  assert colours(tasks[0].train) == [1, 2] and colours(tasks[0].test) == [2]
  (note,) = notes
  assert "gives away 1 of 2 test tasks" in note and ": t." in note
  with pytest.raises(UserError, match=r"refuse_overlap: .*: t\. "):
    groups.gather(ArcData(train=a, test=b, refuse_overlap=True))


def test_a_test_pair_in_a_training_task_is_a_leak(source):
  a = source("a", u=content(3, 2, 4))
  b = source("b", t=content(1, 2), v=content(6, 7))
  # The input alone gives nothing away.
  c = source("c", w={"train": [pair(2, 9)], "test": [pair(7, 9)]})
  _, notes = groups.gather(ArcData(train=f"{a},{c}", test=b))
  assert len(notes) == 1 and "1 of 2 test tasks" in notes[0]
  assert "t (in u)" in notes[0]
  _, notes = groups.gather(ArcData(train=c, test=b))
  assert not notes


def test_versions_of_a_task_are_put_together(source):
  a = source("a", t=content(1, 2, 3))
  b = source("b", t=content(2, 5, 6))
  tasks, notes = groups.gather(ArcData(train=f"{a},{b}"))
  assert colours(tasks[0].train) == [1, 2, 3, 5, 6] and not tasks[0].test
  assert len(notes) == 1 and "differ in a task: t." in notes[0]
  tasks, notes = groups.gather(ArcData(train=a, test=b))
  assert colours(tasks[0].train) == [1, 2, 3, 5] and colours(tasks[0].test) == [
    6
  ]
  assert len(notes) == 2
  tasks, notes = groups.gather(ArcData(train=f"{a},{a}"))
  assert colours(tasks[0].train) == [1, 2, 3] and not notes


def test_two_tasks_of_one_name_are_refused(source):
  a, b = source("a", t=content(1, 2)), source("b", t=content(3, 4))
  with pytest.raises(UserError, match=r"b/t\.json: .*no pair in common.*a/t"):
    groups.gather(ArcData(train=f"{a},{b}"))
  both = source("c", **{"x/t": content(1, 2), "y/t": content(3, 4)})
  with pytest.raises(UserError, match="no pair in common"):
    groups.gather(ArcData(test=both))


def test_missing_solutions_are_noted(tmp_path, source):
  path = write_challenges(tmp_path, {"t": content(1, 2)}, solved=False)
  tasks, notes = groups.gather(ArcData(train=path))
  assert colours(tasks[0].train) == [1] and not tasks[0].test
  assert notes == [
    "train: 1 of 1 test pairs have no solution; they are not trained on."
  ]
  both = f"{path},{source('b', t=content(1, 2))}"
  tasks, _ = groups.gather(ArcData(test=both))
  assert colours(tasks[0].test) == [2]  # asked once
  tasks, notes = groups.gather(ArcData(train=source("a", u=GOOD), test=path))
  assert tasks[1].test[0][1] is None
  assert notes == [
    "test: 1 of 1 test pairs have no solution; they are not scored."
  ]


def test_tasks_of_equal_content_are_noted(source):
  a = source("a", one=GOOD, two=GOOD, other=content(4, 5, 6))
  tasks, (note,) = groups.gather(ArcData(test=a))
  assert len(tasks) == 3
  assert note == (
    "duplicates: 1 of 3 tasks of test repeat another under a name of their "
    "own: one = two."
  )
  _, (note,) = groups.gather(ArcData(train=f"{a},{a}"))
  assert note.startswith("duplicates: 1 of 3 tasks of train")


def test_a_source_of_tasks_may_hold_folders_train_and_test(source, tmp_path):
  a = source("a", **{"train/one": GOOD, "test/two": content(4, 5, 6)})
  data = datasets.tested_on(ArcData(train="x", size=5), a)
  assert (data.path, data.test) == ("", a)
  tasks, (note,) = groups.gather(data)
  assert len(tasks) == 2
  assert note.startswith(f"{a} holds the folders train and test, and the tas")
  write(tmp_path / "r" / "test" / "dataset.json", {})
  assert datasets.tested_on(data, str(tmp_path / "r")).path


def test_only_takes_tasks_by_name(source):
  a = source("a", apple=content(1, 2), pear=content(3, 4))
  b = source("b", plum=content(5, 6))

  def names(only):
    tasks, _ = groups.gather(ArcData(train=a, test=b, only=only))
    return [task.name for task in tasks]

  assert names("plum, apple") == ["apple", "plum"]
  assert names("plum") == ["plum"]
  with pytest.raises(UserError, match=r"only: .*'peer'; .*pear"):
    names("plum,peer")
  with pytest.raises(UserError, match="only: 'apple' names no task of test"):
    names("apple")


def test_a_grid_larger_than_the_canvas_is_refused_unless_left_out(source):
  large = {"train": [pair(1, 2)], "test": [{"input": [[1] * 4, [2] * 4]}]}
  a = source("a", small=GOOD, large=large)
  with pytest.raises(UserError, match=r"size: 3, .*'large'.*2x4"):
    groups.gather(ArcData(train=a, size=3))
  assert len(groups.gather(ArcData(train=a, size=4))[0]) == 2
  assert len(groups.gather(ArcData(train=a, size=3, only="small"))[0]) == 1
