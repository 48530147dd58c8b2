"""A lost or narrow output ends neither the work nor its results."""

import os
import subprocess
import sys

import pytest
from programs import ROOT, TINY, environment

# Prints more than any buffer holds, then writes a file.
PROGRAM = """
import pathlib, sys
from trm_jax.cli import app

def main(argv):
  for stream in (sys.stdout, sys.stderr):
    print("12.0% \\xb1 1.0%\\n" * 9999, file=stream)
  pathlib.Path(argv[1]).write_text("all")
  return 1 if "fails" in argv else None

app.run(main, prints_log="log" in argv)
""".replace("in argv)", "in sys.argv)")


def _run(command, redirect, **variables):
  """Runs a command in a shell; its `redirect` may be a pipe."""
  done = subprocess.run(
    ["bash", "-c", f'"$@" {redirect}; exit "${{PIPESTATUS[0]}}"', "", *command],
    env=environment() | variables,
    cwd=ROOT,
    capture_output=True,
    timeout=300,
  )
  return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
  ("redirect", "words", "status", "told"),
  [
    ("| true", "", 0, ""),
    ("2>&1 | true", "", 0, ""),
    ("| true", "fails", 1, ""),
    (">&- 2>&- <&-", "", 0, ""),
    (">/dev/full 2>&1", "", 1, ""),
    (">/dev/full", "", 1, "error: cannot write the output: No space left"),
    (">/dev/full", "log", 0, "error: cannot write the output: No space left"),
  ],
)
def test_a_lost_output_ends_no_work(tmp_path, redirect, words, status, told):
  command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x"), *words.split()]
  found, _, errors = _run(command, redirect)
  assert (found, (tmp_path / "x").read_text()) == (status, "all")
  assert told in errors and "Traceback" not in errors


def test_an_inherited_backend_is_not_used():
  program = (
    PROGRAM.partition("def main")[0]
    + """
def main(argv):
  import matplotlib
  print(matplotlib.get_backend())

app.run(main)
"""
  )
  command = [sys.executable, "-c", program]
  status, output, errors = _run(command, "", MPLBACKEND="nonsense")
  assert (status, output.strip().lower()) == (0, "agg"), errors


def test_what_cannot_be_encoded_is_replaced(tmp_path):
  command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x")]
  status, output, errors = _run(command, "", PYTHONIOENCODING="ascii")
  assert status == 0
  assert output.startswith("12.0% ? 1.0%\n") and "? 1.0%" in errors


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_pipe_that_does_not_block_is_waited_for(tmp_path, unbuffered):
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x")]
  with subprocess.Popen(
    command,
    stdout=write_end,
    stderr=subprocess.DEVNULL,
    env=environment() | {"PYTHONUNBUFFERED": unbuffered},
  ) as child:
    os.close(write_end)
    with open(read_end, encoding="utf-8") as lines:
      assert sum(1 for _ in lines) == 9999 + 1
  assert child.returncode == 0


def test_a_run_without_an_output_is_trained_and_scored(tmp_path):
  command = [sys.executable, "-m", "trm_jax"]
  run = f"--workdir={tmp_path / 'run'}"
  train = [*command, "train", *TINY(tmp_path), run]
  status, _, errors = _run(train, "| true")
  assert (status, errors) == (0, "")
  assert (tmp_path / "run" / "checkpoints" / "24").is_dir()
  (tmp_path / "run" / "result.json").unlink()  # training wrote it
  evaluate = [*command, "evaluate", run, "--depth=1,2"]
  inherited = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"}
  status, _, errors = _run(evaluate, ">/dev/full", **inherited)
  assert status == 1 and "cannot write the output" in errors
  assert (tmp_path / "run" / "result.json").exists()
  assert (tmp_path / "run" / "plots" / "depth.png").exists()
