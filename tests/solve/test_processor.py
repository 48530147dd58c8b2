"""A processor takes puzzles in any form, and tells how it came to an answer."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import environment
from scipy import special

import trm_jax
from trm_jax import config as config_lib
from trm_jax.core import network
from trm_jax.data.maze import generate as maze_generate
from trm_jax.data.sudoku import board
from trm_jax.data.sudoku import generate as sudoku_generate
from trm_jax.errors import UserError
from trm_jax.run.pretrained import Pretrained
from trm_jax.solve import evaluate, forms, layout, reasoning, solver
from trm_jax.solve.evaluate import Puzzles
from trm_jax.solve.processor import TRMProcessor
from trm_jax.solve.rules import SELECTS

DATA = {
  "sudoku": {"size": 4, "train": "generate", "test": "", "givens": [5, 8]},
  "maze": {"task": "maze", "size": 5, "train": "generate", "test": "",
           "min_length": 3},
  "arc": {"task": "arc", "size": 3, "test": "tasks"},
}  # fmt: skip
NAMES = ["<blank>", "mirror", "turn"]


def pretrained(data="sudoku", names=("<blank>",), calibration=None, **model):
  """A random model: what it answers changes from step to step.

  Its cycles are short, for in a random model round-off grows with them.
  """
  model = {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 16, "puzzle_emb_len": 1,
    "cycles": 1, "latent_steps": 1,
    "dtype": "float32", "num_puzzle_ids": len(names),
  } | model  # fmt: skip
  config = {
    "data": DATA[data],
    "model": model,
    "halting": {"max_steps": 1 if "family" in model else 4},
  }
  experiment = config_lib.read(config)
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype),
    network.shapes(experiment.model),
  )
  return Pretrained(
    params=params, experiment=experiment, config=config, names=list(names),
    step=7, scores=[], calibration=calibration,
  )  # fmt: skip


def processor(model=None, devices=1, **config):
  config = {"max_recursion_depth": 4, "batch_size": 8} | config
  model = MODEL if model is None else model
  return TRMProcessor(model, config, jax.devices()[:devices])


MODEL = pretrained()
TASK = MODEL.experiment.task
INPUTS, LABELS, _ = sudoku_generate.generate(4, 16, seed=0, givens=(5, 8))
TEXTS = [board.render(tokens) for tokens in INPUTS]
GRID = [[int(cell) for cell in row] for row in (INPUTS[0] - 1).reshape(4, 4)]


@pytest.fixture
def asked(monkeypatch):
  """How many puzzles each call of the engine got, empty calls left out."""
  counts = []
  solve = solver.Solver.solve

  def counted(self, inputs, *args, **kwargs):
    counts.extend([len(inputs)] * bool(len(inputs)))
    return solve(self, inputs, *args, **kwargs)

  monkeypatch.setattr(solver.Solver, "solve", counted)
  return counts


def same(ours, theirs):
  assert ours.answer == theirs.answer
  assert ours.steps == theirs.steps
  assert ours.checked == theirs.checked
  assert ours.confidence == pytest.approx(theirs.confidence, rel=1e-4)


# Forms.


@pytest.mark.parametrize(
  "form",
  [
    TEXTS[0],
    TEXTS[0].replace(".", "0") + "\n",
    "\n".join(TEXTS[0][i : i + 4] for i in range(0, 16, 4)),
    [TEXTS[0][i : i + 4] for i in range(0, 16, 4)],
    list(TEXTS[0]),
    [list(TEXTS[0][i : i + 4]) for i in range(0, 16, 4)],
    GRID,
    tuple(map(tuple, GRID)),
    [np.array(row) for row in GRID],
    [cell for row in GRID for cell in row],
    np.array(GRID, np.uint8),
    np.array(GRID).reshape(-1),
    jnp.array(GRID),
    np.array(TEXTS[0]).reshape(1),
  ],
)
def test_one_sudoku_in_any_form(form):
  assert forms.listed(form, TASK) is None
  (question,) = forms.read(form, TASK, "it")
  np.testing.assert_array_equal(question.tokens, INPUTS[0])
  assert question.name == "it"


@pytest.mark.parametrize(
  "form",
  [
    TEXTS[:2],
    tuple(TEXTS[:2]),
    [GRID, TEXTS[1]],
    [np.array(GRID), (INPUTS[1] - 1).reshape(4, 4)],
    list(INPUTS[:2] - 1),
    INPUTS[:2] - 1,
    (INPUTS[:2] - 1).reshape(2, 4, 4),
    jnp.array(INPUTS[:2] - 1).reshape(2, 4, 4),
    (jnp.array(GRID), [TEXTS[1][i : i + 4] for i in range(0, 16, 4)]),
  ],
)
def test_many_sudokus_in_any_form(form):
  listed = forms.listed(form, TASK)
  assert listed is not None
  assert len(listed) == 2
  for one, tokens in zip(listed, INPUTS, strict=False):
    (question,) = forms.read(one, TASK, "it")
    np.testing.assert_array_equal(question.tokens, tokens)


BAD = {
  "short": (TEXTS[0][:-1], r"16 cells.* 15 characters"),
  "character": ("y" + TEXTS[0][1:], r"row 1, column 1 .*'y'"),
  "surrogate": ("\ud800" + TEXTS[0][1:], r"row 1, column 1"),
  "digit": (np.full((4, 4), 5), r"holds '5'; expected a digit from 1 to 4"),
  "contradiction": ("11" + "." * 14, r"row 1 has two 1s"),
  "two": ("\n".join(TEXTS[:2]), r"holds 2 puzzles; give a list"),
  "nothing": ("", r"holds no puzzle"),
  "ragged": ([[1, 2], [3]], r"rows differ in length"),
  "shape": (np.zeros((2, 8), int), r"shape is \(2, 8\); expected \(4, 4\)"),
  "negative": (np.full((4, 4), -1), r"numbers from -1 to -1"),
  "large": (np.full((4, 4), 10), r"numbers from 10"),
  "floats": (np.zeros((4, 4)), r"of float64 .*a Sudoku a line"),
  "flat_floats": ([0.5] * 16, r"of float64"),
  "bools": ([True] * 16, r"of bool"),
  "none": (None, r"puzzle: NoneType is no puzzle"),
  "dict": ({"a": 1}, r"dict is no puzzle"),
  "bytes": (TEXTS[0].encode(), r"bytes is no puzzle"),
  "number": (np.array(3), r"shape is \(\)"),
  "listed_none": ([TEXTS[0], None], r"puzzle 2: NoneType"),
  "listed_short": ([*TEXTS[:2], "12"], r"puzzle 3: .*2 characters"),
  "listed_scalars": ([np.array(3)], r"puzzle 1: its shape is \(\)"),
  "listed_empty": ([[]], r"puzzle 1: an array \(0,\)"),
  "mixed": ([[1, 2, 3, 4], None], r"differ"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sudoku_is_told(name, asked):
  puzzle, message = BAD[name]
  with pytest.raises(UserError, match=message):
    processor().reason(puzzle)
  assert not asked


def test_a_list_of_nothing_has_no_answers(asked):
  assert processor().reason([]) == []
  assert processor().reason(np.zeros((0, 4, 4), int)) == []
  assert not asked


def test_mazes():
  inputs, _, _ = maze_generate.generate(
    5, 2, 0, wall_density=(0.2, 0.4), min_length=3, unique=False
  )
  model = pretrained("maze")
  task = model.experiment.task
  first, second = (task.render(tokens) for tokens in inputs)
  rows = [first[i : i + 5] for i in range(0, 25, 5)]
  forms_of_it = (first, "\n".join(rows), rows, [list(row) for row in rows])
  mazes = processor(model, early_stopping=False)
  results = mazes.reason([*forms_of_it, second])
  for result, tokens in zip(results, inputs[[0, 0, 0, 0, 1]], strict=True):
    np.testing.assert_array_equal(result.question, tokens)
    assert len(result.answer) == 25
    same(result, results[0] if result is not results[4] else result)
  for bad, message in (
    (np.zeros((5, 5), int), r"expected a maze of '# SG'"),
    (first[:-1], r"25 characters"),
    (first.replace("S", " "), r"0 cells 'S'"),
    (f"{first}\n\n{second}", r"holds 2 puzzles"),
  ):
    with pytest.raises(UserError, match=message):
      mazes.reason(bad)


# ARC.

TASK_JSON = {
  "train": [{"input": [[1]], "output": [[1]]}],
  "test": [{"input": [[0, 1], [2, 3]]}],
}


@pytest.fixture(scope="module")
def arc_model():
  return pretrained("arc", NAMES)


def test_arc_tasks(arc_model):
  arc = processor(arc_model, puzzle_id="blank", early_stopping=False)
  single = arc.reason(TASK_JSON)
  assert single.name == "puzzle_0"
  assert all(0 <= colour <= 9 for row in single.answer for colour in row)
  assert single.checked is None
  grid = [[0, 1], [2, 3]]
  in_arrays = {"test": [{"input": np.array(grid)}]}
  for form in (json.dumps(TASK_JSON), grid, np.array(grid), in_arrays):
    same(arc.reason(form), single)
  # The embedding is that of the name.
  pair = {"input": [[1, 1]]}
  tasks = {"turn": {"test": [pair, pair]}, "mirror": TASK_JSON}
  results = arc.reason(tasks)
  assert [result.name for result in results] == ["turn_0", "turn_1", "mirror_0"]
  same(results[0], results[1])
  assert results[2].confidence != single.confidence
  nested = arc.reason([tasks, TASK_JSON])
  assert [result.name for result in nested[0]] == [r.name for r in results]
  same(nested[1], single)
  for bad, message in (
    ([[0, 1], [2]], r"rows differ"),
    (np.full((2, 2), 11), r"row 1 of the grid holds 11"),
    (np.zeros((4, 4), int), r"4"),
    ({"test": [{"input": {1, 2}}]}, r"not as in json \(it holds a set"),
    ({"mirror": 3}, r"'mirror'.*list 'test'"),
    ("not json", r"not valid json"),
    ([TASK_JSON, {}], r"puzzle 2: holds no puzzle"),
  ):
    with pytest.raises(UserError, match=message):
      arc.reason(bad)


def test_arc_tasks_without_an_embedding(arc_model):
  with pytest.raises(UserError, match=r"puzzle_0: .*'mean'.*'blank'"):
    processor(arc_model).reason(TASK_JSON)
  known = {"turn": TASK_JSON, "mirror": TASK_JSON}
  confidences = {}
  for unseen in ("blank", "mean"):
    arc = processor(arc_model, puzzle_id=unseen, early_stopping=False)
    confidences[unseen] = arc.reason(TASK_JSON).confidence
    confidences |= {r.name: r.confidence for r in arc.reason(known)}
  assert len(set(confidences.values())) == 4
  # The mean of two embeddings, given to a model that has it in row 0.
  table = arc_model.params.puzzle_table
  params = arc_model.params.replace(
    puzzle_table=table.at[0].set((table[1] + table[2]) / 2)
  )
  model = dataclasses.replace(arc_model, params=params)
  arc = processor(model, puzzle_id="blank", early_stopping=False)
  assert arc.reason(TASK_JSON).confidence == pytest.approx(confidences["mean"])


# Config.


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"max_recursion_dept": 3}, r"did you mean 'max_recursion_depth'"),
    ({"zzz": 3}, r"no field 'zzz': it has alternatives_breadth"),
    ({3: 3}, r"no field '3'"),
    ({"max_recursion_depth": "3"}, r"depth='3': must be int, not str"),
    ({"max_recursion_depth": 3.0}, r"must be int, not float"),
    ({"breadth": True}, r"breadth=True: must be int, not bool"),
    ({"early_stopping": 1}, r"early_stopping=1: must be bool"),
    ({"confidence_threshold": None}, r"must be float, not NoneType"),
    ({"confidence_threshold": 1}, r"threshold=1\.0: must be a probability"),
    ({"confidence_threshold": 0.0}, r"must be a probability"),
    ({"confidence_threshold": float("nan")}, r"must be a probability"),
    ({"max_recursion_depth": 0}, r"depth=0: must be from 1 to"),
    ({"max_recursion_depth": 10**12}, r"must be from 1 to 65,536"),
    ({"batch_size": 0}, r"batch_size=0: must be from 1"),
    ({"cycle_noise": -1.0}, r"config\.cycle_noise=-1\.0: must be 0 or more"),
    ({"seed": -1}, r"config\.seed=-1"),
    ({"select": "best"}, r"config\.select='best': must be one of q, vote"),
    ({"puzzle_id": "x"}, r"must be one of error, blank, mean"),
    ({"breadth": 2, "cycle_noise": 0.0}, r"breadth=2: .* set views"),
    ("depth=3", r"config is str; expected fields by name"),
  ],
)
def test_a_wrong_config_is_told_before_anything_is_loaded(config, message):
  with pytest.raises(UserError, match=message):
    TRMProcessor(MODEL, config)
  with pytest.raises(UserError):
    TRMProcessor.from_pretrained("nowhere", config)


def test_what_a_model_cannot_do_is_told_before_any_puzzle(arc_model):
  with pytest.raises(UserError, match=r"select='solved': no rules"):
    processor(arc_model, select="solved")
  with pytest.raises(UserError, match="views: arc"):
    processor(arc_model, breadth=2, views=True)
  damaged = dataclasses.replace(MODEL, calibration={"kind": "magic"})
  with pytest.raises(UserError, match="calibration: kind"):
    processor(damaged)
  with pytest.raises(UserError, match="allow_multiple_solutions: all rollouts"):
    processor(cycle_noise=0.0).reason(TEXTS[0], allow_multiple_solutions=True)


def test_a_number_without_a_point_may_be_a_float():
  assert reasoning.read_config({"cycle_noise": 1}).cycle_noise == 1


# Depth and confidence.


@pytest.fixture(scope="module")
def refined():
  """What plain recursion gives: answers `[D, N, S]`, logits `[D, N]`."""
  ids = jnp.zeros(16, jnp.int32)
  puzzles = Puzzles(jnp.array(INPUTS, jnp.int32), jnp.array(LABELS), ids)
  model = MODEL.experiment.model
  found = jax.jit(
    lambda params, puzzles: evaluate.refine(params, puzzles, 4, model)
  )(MODEL.params, puzzles)
  return jax.device_get(found)


@pytest.fixture(scope="module")
def fixed():
  """All puzzles at fixed depth, with their history."""
  thinker = processor(early_stopping=False, verbose_reasoning=True)
  return thinker.reason(TEXTS)


def test_the_history_is_that_of_plain_recursion(refined, fixed):
  answers, q_halt = refined
  for row, result in enumerate(fixed):
    assert result.steps == 4 == len(result.reasoning_history)
    np.testing.assert_array_equal(result.history, answers[:, row])
    np.testing.assert_array_equal(result.tokens, answers[-1, row])
    confidences = special.expit(q_halt[:, row])
    for number, step in enumerate(result.reasoning_history):
      assert step.step == number + 1
      assert step.answer == board.render(answers[number, row])
      assert step.confidence == pytest.approx(confidences[number], rel=1e-3)
    assert result.reasoning_history[-1].answer == result.answer
    assert result.reasoning_history[-1].confidence == result.confidence
    assert result.checked == board.solves(INPUTS[row], result.tokens, size=4)


def test_early_stopping_halts_when_it_is_sure(refined, fixed):
  answers, q_halt = refined
  # Between two logits, so that rounding decides nothing.
  ordered = np.sort(q_halt.ravel())
  gap = np.diff(ordered)[20:44].argmax() + 20
  threshold = float(special.expit(ordered[gap : gap + 2].mean()))
  config = {"confidence_threshold": threshold, "verbose_reasoning": True}
  results = processor(**config).reason(TEXTS)
  stops = special.expit(q_halt) > threshold
  stops[-1] = True
  expected = stops.argmax(0) + 1
  assert len(set(expected)) > 1
  for row, (result, whole) in enumerate(zip(results, fixed, strict=True)):
    assert result.steps == expected[row] == len(result.reasoning_history)
    assert result.answer == whole.reasoning_history[result.steps - 1].answer
    assert result.answer == board.render(answers[result.steps - 1, row])
    assert result.flops == pytest.approx(whole.flops * result.steps / 4)


def test_without_verbose_reasoning_there_is_no_history(fixed):
  result = processor(early_stopping=False).reason(TEXTS[0])
  same(result, fixed[0])
  assert result.reasoning_history == ()
  assert result.history.shape == (0, 16)
  assert result.alternatives == ()


def test_confidence_and_halting_are_calibrated(fixed):
  calibration = {"kind": "temperature", "puzzles": 10**6, "temperature": 4.0}
  model = dataclasses.replace(MODEL, calibration=calibration)
  whole = processor(model, early_stopping=False).reason(TEXTS)
  for cured, plain in zip(whole, fixed, strict=True):
    logit = special.logit(plain.confidence) / 4
    assert cured.confidence == pytest.approx(special.expit(logit), rel=1e-3)
  # Confidence 0.8 is now what 0.996 was.
  halted = processor(model, confidence_threshold=0.8).reason(TEXTS)
  old = float(special.expit(4 * special.logit(0.8)))
  plain = processor(confidence_threshold=old).reason(TEXTS)
  steps = [result.steps for result in halted]
  assert steps == [result.steps for result in plain]
  easier = processor(confidence_threshold=0.8).reason(TEXTS)
  assert steps != [result.steps for result in easier]


def test_confidence_that_nothing_deserves_never_halts():
  """Three puzzles do not support it, and a model may be confidences of all."""
  calibration = {"kind": "temperature", "puzzles": 3, "temperature": 1.0}
  model = dataclasses.replace(MODEL, calibration=calibration)
  results = processor(model, confidence_threshold=0.9).reason(TEXTS)
  assert {result.steps for result in results} == {4}
  results = processor(model, confidence_threshold=0.1).reason(TEXTS)
  assert {result.steps for result in results} == {1}


def test_a_solution_halts_whatever_the_confidence(refined):
  def is_solution(inputs, answers):  # a rule that some answers obey
    return (answers.sum(-1) + inputs[..., 0]) % 3 == 0

  rule = dataclasses.replace(TASK, is_solution=is_solution)
  experiment = types.SimpleNamespace(model=MODEL.experiment.model, task=rule)
  model = dataclasses.replace(MODEL, experiment=experiment)
  results = processor(model, confidence_threshold=1 - 1e-12).reason(TEXTS)
  answers, _ = refined
  obeys = np.array(is_solution(INPUTS, answers))
  stops = obeys.copy()
  stops[-1] = True
  steps = stops.argmax(0) + 1
  assert len(set(steps)) > 1
  for row, result in enumerate(results):
    assert result.steps == steps[row]
    assert result.checked == obeys[steps[row] - 1, row]


def test_a_model_that_does_not_recur_takes_one_step():
  model = pretrained(family="feedforward")
  config = {"verbose_reasoning": True, "alternatives_breadth": 3}
  result = processor(model, **config).reason(TEXTS[0])
  assert result.steps == 1 == len(result.reasoning_history)
  with pytest.raises(UserError, match=r"rollouts would be the same; set views"):
    processor(model, **config).reason(TEXTS[0], True)
  viewed = processor(model, **config, views=True).reason(TEXTS[0], True)
  assert sum(one.fraction for one in viewed.alternatives) == pytest.approx(1)
  assert result.answer in [one.answer for one in viewed.alternatives]


# Several answers.


@pytest.fixture(scope="module")
def several():
  config = {"alternatives_breadth": 4, "early_stopping": False}
  return processor(**config, cycle_noise=0.3).reason(TEXTS[:4], True)


def test_alternatives_are_the_answers_of_all_rollouts(several):
  for result in several:
    fractions = [one.fraction for one in result.alternatives]
    assert sum(fractions) == pytest.approx(1)
    assert fractions == sorted(fractions, reverse=True)
    assert all(fraction * 4 == round(fraction * 4) for fraction in fractions)
    answers = [one.answer for one in result.alternatives]
    assert len(set(answers)) == len(answers)
    assert result.answer in answers
    chosen = result.alternatives[answers.index(result.answer)]
    assert chosen.checked == result.checked
    assert 0 < chosen.confidence <= result.confidence
  assert any(len(result.alternatives) > 1 for result in several)


def test_the_first_rollout_is_plain(several, fixed):
  for result, plain in zip(several, fixed, strict=False):
    assert plain.answer in [one.answer for one in result.alternatives]
    assert result.flops == pytest.approx(4 * plain.flops)


@pytest.mark.parametrize("select", SELECTS)
def test_the_history_is_that_of_the_chosen_rollout(select, fixed):
  config = {"breadth": 3, "select": select, "confidence_threshold": 0.9}
  thinker = processor(**config, cycle_noise=0.3, verbose_reasoning=True)
  for result, plain in zip(thinker.reason(TEXTS[:4]), fixed, strict=False):
    assert 1 <= result.steps == len(result.reasoning_history) <= 4
    assert result.reasoning_history[-1].answer == result.answer
    assert result.reasoning_history[-1].confidence == result.confidence
    assert result.alternatives == ()
    assert 0 < result.flops <= 3 * plain.flops * (1 + 1e-6)


# Batches and devices.


def test_results_do_not_depend_on_batch_order_or_devices():
  results = processor().reason(TEXTS)
  turned = processor(batch_size=3).reason(TEXTS[::-1])[::-1]
  alone = processor().reason(TEXTS[5])
  spread = processor(devices=8).reason(TEXTS)
  everywhere = TRMProcessor(MODEL, {"max_recursion_depth": 4, "batch_size": 8})
  assert len({result.steps for result in results}) > 1
  same(alone, results[5])
  local = everywhere.reason(TEXTS)
  for others in (turned, spread, local):
    for ours, theirs in zip(results, others, strict=True):
      same(ours, theirs)


def test_programs_are_compiled_once(monkeypatch):
  thinker = processor(max_recursion_depth=3)
  thinker.reason(TEXTS[:10])
  before = layout.programs.cache_info().misses
  lowered = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: lowered.append(event)
  )
  try:
    thinker.reason(TEXTS[:13])
    thinker.reason(TEXTS[3:])
    # Another depth and threshold are numbers, not programs.
    processor(max_recursion_depth=4, confidence_threshold=0.9).reason(
      TEXTS[:12]
    )
  finally:
    jax.monitoring.clear_event_listeners()
  assert layout.programs.cache_info().misses == before
  assert not [name for name in lowered if "backend_compile" in name]


# The pattern cache.


def test_what_was_asked_before_is_not_solved_again(asked):
  thinker = processor(verbose_reasoning=True)
  thinker.reason(TEXTS[0])
  thinker.reason(TEXTS[0])
  assert asked == [1, 1]  # no cache unless one wants it
  thinker.enable_pattern_cache(max_size=2)
  first = thinker.reason(TEXTS[:2])
  again = thinker.reason([TEXTS[1], GRID, TEXTS[1]])
  assert asked == [1, 1, 2]
  for ours, row in zip(again, (1, 0, 1), strict=True):
    same(ours, first[row])
  assert [result.name for result in again] == [
    "puzzle 1",
    "puzzle 2",
    "puzzle 3",
  ]
  # 1 was asked last and 0 before it, so 0 goes when 2 comes.
  thinker.reason(TEXTS[2])
  thinker.reason(TEXTS[1])
  assert asked == [1, 1, 2, 1]
  thinker.reason(TEXTS[0])
  assert asked == [1, 1, 2, 1, 1]


def test_a_call_with_more_than_the_cache_holds_is_answered(asked):
  thinker = processor()
  thinker.enable_pattern_cache(max_size=1)
  results = thinker.reason([*TEXTS[:3], TEXTS[0]])
  same(results[3], results[0])
  assert len(results) == 4
  assert asked == [3]


def test_the_cache_keeps_several_solutions_apart(asked):
  config = {"alternatives_breadth": 4, "early_stopping": False}
  thinker = processor(**config, cycle_noise=0.3)
  thinker.enable_pattern_cache()
  one, all_of_them, again = (
    thinker.reason(TEXTS[:4], several)[0] for several in (False, True, False)
  )
  assert asked == [4, 4]
  assert again.alternatives == one.alternatives == ()
  assert all_of_them.alternatives


def test_nobody_can_change_what_is_cached():
  thinker = processor()
  thinker.enable_pattern_cache()
  for _ in range(2):
    result = thinker.reason(TEXTS[0])
    same(result, processor().reason(TEXTS[0]))
    np.testing.assert_array_equal(result.question, INPUTS[0])
    result.tokens[:] = 0
    result.question[:] = 0
  sizes: list[Any] = [0, 2.5, "3", True]
  for size in sizes:
    with pytest.raises(UserError, match="max_size="):
      thinker.enable_pattern_cache(size)


# Memory.


@pytest.mark.parametrize(
  ("limit", "expected"),
  [
    ("4GB", 4e9),
    ("4 gb", 4e9),
    ("1.5G", 1.5e9),
    ("512MiB", 512 * 2**20),
    ("2KiB", 2048),
    ("3K", 3000),
    ("1TiB", 2**40),
    ("123", 123),
    (1e9, 1e9),
    (5, 5),
  ],
)
def test_amounts_of_memory(monkeypatch, limit, expected):
  needed = {"bytes": expected}
  monkeypatch.setattr(
    solver.Solver, "memory", lambda *_: needed["bytes"], raising=True
  )
  thinker = processor()
  thinker.set_memory_limit(limit)  # exactly enough
  needed["bytes"] += 1
  with pytest.raises(UserError, match=r"a single rollout needs [\d,]+ MB"):
    thinker.set_memory_limit(limit)


@pytest.mark.parametrize(
  "limit",
  ["", "GB", "4XB", "4iB", "-1GB", "1e9", 0, -1, float("inf"), float("nan"),
   None, True, [1]],
)  # fmt: skip
def test_what_is_no_amount_of_memory_is_told(limit):
  with pytest.raises(UserError, match="must be bytes, or a text such as"):
    processor().set_memory_limit(limit)


def test_less_memory_gives_a_smaller_batch():
  thinker = processor(batch_size=4, cycle_noise=0.0)
  engine, settings = thinker._solver, thinker._settings(False)
  thinker.set_memory_limit("1GB")
  assert engine.slots == 4
  limit = 400_000
  with pytest.raises(UserError, match=r"a single rollout needs 1 MB"):
    while True:  # until one slot is too much
      thinker.set_memory_limit(limit)
      assert engine.memory(engine.slots, settings) <= limit
      fewer = engine.slots
      limit -= 20_000
  assert engine.slots == fewer < 4
  for ours, theirs in zip(
    thinker.reason(TEXTS), processor().reason(TEXTS), strict=True
  ):
    same(ours, theirs)


# The package.


def test_the_processor_is_at_the_top_and_imported_on_demand():
  assert trm_jax.TRMProcessor is TRMProcessor
  code = (
    "import sys, trm_jax.core.network as _\n"
    "assert not [m for m in sys.modules if m.startswith('trm_jax.solve')]\n"
    "from trm_jax import TRMProcessor\n"
    "assert TRMProcessor.__module__ == 'trm_jax.solve.processor'\n"
    "import trm_jax\n"
    "assert not hasattr(trm_jax, 'nothing')\n"
  )
  subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize(
  "call",
  [
    lambda made: made.reason(TEXTS[0]),
    lambda made: made.set_memory_limit("1GB"),
    lambda made: processor(),
    lambda made: TRMProcessor.from_pretrained("nowhere"),
  ],
)
def test_a_fork_is_told_what_to_do(call):
  made = processor()
  answer = made.reason(TEXTS[0]).answer
  read_end, write_end = os.pipe()
  if not (child := os.fork()):
    signal.alarm(20)  # ends a call that waits forever
    try:
      call(made)
    except UserError as error:
      os.write(write_end, str(error).encode())
    os._exit(0)
  os.close(write_end)
  with open(read_end) as message:
    assert re.search(r"os\.fork\(\).*get_context\('spawn'\)", message.read())
  assert os.waitpid(child, 0)[1] == 0
  assert made.reason(TEXTS[0]).answer == answer  # the parent goes on
