"""Solves puzzles from a file or from standard input.

    python -m experiments.solve --workdir=RUN|FILE.safetensors [FILE|-]
        [--depth=16] [--confidence=0.8 | --fixed] [--breadth=K] [--several]
        [--json | --show] [--gif=FILE.gif]

Puzzles are in their task's own form: a Sudoku a line (81 characters, `.` or 0
for a blank), mazes as text with an empty line between them, csv with a column
`question`, or the json of an ARC task. Answers go to standard output in the
same form and order; --several writes all that the rollouts came to, each below
its share of them; --json writes an object a line, with confidence, steps,
alternatives and the answer after each step. Confidence is calibrated if
`experiments.evaluate --calibrate` has measured it.

What is no puzzle is reported with its line, and the others are solved all the
same; the exit status is then 1. A puzzle halts as soon as the model is as sure
as --confidence says, or its answer is a solution by the rules.

    echo "1..4....3..2...." | python -m experiments.solve --workdir=RUN -
"""

import contextlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress
from scipy import special

from trm_jax.cli import app
from trm_jax.data import datasets, questions
from trm_jax.data.questions import Fault, Question
from trm_jax.data.task import Split, Task
from trm_jax.draw import pictures, terminal
from trm_jax.draw import scenes as scenes_lib
from trm_jax.errors import UserError
from trm_jax.solve.processor import TRMProcessor
from trm_jax.solve.reasoning import ReasonConfig, Reasoning
from trm_jax.solve.rules import SELECTS

_DEFAULTS = ReasonConfig()

_WORKDIR = flags.DEFINE_string("workdir", "", "A run, or exported weights.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
_DEPTH = flags.DEFINE_integer(
  "depth", _DEFAULTS.max_recursion_depth, "Supervision steps at most.",
  lower_bound=1,
)  # fmt: skip
_CONFIDENCE = flags.DEFINE_float(
  "confidence", _DEFAULTS.confidence_threshold, "Halt when it is as sure."
)
_FIXED = flags.DEFINE_bool("fixed", False, "Never halt before --depth.")
_BREADTH = flags.DEFINE_integer(
  "breadth", _DEFAULTS.breadth, "Rollouts of each puzzle.", lower_bound=1
)
_SEVERAL = flags.DEFINE_bool(
  "several",
  False,
  f"Tell all answers of {_DEFAULTS.alternatives_breadth} rollouts or more.",
)
_SELECT = flags.DEFINE_enum(
  "select", _DEFAULTS.select, SELECTS, "Which rollout answers."
)
_NOISE = flags.DEFINE_float(
  "cycle_noise", _DEFAULTS.cycle_noise, "What makes rollouts differ.",
  lower_bound=0.0,
)  # fmt: skip
_VIEWS = flags.DEFINE_bool("views", False, "Rollouts see random symmetries.")
_BATCH = flags.DEFINE_integer(
  "batch_size", _DEFAULTS.batch_size, "Rollouts at once.", lower_bound=1
)
_MEMORY = flags.DEFINE_string(
  "memory", "", "Lower --batch_size until a device needs no more, as in 4GB."
)
_PUZZLE_ID = flags.DEFINE_enum(
  "puzzle_id", "error", datasets.UNSEEN,
  "The embedding of ARC tasks that the run was not trained on.",
)  # fmt: skip
_SEED = flags.DEFINE_integer(
  "seed", _DEFAULTS.seed, "Of noise and views.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Write an object a line.")
_SHOW = flags.DEFINE_bool("show", False, "Draw the refinement here.")
_GIF = flags.DEFINE_string("gif", "", "Draw the refinement into this file.")

_SECONDS = 0.7  # of a frame
_DRAWN = 20  # puzzles at most


def main(argv: list[str]) -> int:
  """Solves what it is given."""
  _check(argv)
  name = argv[1] if argv[1:] else "-"
  with _open(name) as stream:  # a wrong path should not wait for the weights
    processor = TRMProcessor.from_pretrained(
      _WORKDIR.value, _config(), _CHECKPOINT.value
    )
    task = processor.model.experiment.task
    found = questions.read(stream, task, name)
  if _MEMORY.value:
    processor.set_memory_limit(_MEMORY.value)
  asked = [item for item in found if isinstance(item, Question)]
  if (_SHOW.value or _GIF.value) and len(asked) > _DRAWN:
    raise UserError(
      f"{name}: {len(asked)} puzzles are too many to draw; at most {_DRAWN}"
    )
  with Progress(transient=True, console=Console(stderr=True)) as progress:
    bar = progress.add_task("solving", total=None)
    results = processor.solve(
      asked,
      _SEVERAL.value,
      lambda done, total: progress.update(bar, completed=done, total=total),
    )
  if _GIF.value and results:
    _film(asked, results, task)
  try:
    status = _write(found, results, task)
    sys.stdout.flush()
  except BrokenPipeError:  # whoever reads has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  return status


def _check(argv: list[str]):
  """Refuses flags that do not go together, before anything is loaded."""
  if len(argv) > 2:
    raise UserError(f"expected one file, or - for standard input: {argv[1:]}")
  if not _WORKDIR.value:
    raise UserError("--workdir is missing: name a run, or exported weights")
  if _GIF.value and not _GIF.value.endswith(".gif"):
    raise UserError(f"--gif={_GIF.value}: the name must end in .gif")
  if _JSON.value and _SHOW.value:
    raise UserError("--json and --show: both write what they tell; choose one")
  if not 0 < _CONFIDENCE.value < 1:
    raise UserError(
      f"--confidence={_CONFIDENCE.value:g}: must be a probability between 0 "
      "and 1; --fixed never halts early"
    )


def _config() -> dict[str, Any]:
  return {
    "max_recursion_depth": _DEPTH.value,
    "confidence_threshold": _CONFIDENCE.value,
    "early_stopping": not _FIXED.value,
    "verbose_reasoning": bool(_JSON.value or _SHOW.value or _GIF.value),
    "breadth": _BREADTH.value,
    "cycle_noise": _NOISE.value,
    "views": _VIEWS.value,
    "select": _SELECT.value,
    "puzzle_id": _PUZZLE_ID.value,
    "batch_size": _BATCH.value,
    "seed": _SEED.value,
  }


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if name == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  try:
    return open(name, "rb")
  except OSError as error:
    raise UserError(f"{name}: cannot be read ({error.strerror})") from error


def _write(
  found: Sequence[Question | Fault], results: Sequence[Reasoning], task: Task
) -> int:
  """Writes answers and faults in the order of the input; the exit status."""
  solved, faults = iter(results), 0
  for item in found:
    if isinstance(item, Fault):
      faults += 1
      where = f"line {item.line}" if item.line else "json"
      print(f"{where}: {item.message} [{item.text}]", file=sys.stderr)
      if _JSON.value:
        print(json.dumps({"line": item.line, "error": item.message}))
      continue
    result = next(solved)
    if _SHOW.value:
      _show(item, result, task)
    elif _JSON.value:
      print(json.dumps(_as_json(item, result)))
    elif _SEVERAL.value:
      for one in result.alternatives:
        print(f"# {item.name}, {one.share:.1%}")
        print(_as_text(one.answer, task))
    else:
      if not item.line:
        print(f"# {item.name}")
      print(_as_text(result.answer, task))
  checked = [result.checked for result in results if result.checked is not None]
  told = f"{len(results)} answered"
  if checked:
    told += f", {sum(checked)} of them right by the rules"
  steps = np.mean([result.steps for result in results] or [0])
  told += f"; {steps:.2f} steps a puzzle"
  print(told + f"; {faults} were no puzzles" * bool(faults), file=sys.stderr)
  return 1 if faults else 0


def _as_text(answer: Any, task: Task) -> str:
  """An answer in its task's form; an empty line ends one of several lines."""
  if isinstance(answer, str):
    if not task.in_rows:
      return answer
    side = math.isqrt(task.seq_len)
    answer = [answer[i : i + side] for i in range(0, task.seq_len, side)]
  return "\n".join([*("".join(map(str, row)) for row in answer), ""])


def _as_json(question: Question, result: Reasoning) -> dict[str, Any]:
  return {
    "line": question.line,
    "name": result.name,
    "answer": result.answer,
    "confidence": result.confidence,
    "checked": result.checked,
    "steps": result.steps,
    "flops": result.flops,
    "alternatives": [vars(one) for one in result.alternatives],
    "history": [vars(step) for step in result.reasoning_history],
  }


def _show(question: Question, result: Reasoning, task: Task):
  """Draws the answer after each step in the terminal."""
  before = [None, *result.history[:-1]]
  frames = [
    terminal.draw(task, question.tokens, answer, old, question.label)
    for answer, old in zip(result.history, before, strict=True)
  ]
  terminal.play(frames, Console(), question.name, _SECONDS)
  checked = {None: "", True: ", a solution", False: ", not a solution"}
  print(f"confidence {result.confidence:.1%}{checked[result.checked]}")
  for one in result.alternatives:
    print(f"{one.share:.1%} of the rollouts:\n{_as_text(one.answer, task)}")


def _film(asked: Sequence[Question], results: Sequence[Reasoning], task: Task):
  """Writes a film of all puzzles; those that halt early stand still."""
  inputs = np.stack([question.tokens for question in asked])
  unknown = np.zeros_like(inputs[0])
  labels = np.stack([unknown if q.label is None else q.label for q in asked])
  scenes = scenes_lib.scenes_of(Split.of_rows(inputs, labels), task)
  last = max(len(result.history) for result in results)

  def at(step: int, values: Any) -> Any:
    return values[min(step, len(values) - 1)]

  answers = np.stack(
    [[at(step, r.history) for r in results] for step in range(last)]
  )
  sure = np.array(
    [
      [at(step, r.reasoning_history).confidence for r in results]
      for step in range(last)
    ]
  )
  frames = scenes_lib.with_answers(scenes, task, answers, special.logit(sure))
  pictures.save_gif(
    (pictures.panels(frame, task, "", last) for frame in frames),
    pathlib.Path(_GIF.value),
    _SECONDS,
  )
  print(f"wrote {_GIF.value}", file=sys.stderr)


if __name__ == "__main__":
  app.run(main)
