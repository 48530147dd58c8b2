import csv
import dataclasses
import json
import math
import os

import pytest

from trm_jax.errors import UserError
from trm_jax.study import results

COMPARABLE = {"data": {"size": 4, "test": 20}, "eval": {"puzzles": 20}}
NAME = "0123456789ab-seed3.json"


def record(depth, exact=0.5, **scores):
  """An evaluation at one depth, as `evaluate.evaluate` returns it."""
  return {
    "depth": depth,
    "puzzles": 20,
    "exact_accuracy": exact,
    "exact_accuracy_se": 0.1,
    "halted_exact_accuracy": exact,
    "mean_steps": (depth + 1) / 2,
    "flops_per_puzzle": 100.0 * depth,
    "weights": 1234,
  } | scores


def trial(**changes):
  """A finished trial with the depths 1, 2 and 3."""
  values = dict(
    setting="0123456789ab",
    seed=3,
    family="trm",
    fields={"width": 64, "layers": 2, "mixer": "mlp"},
    comparable=COMPARABLE,
    weights=1234,
    steps=40,
    batch_size=16,
    training_flops=1e9,
    seconds=2.5,
    hardware="1 CPU",
    diverged_at=None,
    learning=[record(2, 0.25, step=20, training_flops=5e8)],
    depths=[record(1, 0.25), record(2), record(3, 0.75)],
  )
  return results.Trial(**(values | changes))


def diverged(**changes):
  return trial(**({"diverged_at": 7, "depths": [], "steps": 6} | changes))


def refusal(folder):
  with pytest.raises(UserError) as refused:
    results.load_trials(folder)
  return str(refused.value)


def damage(folder, change):
  """Why a trial's file is refused once `change` was made to what it holds."""
  results.save_trial(folder, trial())
  value = json.loads((folder / NAME).read_text())
  value = change(value) or value
  (folder / NAME).write_text(json.dumps(value))
  message = refusal(folder)
  assert str(folder / NAME) in message and "delete it" in message
  return message


def test_trials_come_back_as_they_were(tmp_path):
  one_depth = trial(
    setting="f" * 12, family="feedforward", seed=0, depths=[record(1)]
  )
  trials = [trial(), trial(seed=10), diverged(seed=4), one_depth]
  for each in trials:
    results.save_trial(tmp_path / "trials", each)
  read = results.load_trials(tmp_path / "trials")
  assert sorted(read, key=trials.index) == trials
  names = sorted(path.name for path in (tmp_path / "trials").iterdir())
  assert NAME in names and len(names) == len(trials)


def test_saving_again_replaces(tmp_path):
  results.save_trial(tmp_path, trial())
  results.save_trial(tmp_path, trial(seconds=9.0))
  assert results.load_trials(tmp_path) == [trial(seconds=9.0)]


def test_no_folder_is_no_trials(tmp_path):
  assert results.load_trials(tmp_path / "none") == []
  (tmp_path / (NAME + ".tmp")).write_text("half a ce")
  (tmp_path / "notes.txt").write_text("mine")
  assert results.load_trials(tmp_path) == []


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"seconds": math.nan}, "seconds"),
    (
      {"learning": [record(1, step=1, training_flops=math.inf)]},
      r"learning\[0",
    ),
    ({"depths": [record(1, q_accuracy=math.nan)]}, r"depths\[0\]\.q_accuracy"),
    ({"fields": {"lr": {"x": [math.nan]}}}, r"fields\.lr\.x\[0\]"),
    ({"setting": "../escape"}, "setting"),
  ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, changes, named):
  with pytest.raises(ValueError, match=named):
    results.save_trial(tmp_path, trial(**changes))
  assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_a_users_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    results.save_trial(tmp_path / "file", trial())
  with pytest.raises(UserError, match="cannot read this folder"):
    results.load_trials(tmp_path / "file")
  with pytest.raises(UserError, match=r"cannot write .*table\.csv"):
    results.write_csv(tmp_path / "file" / "table.csv", [trial()], [1])
  (tmp_path / "taken.csv").mkdir()
  with pytest.raises(UserError, match=r"cannot write .*taken\.csv"):
    results.write_csv(tmp_path / "taken.csv", [trial()], [1])
  assert not list(tmp_path.glob("*.tmp"))
  (tmp_path / "trials" / NAME).mkdir(parents=True)
  assert "there is no such file" in refusal(tmp_path / "trials")
  (tmp_path / "trials" / NAME).rmdir()
  os.mkfifo(tmp_path / "trials" / NAME)  # reading it would block
  assert "there is no such file" in refusal(tmp_path / "trials")
  (tmp_path / "trials" / NAME).unlink()
  with (tmp_path / "trials" / NAME).open("wb") as file:
    file.truncate(2**40)
  assert "1,099,511,627,776 bytes" in refusal(tmp_path / "trials")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(trial())])
def test_a_missing_field_is_named(tmp_path, name):
  assert f"{name} is missing" in damage(tmp_path, lambda v: v.pop(name) and v)


WRONG = {
  "setting": ["0123456789AB", "0123", 12],
  "seed": [-1, 1.0, True, "3"],
  "family": ["gpt", None, ["trm"]],
  "fields": [[], None],
  "comparable": ["same", None],
  "weights": [0, 2.5, False, 10**4000],
  "steps": [-1, 1.5],
  "batch_size": [0, "16"],
  "training_flops": [-1.0, math.nan, math.inf, 10**400, True, None],
  "seconds": [-0.5, "2"],
  "hardware": [None, 8],
  "diverged_at": [-1, 2.0, False, 7],
  "learning": [{}, [1], None],
  "depths": [{}, ["x"], []],
}


@pytest.mark.parametrize(
  ("name", "value"),
  [(name, value) for name, values in WRONG.items() for value in values],
)
def test_a_wrong_value_is_named(tmp_path, name, value):
  message = damage(tmp_path, lambda v: v | {name: value})
  assert f"{name} is" in message or f"{name} has" in message


def test_wrong_values_are_listed_for_every_field():
  assert WRONG.keys() == {f.name for f in dataclasses.fields(trial())}


@pytest.mark.parametrize(
  ("part", "name", "value"),
  [
    ("depths", "exact_accuracy", 1.01),
    ("depths", "exact_accuracy", math.nan),
    ("depths", "halted_exact_accuracy", -0.1),
    ("depths", "mean_steps", 0),
    ("depths", "flops_per_puzzle", 0.0),
    ("depths", "puzzles", 0),
    ("depths", "depth", 1.0),
    ("depths", "pass@2", "0.5"),
    ("learning", "step", 1.5),
    ("learning", "training_flops", math.inf),
    ("learning", "exact_accuracy", None),
  ],
)
def test_a_wrong_score_is_named(tmp_path, part, name, value):
  def change(trial):
    trial[part][0][name] = value

  assert f"{part}[0].{name} is" in damage(tmp_path, change)


@pytest.mark.parametrize(
  ("part", "name"),
  [
    ("depths", "exact_accuracy"),
    ("depths", "mean_steps"),
    ("depths", "flops_per_puzzle"),
    ("learning", "step"),
    ("learning", "training_flops"),
  ],
)
def test_a_missing_score_is_named(tmp_path, part, name):
  message = damage(tmp_path, lambda v: v[part][-1].pop(name) and None)
  last = len(getattr(trial(), part)) - 1
  assert f"{part}[{last}].{name} is missing" in message


def test_other_damage_is_told(tmp_path):
  assert "colour is not a field" in damage(
    tmp_path, lambda v: v | {"colour": 1}
  )
  assert "depths has [2, 3]" in damage(
    tmp_path, lambda v: v | {"depths": v["depths"][1:]}
  )
  assert "depths has 0 entries" in damage(
    tmp_path, lambda v: v | {"depths": []}
  )
  assert "not an object of fields" in damage(tmp_path, lambda v: [v])
  assert "comparable.data.size is nan" in damage(
    tmp_path, lambda v: v | {"comparable": {"data": {"size": math.nan}}}
  )
  whole = json.dumps(dataclasses.asdict(trial())).encode()
  for content in (whole[:-9], b"", b"\xff\xfe", b"[" * 100_000):
    (tmp_path / NAME).write_bytes(content)
    assert f"{tmp_path / NAME} is damaged" in refusal(tmp_path)
  (tmp_path / NAME).write_text("9" * 5000)  # more digits than Python reads
  assert f"{tmp_path / NAME} is damaged" in refusal(tmp_path)


def test_a_study_of_an_earlier_version_is_told_what_to_rename(tmp_path):
  results.save_trial(tmp_path / "cells", trial())
  with pytest.raises(UserError, match=r"cells: .* rename this folder to tri"):
    results.load_trials(tmp_path / "trials")
  (tmp_path / "cells").rename(tmp_path / "trials")
  assert results.load_trials(tmp_path / "trials") == [trial()]


def test_a_name_must_match_its_content(tmp_path):
  results.save_trial(tmp_path, trial())
  (tmp_path / NAME).rename(tmp_path / "0123456789ab-seed4.json")
  message = refusal(tmp_path)
  assert "0123456789ab-seed4.json" in message
  assert f"rename it to {NAME}" in message


def test_whole_numbers_pass_for_floats(tmp_path):
  results.save_trial(tmp_path, trial())
  value = json.loads((tmp_path / NAME).read_text())
  (tmp_path / NAME).write_text(json.dumps(value | {"training_flops": 10**9}))
  (read,) = results.load_trials(tmp_path)
  assert read == trial() and isinstance(read.training_flops, float)


def test_merging_keeps_each_trial_once():
  deep = trial(depths=[*trial().depths, record(4)])
  other = trial(seed=5, training_flops=2e9)
  for groups in (
    {"a": [trial(), other], "b": [deep]},
    {"b": [deep], "a": [trial()], "c": [other, other], "d": []},
  ):
    assert results.merge(groups) == [deep, other]
  assert results.merge({"a": [diverged()], "b": [trial()]}) == [trial()]
  again = trial(seconds=9.0)  # trained twice: the first stands
  assert results.merge({"a": [again], "b": [trial()]}) == [again]


def test_merged_trials_have_one_order():
  trials = [
    trial(setting="a" * 12, training_flops=2e9, seed=0),
    diverged(setting="a" * 12, training_flops=1e6, seed=1),
    trial(setting="b" * 12, training_flops=1e9, seed=0),
    trial(setting="c" * 12, weights=7, seed=0),
    trial(setting="d" * 12, weights=1, family="autoregressive", seed=0),
    trial(setting="e" * 12, weights=9, family="hrm", seed=0),
  ]
  expected = "cbaaed"
  for order in (trials, trials[::-1]):
    merged = results.merge({"here": order})
    assert "".join(c.setting[0] for c in merged) == expected
    assert [c.seed for c in merged if c.setting[0] == "a"] == [0, 1]
  equal = [trial(setting=s * 12, seed=seed) for s in "ab" for seed in (0, 1)]
  assert results.merge({"here": equal[::-1]}) == equal


def test_trials_of_another_grid_are_refused():
  other = trial(
    setting="f" * 12,
    comparable={"data": {"size": 9, "test": 20}, "eval": {"puzzles": 20}},
  )
  with pytest.raises(UserError) as refused:
    results.merge({"mine": [trial()], "theirs": [other]})
  message = str(refused.value)
  assert "theirs: ffffffffffff-seed3.json" in message
  assert f"mine: {NAME}" in message
  assert "data.size: 4 there, 9 here" in message
  assert "data.test" not in message and "eval." not in message


@pytest.mark.parametrize("groups", [{}, {"runs/a": [], "runs/b": []}])
def test_nothing_to_merge_is_told(groups):
  with pytest.raises(UserError, match="nothing to report") as refused:
    results.merge(groups)
  assert all(name in str(refused.value) for name in groups)


def test_labels_tell_what_varies_within_a_family():
  trials = [
    trial(
      setting="a" * 12, fields={"width": 64, "layers": 2, "latent_steps": 6}
    ),
    trial(
      setting="b" * 12, fields={"width": 32, "layers": 2, "latent_steps": 6}
    ),
    trial(setting="b" * 12, seed=4, fields={"width": 32, "layers": 2}),
    trial(setting="c" * 12, family="hrm", fields={"width": 16}),
    trial(setting="d" * 12, family="autoregressive", fields={"a_b": 1}),
    trial(setting="e" * 12, family="autoregressive", fields={}),
    trial(setting="1" * 12, family="feedforward", fields={"x": [1, True]}),
    trial(setting="2" * 12, family="feedforward", fields={"x": [1, True]}),
    diverged(setting="3" * 12, family="feedforward", fields={"x": None}),
  ]
  assert results.labels(trials[:2]) == {
    "a" * 12: "TRM, width 64",
    "b" * 12: "TRM, width 32",
  }
  found = results.labels(trials)
  assert found["c" * 12] == "HRM"
  assert found["d" * 12] == "decoder, a b 1"
  assert found["e" * 12] == "decoder"
  assert found["1" * 12] == "feed-forward stack, x [1, true] (111111111111)"
  assert found["3" * 12] == "feed-forward stack, x null"
  assert len(set(found.values())) == len(found)


def table(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def test_the_table_holds_every_score(tmp_path):
  path = tmp_path / "deep" / "results.csv"
  with_rules = trial(
    seed=4, depths=[record(d, 1 / 3, valid_rate=0.9) for d in (1, 2)]
  )
  one_depth = trial(
    setting="f" * 12, family="feedforward", fields={"a,b": 'x"\ny'},
    depths=[record(1, 0.125)],
  )  # fmt: skip
  lost = diverged(seed=5)
  trials = [trial(), with_rules, one_depth, lost]
  results.write_csv(path, trials, iter([2, 3]))
  rows = table(path)
  assert [(r["seed"], r["depth"], r["status"]) for r in rows] == [
    ("3", "2", "finished"),
    ("3", "3", "finished"),
    ("4", "2", "finished"),
    ("3", "1", "finished"),  # one depth: shown whatever is asked for
    ("5", "", "diverged"),
  ]
  shown = [trial().depths[1], trial().depths[2], with_rules.depths[1],
           one_depth.depths[0]]  # fmt: skip
  for row, scores in zip(rows[:4], shown, strict=True):
    for name, value in scores.items():
      assert float(row[name]) == value
  assert rows[0]["valid_rate"] == "" and rows[2]["valid_rate"] == "0.9"
  assert rows[0]["label"] == "TRM" and rows[3]["label"] == "feed-forward stack"
  assert rows[0]["width"] == "64" and rows[0]["mixer"] == "mlp"
  assert rows[3]["a,b"] == 'x"\ny' and rows[3]["width"] == ""
  assert rows[4]["exact_accuracy"] == "" and rows[4]["steps"] == "6"
  assert float(rows[4]["training_flops"]) == 1e9
  assert list(rows[0]) == [
    "setting", "label", "family", "seed", "status", "width", "layers", "mixer",
    "a,b", "weights", "steps", "training_flops", "seconds", "depth",
    "flops_per_puzzle", "puzzles", "exact_accuracy", "exact_accuracy_se",
    "halted_exact_accuracy", "mean_steps", "valid_rate",
  ]  # fmt: skip
  assert [p.name for p in path.parent.iterdir()] == ["results.csv"]


def test_scores_do_not_hide_other_columns(tmp_path):
  misled = trial(depths=[record(1, weights=7, training_flops=5.0, seed=1)])
  results.write_csv(tmp_path / "t.csv", [misled], [1])
  (row,) = table(tmp_path / "t.csv")
  assert (row["weights"], row["seed"]) == ("1234", "3")
  assert float(row["training_flops"]) == 1e9


def test_fields_do_not_hide_other_columns(tmp_path):
  results.write_csv(
    tmp_path / "t.csv", [trial(fields={"depth": 8, "seed": 1})], [2]
  )
  (row,) = table(tmp_path / "t.csv")
  assert (row["depth"], row["fields.depth"]) == ("2", "8")
  assert (row["seed"], row["fields.seed"]) == ("3", "1")


def test_a_trial_without_the_depths_asked_for_stays_in_the_table(tmp_path):
  results.write_csv(tmp_path / "t.csv", [trial(), diverged(seed=4)], [32])
  rows = table(tmp_path / "t.csv")
  assert [(r["status"], r["depth"]) for r in rows] == [
    ("finished", ""),
    ("diverged", ""),
  ]
