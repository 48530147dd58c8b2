"""Consoles of any width show whole numbers, and outside text as it is."""

import io
import re

import pytest

from trm_jax.cli import progress, report
from trm_jax.draw import console as consoles
from trm_jax.errors import UserError

RECORDS = [
  {
    "halt": "fixed", "depth": depth, "breadth": breadth, "select": "vote",
    "exact_accuracy": 0.4012, "exact_accuracy_se": 0.0123,
    "oracle_accuracy": 0.6, "oracle_accuracy_se": 0.01, "valid_rate": 1.0,
    "valid_rate_se": 0.0, "cell_accuracy": 0.98765, "cell_accuracy_se": 0.001,
    "q_accuracy": 0.9, "halted_exact_accuracy": 0.4, "mean_steps": 12.34,
    "flops_per_puzzle": 1.23e12,
  }
  for depth in (1, 32)
  for breadth in (2, 8)
]  # fmt: skip
NUMBERS = (
  "40.1%", "± 1.2%", "60.0%", "100.0%", "98.8%", "90.0%", "40.0%", "12.34",
  "1.23e+12", "vote",
)  # fmt: skip


@pytest.fixture
def console(monkeypatch):
  """Makes all consoles a terminal of some width; returns what is printed."""

  def make(width):
    printed, original = io.StringIO(), consoles.make

    def narrow(**options):
      made = original(**options)
      made.file, made._force_terminal, made.width = printed, True, width
      made.no_color = True
      return made

    monkeypatch.setattr(consoles, "make", narrow)
    return printed

  return make


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_tables_keep_their_numbers(console, width):
  printed = console(width)
  report.print_records(RECORDS, "runs/[/b]x")
  text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
  assert "runs/[/b]x" in text and "…" not in text
  rows = text.count("│    32 │")
  for number in NUMBERS:
    assert text.count(number) >= len(RECORDS), number
  assert rows % 2 == 0 and (rows == 2) == (width == 200)
  assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("total", [24, 1_000_000])
@pytest.mark.parametrize("width", [60, 80])
def test_step_and_time_left_never_shrink(console, width, total):
  printed = console(width)
  bar = progress.Bar(total)
  row = {
    "loss": 1.914, "accuracy": 0.2, "exact_accuracy": 0.1,
    "steps_per_second": 123.4,
  }  # fmt: skip
  with bar:
    for step in (total // 2, total // 2 + 1):
      bar.advance(step, row)
  for line in re.findall(r"training[^\r\n]*", printed.getvalue())[-1:]:
    line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)
    assert re.search(rf"{step}/{total}  [-\d:]+ left  loss 1\.914", line), line
    assert len(line.rstrip()) <= width


@pytest.mark.parametrize("text", ["[/b]", ":smile: [red]", "$x_$", "a\x1b[2Jb"])
def test_outside_text_is_printed_as_it_is(console, text):
  printed = console(80)
  consoles.print_table((text, "n"), [(text, "1")], text)
  bar = progress.Bar(3)
  bar.say(text)
  text = text.replace("\x1b", r"\x1b")
  plain = re.sub(r"\x1b\[[0-9;?]*m", "", printed.getvalue())
  assert plain.count(text) == 4
  assert "\x1b[2J" not in plain
  assert str(UserError(text)) == text


def test_errors_hold_no_control_characters():
  assert str(UserError("a\x1b[2J\u202e\n\x07é")) == "a\\x1b[2J\\u202e\n\\x07é"
