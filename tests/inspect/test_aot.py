"""The programs of the loops, compiled for TPUs that are not here."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from programs import run_in_forks

from trm_jax import config
from trm_jax.data import synthetic
from trm_jax.errors import UserError
from trm_jax.inspect import chips, cost, estimate, program, topology
from trm_jax.inspect.estimate import Estimate, TooLarge
from trm_jax.run import sharding
from trm_jax.solve.rules import SolveConfig
from trm_jax.train import program as trainer


def needs_libtpu(test):
  """Marks a test of the TPU's compiler; it is skipped where there is none."""
  missing = importlib.util.find_spec("libtpu") is None
  skip = pytest.mark.skipif(missing, reason="libtpu is not installed")
  return pytest.mark.aot(skip(test))


# Tiny, but with rows of the puzzle table that fill the lanes of a TPU: narrower
# ones are stored the other way round, and copied once a dispatch.
_TINY = {
  "data": {"task": "sudoku", "size": 4, "train": "not_read.csv", "test": ""},
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 128, "puzzle_emb_len": 8,
    "cycles": 3, "latent_steps": 2, "dtype": "float32", "remat": "none",
  },
  "train": {"batch_size": 16, "steps_per_dispatch": 1, "augment": False},
  "eval": {"batch_size": 16},
}  # fmt: skip


def _experiment(**sections):
  values = {name: dict(section) for name, section in _TINY.items()}
  for name, section in sections.items():
    values.setdefault(name, {}).update(section)
  return config.read(values)


def test_the_real_step_has_the_flops_of_the_analytic_count():
  """On forced CPU devices, so where there is no libtpu too."""
  experiment = _experiment(model={"puzzle_emb_ndim": 16, "puzzle_emb_len": 1})
  mesh = sharding.make_mesh()
  data = program.expected_size(experiment)
  laid_out = trainer.lay_out(experiment, mesh)
  table = program.described_table(experiment, mesh, data)
  lowered = laid_out.dispatch.lower(
    laid_out.abstract, table, laid_out.recipe.choices(0, 1)
  )
  counts = cost.count(lowered.compile())
  analytic = laid_out.recipe.training_flops(1)
  assert counts.flops * mesh.size == pytest.approx(analytic, rel=0.02)
  trips = [one.trips for one in counts.loops if one.recursive]
  assert trips
  assert None not in trips


def _placed(leaf):
  return leaf.shape, leaf.dtype, leaf.sharding


def test_large_data_is_spread_as_the_loop_does(monkeypatch):
  monkeypatch.setattr(trainer, "_SHARED_FROM", 2**10)
  experiment = _experiment()
  mesh = sharding.make_mesh()
  rows = 99
  data = program.DataSize(rows=rows, copies=1, puzzle_ids=1)
  table = program.described_table(experiment, mesh, data)
  there = trainer.stage(synthetic.split(experiment.task, rows), mesh)
  assert jax.tree.map(_placed, table) == jax.tree.map(_placed, there)
  assert table.inputs.shape == (104, experiment.task.seq_len)
  assert table.num_rows == rows


@pytest.mark.parametrize(
  ("data", "rows", "copies", "ids"),
  [
    ({"task": "sudoku", "subsample": 1000}, 1000, 1, 1),
    ({"task": "sudoku", "subsample": 0}, 3_831_994, 1, 1),
    ({"task": "sudoku", "train": "generate", "num_train": 70}, 70, 1, 1),
    ({"task": "maze"}, 1000, 1, 1),
    ({"task": "arc", "train": "a", "test": "b"}, 876, 1001, 876_407),
    ({"task": "arc", "test": "ARC-AGI-2/data"}, 1191, 1001, 1_191_730),
    ({"task": "arc", "test": "b", "only": "x,y", "num_aug": 7}, 2, 8, 17),
  ],
)
def test_the_size_of_data_follows_from_the_config(data, rows, copies, ids):
  experiment = config.read({"data": data})
  assert program.expected_size(experiment) == program.DataSize(
    rows, copies, ids
  )
  told = program.expected_size(experiment, rows=5, puzzle_ids=6)
  assert told == program.DataSize(5, copies, 6)


@pytest.mark.parametrize("chip", chips.TPUS.values(), ids=lambda c: c.name)
def test_the_bound_is_the_slowest_of_three(chip):
  flops, moved = chip.peak_flops["bfloat16"], chip.bandwidth
  times = estimate.bound(chip, "bfloat16", flops, moved / 2, 0.0)
  # A chip of two devices takes twice as long on one of them.
  assert times.compute == pytest.approx(chip.devices)
  assert times.memory == pytest.approx(chip.devices / 2)
  assert (times.limit, times.seconds) == ("compute", times.compute)
  times = estimate.bound(chip, "float32", 0.0, moved, 2 * chip.interconnect)
  assert (times.limit, times.seconds) == ("interconnect", times.interconnect)


@pytest.mark.parametrize(
  ("message", "needed", "usable", "largest"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (20.50G) exceeds available HBM (15.75G).",
      int(20.5 * 2**30), int(15.75 * 2**30), (),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.50G "
      "of 16.00G hbm. Exceeded hbm capacity by 25.50G.\n\n"
      "  Largest program allocations in hbm:\n\n"
      '  1. Size: 32.00G\n     Operator: op_name="jit(f)/mul"\n'
      "     Shape: s32[8388608,8,4]{2,1,0:T(8,128)}\n"
      "     Unpadded size: 1.00G\n\n"
      "  2. Size: 512.00M\n     Shape: f32[1]{0}\n",
      int(41.5 * 2**30), 16 * 2**30,
      ('32.00G op_name="jit(f)/mul" s32[8388608,8,4]{2,1,0:T(8,128)}',
       "512.00M f32[1]{0}"),
    ),
    ("RESOURCE_EXHAUSTED: no more", 0, chips.TPUS["v5e"].usable_bytes, ()),
  ],
)  # fmt: skip
def test_a_refusal_says_what_it_would_need(message, needed, usable, largest):
  found = estimate.read_refusal(message, chips.TPUS["v5e"])
  assert (found.needed, found.usable) == (needed, usable)
  assert found.largest == largest
  assert found.message == message.splitlines()[0]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e:3", r"expected v5e:AxB.*Examples: v5e:4x4"),
    ("v4:2x2", "expected v4:AxBxC"),
    ("v5e:0x2", "expected v5e:AxB"),
    ("V5E:2x2", r"must be one of v4, v5e.*did you mean 'v5e'"),
    ("h100:8", "must be one of v4, v5e"),
    ("", "must be one of v4, v5e"),
  ],
)
def test_a_mistyped_slice_is_explained(name, message):
  with pytest.raises(UserError, match=message):
    topology.describe(name)


def test_without_libtpu_there_is_an_install_line(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'trm_jax\[tpu\]'"):
    topology.describe("v5e:2x2")


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know_is_explained():
  with pytest.raises(UserError, match=r"no such slice: .*Examples"):
    topology.describe("v5e:3x3")


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "chips_in_it", "devices", "hosts"),
  [
    ("v4:2x2x1", 4, 4, 1),
    ("v5e:1x1", 1, 1, 1),
    ("v5e:4x4", 16, 16, 4),
    ("v5p:4x4x4", 64, 64, 16),
    ("v6e:16x16", 256, 256, 64),
    ("tpu7x:2x2x1", 4, 8, 1),
  ],
)
def test_slices_have_their_chips(name, chips_in_it, devices, hosts):
  one = topology.describe(name)
  assert (one.chips, len(one.devices), one.hosts) == (
    chips_in_it, devices, hosts,
  )  # fmt: skip
  assert len(one.host) == devices // hosts
  assert name.startswith(one.chip.name)


@needs_libtpu
@pytest.mark.parametrize("kind", chips.TPUS)
def test_usable_memory_is_what_the_compiler_says(kind):
  shape = "1x1x1" if chips.TPUS[kind].dimensions == 3 else "1x1"
  one = topology.describe(f"{kind}:{shape}")
  mesh = jax.make_mesh(
    (len(one.devices),), ("data",), devices=one.devices,
    axis_types=(jax.sharding.AxisType.Auto,),
  )  # fmt: skip
  much = jax.ShapeDtypeStruct(
    (300, 2**30), jnp.uint8, sharding=sharding.replicated(mesh)
  )
  lowered = jax.jit(lambda x: jnp.sort(x, axis=0).sum()).lower(much)
  with pytest.raises(jax.errors.JaxRuntimeError) as raised:
    lowered.compile()
  found = estimate.read_refusal(str(raised.value), chips.TPUS[kind])
  assert found.needed > 300 * 2**30
  assert found.usable == chips.TPUS[kind].usable_bytes


def _train(name: str, puzzle_ids: int, **sections) -> Estimate | TooLarge:
  experiment, one = _experiment(**sections), topology.describe(name)
  data = program.expected_size(experiment, puzzle_ids=puzzle_ids)
  return estimate.estimate(program.training(experiment, one, data), one)


@pytest.fixture(scope="module")
def small() -> Estimate:
  found = _train("v5e:2x2", 2**14)
  assert isinstance(found, Estimate)
  return found


@needs_libtpu
def test_the_step_compiles_for_a_tpu(small):
  """Law 11, with the figures of the program as of the analytic count."""
  assert small.flops_run * 4 == pytest.approx(small.flops, rel=0.01)
  memory = small.memory
  assert 0 < memory.needed < memory.usable
  # Donated: the state is written where it was.
  assert memory.aliased > 0.95 * memory.outputs
  assert small.times.seconds > 0
  assert 0 < small.utilisation <= 1.01


@needs_libtpu
def test_a_data_mesh_reduces_gradients_once_and_outside_the_recursion(small):
  assert any(one.recursive for one in small.loops)
  assert not [one for one in small.collectives if one.recursive]
  # Gradients of the weights; beside them ids, counts and puzzle rows.
  rows = 16 * 128 * 4
  large = [
    one for one in small.collectives if one.bytes > 128 and one.bytes != rows
  ]
  (reduction,) = large
  assert (reduction.kind, reduction.times) == ("all-reduce", 1)
  assert reduction.group_size == 4
  leaves = jax.tree.leaves(
    trainer.lay_out(_experiment(), sharding.make_mesh()).abstract.params.weights
  )
  weights = sum(4 * math.prod(leaf.shape) for leaf in leaves)
  assert weights <= reduction.bytes <= weights + 2 * rows + 256


@needs_libtpu
def test_the_puzzle_table_moves_touched_rows_alone(small):
  """16 times the rows: more arguments, and nothing else."""
  large = _train("v5e:2x2", 2**18)
  assert isinstance(large, Estimate)
  more = (2**18 - 2**14) * 128 * 4 // 4  # on each of 4 devices
  assert large.memory.arguments - small.memory.arguments == more
  grown = large.memory.temporaries - small.memory.temporaries
  assert grown < more / 100

  def moved(found):
    return sorted((c.kind, c.bytes, c.times) for c in found.collectives)

  assert moved(large) == moved(small)
  # The small one even goes to the fast memory and back.
  assert large.bytes < min(1.01 * small.bytes, more / 10)


@needs_libtpu
def test_a_model_axis_talks_inside_the_recursion():
  found = _train("v6e:2x2", 1, mesh={"model": 2})
  assert isinstance(found, Estimate)
  inside = [one for one in found.collectives if one.recursive]
  assert inside
  assert {one.group_size for one in inside} == {2}
  assert max(one.times for one in inside) >= 4


@needs_libtpu
def test_the_engine_compiles_for_one_host_of_a_slice():
  experiment, one = _experiment(), topology.describe("v4:2x2x2")
  assert one.hosts == 2
  data = program.expected_size(experiment)
  work = program.solving(experiment, one, data, 32, SolveConfig())
  found = estimate.estimate(work, one)
  assert isinstance(found, Estimate)
  assert not [c for c in found.collectives if c.recursive]
  assert found.flops_run * 4 == pytest.approx(found.flops, rel=0.05)


@needs_libtpu
def test_any_mesh_lies_on_a_pod():
  """A side of 16 chips is split where an axis is shorter."""
  devices = topology.describe("v6e:16x16").devices
  for data, model, members in ((-1, 1, 8), (-1, 4, 0), (16, 16, 2)):
    mesh = sharding.make_mesh(data, model, members, devices=devices)
    assert mesh.size == 256
    assert len({device.id for device in mesh.devices.flat}) == 256


@needs_libtpu
def test_members_divide_the_devices_and_do_not_meet():
  experiment = _experiment(model={"cycles": 2, "latent_steps": 1})
  one = topology.describe("tpu7x:1x1x1")
  data = program.expected_size(experiment)
  work = program.training(experiment, one, data, seeds=(0, 1))
  found = estimate.estimate(work, one)
  assert isinstance(found, Estimate)
  # But for their metrics, which every device gets, and the shuffle's end.
  assert all(one.bytes < 256 for one in found.collectives)
  assert not [one for one in found.collectives if one.recursive]
  assert found.flops_run * 2 == pytest.approx(found.flops, rel=0.01)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """name -> (status, output) of `trm compile` with some flags."""
  flags = {
    "too large": "--topology=v5e:2x2 --json --require_fit "
    f"--puzzle_ids={2**28}",
    "no slice": "",
    "too many": "--topology=v6e:16x16",
  }
  commands = {
    name: ["compile", "--config=configs/demo.py", *line.split()]
    for name, line in flags.items()
  }
  return run_in_forks(commands, tmp_path_factory.mktemp("aot"), devices=1)


@needs_libtpu
def test_the_program_says_what_does_not_fit(printed):
  status, text = printed["too large"]
  assert status == 1, text
  found = json.loads(next(x for x in text.splitlines() if x[0] == "{"))
  (row,) = found["programs"]
  assert not row["fits"]
  assert row["needed"] >= 2**28 * 96 * 4 / 4 > row["usable"]
  assert "does not fit" in text
  # What libtpu has to say about machines is kept from the user.
  assert "TPU_" not in text


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("no slice", "--topology is missing"),
    ("too many", "must be a multiple of the 256 devices"),
  ],
)
def test_bad_flags_are_explained(printed, name, says):
  status, text = printed[name]
  assert status == 2
  assert says in text
