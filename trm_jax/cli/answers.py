"""Input and output of the program `solve`."""

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from scipy import special

from trm_jax.cli import report
from trm_jax.data import questions
from trm_jax.data.questions import Fault, Question
from trm_jax.data.task import Split, Task
from trm_jax.draw import console, pictures, scenes, terminal
from trm_jax.errors import UserError, printable
from trm_jax.solve.processor import TRMProcessor
from trm_jax.solve.reasoning import Reasoning

_FRAME_SECONDS = 0.7
_MOST_DRAWN = 20  # puzzles


class Form(NamedTuple):
  """How answers are written: flags of the program."""

  several: bool  # all answers of the rollouts
  json: bool  # one object per line
  show: bool  # draw the refinement in the terminal
  gif: str  # file to draw the refinement into, or ""


def solve(
  workdir: str,
  checkpoint: str,
  name: str,
  config: Mapping[str, Any],
  form: Form,
  memory: str,
) -> int:
  """Solves the puzzles of file `name`, or of standard input ("-").

  `config` has fields of `ReasonConfig`. Returns the exit status: 1 if there
  was an invalid puzzle.
  """
  verbose = bool(form.json or form.show or form.gif)
  with _open(name) as stream:  # report a wrong path before the weights load
    processor = TRMProcessor.from_pretrained(
      workdir, {**config, "verbose_reasoning": verbose}, checkpoint
    )
    task = processor.model.experiment.task
    found = questions.read(stream, task, name)
  if memory:
    processor.set_memory_limit(memory)
  puzzles = [item for item in found if isinstance(item, Question)]
  if (form.show or form.gif) and len(puzzles) > _MOST_DRAWN:
    raise UserError(
      f"{name}: {len(puzzles)} puzzles are too many to draw; at most "
      f"{_MOST_DRAWN}"
    )
  with report.progress_bar("solving") as on_progress:
    results = processor.solve(puzzles, form.several, on_progress)
  if form.gif and results:
    _draw_gif(puzzles, results, task, form.gif)
  return _write(found, results, task, form)


def check(argv: list[str], workdir: str, confidence: float, form: Form):
  """Raises UserError for flags that do not go together."""
  if len(argv) > 2:
    raise UserError(f"expected one file, or - for standard input: {argv[1:]}")
  if not workdir:
    raise UserError("--workdir is missing: name a run, or exported weights")
  if form.gif and not form.gif.endswith(".gif"):
    raise UserError(f"--gif={form.gif}: the name must end in .gif")
  if form.json and form.show:
    raise UserError("--json and --show: both write to the output; choose one")
  if not 0 < confidence < 1:
    raise UserError(
      f"--confidence={confidence:g}: must be a probability between 0 and 1; "
      "--fixed never halts early"
    )


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if name == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  try:
    return open(name, "rb")
  except OSError as error:
    raise UserError(f"{name}: cannot be read ({error.strerror})") from error


def _write(
  found: Sequence[Question | Fault],
  results: Sequence[Reasoning],
  task: Task,
  form: Form,
) -> int:
  """Writes answers and faults in input order; returns the exit status."""
  solved, faults = iter(results), 0
  for item in found:
    if isinstance(item, Fault):
      faults += 1
      where = f"line {item.line}" if item.line else "json"
      line = printable(f"{where}: {item.message} [{item.text}]")
      print(line, file=sys.stderr)
      if form.json:
        print(json.dumps({"line": item.line, "error": item.message}))
      continue
    result = next(solved)
    if form.show:
      _show(item, result, task)
    elif form.json:
      print(json.dumps(_as_json(item, result)))
    elif form.several:
      for one in result.alternatives:
        print(f"# {printable(item.name)}, {one.fraction:.1%}")
        print(_as_text(one.answer, task))
    else:
      if not item.line:
        print(f"# {printable(item.name)}")
      print(_as_text(result.answer, task))
  checked = [result.checked for result in results if result.checked is not None]
  summary = f"{len(results)} answered"
  if checked:
    summary += f", {sum(checked)} of them right by the rules"
  steps = np.mean([result.steps for result in results] or [0])
  summary += f"; {steps:.2f} steps a puzzle"
  print(summary + f"; {faults} were invalid" * bool(faults), file=sys.stderr)
  return 1 if faults else 0


def _as_text(answer: Any, task: Task) -> str:
  """An answer in its task's form; an empty line follows one of many lines."""
  if not task.in_rows:
    return answer
  if isinstance(answer, str):
    side = math.isqrt(task.seq_len)
    answer = [answer[i : i + side] for i in range(0, task.seq_len, side)]
  return "\n".join([*("".join(map(str, row)) for row in answer), ""])


def _as_json(question: Question, result: Reasoning) -> dict[str, Any]:
  names = ("name", "answer", "confidence", "checked", "steps", "flops")
  return {
    "line": question.line,
    **{name: getattr(result, name) for name in names},
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
  terminal.play(frames, console.make(), question.name, _FRAME_SECONDS)
  checked = {None: "", True: ", a solution", False: ", not a solution"}
  print(f"confidence {result.confidence:.1%}{checked[result.checked]}")
  for one in result.alternatives:
    print(f"{one.fraction:.1%} of the rollouts:\n{_as_text(one.answer, task)}")


def _draw_gif(
  puzzles: Sequence[Question],
  results: Sequence[Reasoning],
  task: Task,
  path: str,
):
  """Draws the refinement of all puzzles; halted ones keep their last answer."""
  inputs = np.stack([question.tokens for question in puzzles])
  blank = np.zeros_like(inputs[0])
  labels = np.stack([blank if q.label is None else q.label for q in puzzles])
  last = max(len(result.history) for result in results)

  def at_each_step(histories: list[Any]) -> np.ndarray:
    return np.array(
      [[h[min(step, len(h) - 1)] for h in histories] for step in range(last)]
    )

  confidences = [
    [step.confidence for step in result.reasoning_history] for result in results
  ]
  frames = scenes.with_answers(
    scenes.scenes_of(Split.of_rows(inputs, labels), task),
    task,
    at_each_step([result.history for result in results]),
    special.logit(at_each_step(confidences)),
  )
  pictures.save_gif(
    (pictures.panels(frame, task, "", last) for frame in frames),
    pathlib.Path(path),
    _FRAME_SECONDS,
  )
  print(f"wrote {path}", file=sys.stderr)
