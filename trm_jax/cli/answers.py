"""Input and output of the program `solve`."""

import contextlib
import json
import math
import os
import pathlib
import queue
import stat
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from scipy import special

from trm_jax.cli import report, streams
from trm_jax.data import entries, lines, questions
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
    if memory:
      processor.set_memory_limit(memory)
    task = processor.model.experiment.task
    output = _Output(task, form)
    is_whole = bool(form.show or form.gif) or not _is_live(stream)
    if is_whole:
      batches = iter([questions.read(stream, task, name)])
    else:
      items = questions.arriving(stream, task, name)
      batches = _available(items, task, processor.config.batch_size)
    for found in batches:
      puzzles = [item for item in found if isinstance(item, Question)]
      if (form.show or form.gif) and len(puzzles) > _MOST_DRAWN:
        raise UserError(
          f"{name}: {len(puzzles)} puzzles are too many to draw; at most "
          f"{_MOST_DRAWN}"
        )
      if is_whole:
        with report.progress_bar("solving") as on_progress:
          results = processor.solve(puzzles, form.several, on_progress)
      else:
        results = processor.solve(puzzles, form.several)
      if form.gif and results:
        _draw_gif(puzzles, results, task, form.gif)
      output.write(found, results, is_whole)
      if streams.lost():  # nobody reads the answers any more
        return 0
  return output.finish()


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
    # Not `sys.stdin`, whose lock a waiting thread would hold at exit.
    try:
      return open(0, "rb", buffering=0, closefd=False)
    except OSError as error:
      raise lines.unreadable("standard input", error) from error
  return lines.open_file(name, "a file of puzzles, or - for standard input")


def _is_live(stream: BinaryIO) -> bool:
  """Whether puzzles may arrive one by one, as through a pipe."""
  return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def _available(
  items: Iterator[Question | Fault], task: Task, most: int
) -> Iterator[list[Question | Fault]]:
  """Yields lists of the items that have arrived: one to `most` of them."""
  waiting: queue.Queue[Any] = queue.Queue(most)

  def read():
    end = None
    try:
      for item in items:
        waiting.put(item)
    except Exception as error:
      end = error
    waiting.put(_End(end))

  threading.Thread(target=read, daemon=True).start()
  while True:
    batch = [waiting.get()]
    while len(batch) < most and not waiting.empty():
      batch.append(waiting.get())
    end = batch.pop() if isinstance(batch[-1], _End) else None
    if batch:
      yield questions.judged(batch, task)
    if end:
      if end.error:
        raise end.error
      return


class _End(NamedTuple):
  """The end of the items of a thread, and the error that ended them."""

  error: Exception | None


class _Output:
  """Writes answers and faults in input order, and then a summary."""

  def __init__(self, task: Task, form: Form):
    self._task, self._form = task, form
    self._faults = self._answered = self._steps = self._checked = 0
    self._right = 0

  def write(
    self,
    found: Sequence[Question | Fault],
    results: Sequence[Reasoning],
    is_whole: bool,
  ):
    """Writes the results of the questions among `found`, and the faults.

    If `found` is the whole input and fails for one reason, it is given once.
    """
    messages = [item.message for item in found if isinstance(item, Fault)]
    is_alike = is_whole and not results and entries.alike(messages)
    shown = 1 if is_alike else entries.SHOWN
    solved = iter(results)
    for item in found:
      if isinstance(item, Question):
        self._write(item, next(solved))
        continue
      self._faults += 1
      if self._faults <= shown:
        where = f"line {item.line}" if item.line else "json"
        line = printable(f"{where}: {item.message} [{item.text}]")
        print(line, file=sys.stderr)
      if self._form.json:
        print(json.dumps({"line": item.line, "error": item.message}))
    if is_whole and messages and not results:
      text = next(item.text for item in found if isinstance(item, Fault))
      why = " for this reason" * is_alike
      hint = entries.resemblance(text)
      print(
        f"all {len(messages)} fail{why}{hint and '; ' + hint}", file=sys.stderr
      )
    checked = [one.checked for one in results if one.checked is not None]
    self._answered += len(results)
    self._checked += len(checked)
    self._right += sum(checked)
    self._steps += sum(one.steps for one in results)

  def _write(self, item: Question, result: Reasoning):
    form, task = self._form, self._task
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

  def finish(self) -> int:
    """Writes the summary; returns the exit status."""
    summary = f"{self._answered} answered"
    if self._checked:
      summary += f", {self._right} of them right by the rules"
    steps = self._steps / max(self._answered, 1)
    summary += f"; {steps:.2f} steps a puzzle"
    summary += f"; {self._faults} were invalid" * bool(self._faults)
    print(summary, file=sys.stderr)
    return 1 if self._faults else 0


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
