"""Compiles a config for TPUs that are not here: does it fit, how fast at best?

    trm compile --config=NAME[:variant] --topology=v5e:4x4[,v6e:16x16,...]
        [--what=train|solve|depth_grid] [--json] [--require_fit]

libtpu's compiler, which runs on any Linux machine, compiles the very functions
that the loops run. Printed are the memory that they need, FLOPs, bytes moved
and every collective, and the least time of a step by the published peaks in
`trm_jax.inspect.chips`: a bound, not a forecast.

--what=depth_grid takes the config of a study (depth) and compiles each of its
settings with all of its seeds; any other config is trained with --seeds
members. --what=solve is the inference engine on one host's devices. No data is
read: the size that is assumed of it is printed.
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
_SEEDS = flags.DEFINE_integer(
  "seeds", 8, "--what=depth_grid of a config that is no study: members.",
  lower_bound=1,
)  # fmt: skip
_SLOTS = flags.DEFINE_integer(
  "slots", 256, "--what=solve: rollouts at once, on one host.", lower_bound=1
)
_DEPTH = flags.DEFINE_integer(
  "depth", 16, "--what=solve: steps of a puzzle, for puzzles a second.",
  lower_bound=1,
)  # fmt: skip
_ROWS = flags.DEFINE_integer(
  "rows", 0, "Examples of the data; 0 for what the config says.", lower_bound=0
)
_PUZZLE_IDS = flags.DEFINE_integer(
  "puzzle_ids", 0, "Rows of the puzzle table; 0 likewise.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")
_REQUIRE_FIT = flags.DEFINE_bool(
  "require_fit", False, "End with status 1 if something does not fit."
)


def main(argv: list[str]) -> int:
  """Compiles what `--config` describes for every `--topology`."""
  import jax

  from trm_jax.errors import UserError
  from trm_jax.inspect import plan, topology

  app.no_arguments(argv)
  # Nothing is run; and what a cache holds would take no time to compile.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  values = app.config_values(_CONFIG)
  if not _TOPOLOGY.value:
    raise UserError("--topology is missing: name slices, such as v5e:4x4")
  slices = [topology.describe(name) for name in _TOPOLOGY.value]
  request = plan.Request(
    _WHAT.value, _SEEDS.value, _SLOTS.value, _DEPTH.value, _ROWS.value,
    _PUZZLE_IDS.value,
  )  # fmt: skip
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
