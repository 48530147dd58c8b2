"""Compares the speed with the reference PyTorch code's, step by step in turns.

    trm benchmark_reference CHECKOUT --config=NAME[:variant] [--batch=16]
        [--rounds=7] [--dtypes=float32,bfloat16] [--nocompile]
        [--python=python3] [--out=FILE.json]

CHECKOUT is a clone of github.com/SamsungSAILMontreal/TinyRecursiveModels. It
runs in a process of its own with --python, whose environment needs torch,
einops and pydantic. The two make a step each in turn, --rounds times: one
training step, and one supervision step of inference. Printed are puzzles per
second (medians), and the ratio to the faster of the reference's two ways, eager
and compiled, with its quartiles over rounds. Tokens are random: times depend on
shapes alone.
"""

import sys

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_BATCH = flags.DEFINE_integer("batch", 16, "Puzzles a step.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 7, "Steps of each, beside one to warm up.", lower_bound=1
)
_DTYPES = flags.DEFINE_list(
  "dtypes", "float32,bfloat16", "Dtypes of the activations."
)
_COMPILE = flags.DEFINE_bool("compile", True, "Also time torch.compile.")
_PYTHON = flags.DEFINE_string(
  "python", sys.executable, "Interpreter of an environment with PyTorch."
)
_OUT = flags.DEFINE_string("out", "", "Write all figures to this JSON file.")


def main(argv: list[str]):
  """Times both and prints a table."""
  import pathlib

  import jax

  from trm_jax.draw import console
  from trm_jax.inspect import against_reference as compare
  from trm_jax.run import files

  checkout = pathlib.Path(app.only_argument(argv, "checkout"))
  timings = list(
    compare.measure(
      app.config_values(_CONFIG), checkout, python=_PYTHON.value,
      batch_size=_BATCH.value, rounds=_ROUNDS.value, dtypes=_DTYPES.value,
      compiles=_COMPILE.value, say=app.say,
    )
  )  # fmt: skip
  if _OUT.value:
    found = {
      "device": jax.devices()[0].device_kind,
      "timings": [timing.to_json() for timing in timings],
    }
    files.write_json(files.locate(_OUT.value), found)
  names = list(timings[0].seconds)
  rows = []
  for timing in timings:
    middle, low, high = timing.ratio()
    rows.append(
      [
        f"{timing.step}, {timing.dtype}",
        *(f"{timing.puzzles_per_second(name):.3g}" for name in names),
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
      ]
    )
  console.print_table(
    ["step", *names, "ours to the faster"], rows,
    f"puzzles/s at batch {_BATCH.value}, {_ROUNDS.value} rounds",
  )  # fmt: skip


if __name__ == "__main__":
  app.run(main)
