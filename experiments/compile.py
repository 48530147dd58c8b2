"""Compiles a config for TPUs ahead of time: memory, FLOPs, least step time.

    trm compile --config=NAME[:variant] --topology=v5e:4x4[,v6e:16x16,...]
        [--what=train|solve|depth_grid] [--seeds=8] [--slots=256] [--depth=16]
        [--rows=N] [--puzzle_ids=N] [--json] [--require_fit]

Needs no TPU: libtpu's compiler runs on any Linux machine. Compiles the same
functions as the training and inference loops, and prints the memory they need,
FLOPs, bytes moved, every collective, and a lower bound of the time of a step
from the peaks in `trm_jax.inspect.chips`.

--what=depth_grid compiles each setting of a study's config (depth) with all its
seeds; of any other config, --seeds members. --what=solve compiles the inference
engine for the devices of one host. No data is read: its assumed size is
printed.
"""

import dataclasses
import json

from absl import flags

from trm_jax.cli import app

_CONFIG = app.define_config()
_TOPOLOGY = flags.DEFINE_list(
  "topology", [], "Slices, such as v5e:4x4,v6e:16x16,v4:2x2x1,tpu7x:2x2x1."
)
_WHAT = flags.DEFINE_enum(
  "what", "train", ["train", "solve", "depth_grid"], "What is compiled."
)
_NUMBERS = {
  "seeds": flags.DEFINE_integer(
    "seeds", 8, "--what=depth_grid without a study: members.", 1, 2**16
  ),
  "slots": flags.DEFINE_integer(
    "slots", 256, "--what=solve: rollouts at once on a host.", lower_bound=1
  ),
  "depth": flags.DEFINE_integer(
    "depth", 16, "--what=solve: supervision steps per puzzle.", lower_bound=1
  ),
  "rows": flags.DEFINE_integer(
    "rows", 0, "Examples; 0 for those of the config.", lower_bound=0
  ),
  "puzzle_ids": flags.DEFINE_integer(
    "puzzle_ids", 0, "Puzzle table rows; 0 as in the config.", lower_bound=0
  ),
}
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_REQUIRE_FIT = flags.DEFINE_bool(
  "require_fit", False, "Exit with status 1 if something does not fit."
)


def main(argv: list[str]) -> int:
  """Compiles what `--config` describes for every `--topology`."""
  import jax

  from trm_jax.errors import UserError
  from trm_jax.inspect import plan, topology

  app.no_arguments(argv)
  # Nothing runs; without a cache, compile times are real.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  values = app.config_values(_CONFIG)
  if not _TOPOLOGY.value:
    raise UserError("--topology is missing: name slices, such as v5e:4x4")
  slices = [topology.describe(name) for name in _TOPOLOGY.value]
  numbers = {name: flag.value for name, flag in _NUMBERS.items()}
  request = plan.CompileRequest(_WHAT.value, **numbers)
  todo, size = plan.plan(values, slices, request)
  outcomes = list(plan.compile_all(todo))
  if _JSON.value:
    rows = [plan.as_json(outcome) for outcome in outcomes]
    print(json.dumps({"assumed": dataclasses.asdict(size), "programs": rows}))
  else:
    plan.show(outcomes, size, request)
  failed = any(isinstance(one.found, plan.TooLarge) for one in outcomes)
  return 1 if failed and _REQUIRE_FIT.value else 0


if __name__ == "__main__":
  app.run(main)
