"""What is compiled ahead of time, and what is read of it."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import run_program

from trm_jax import config
from trm_jax.data import synthetic
from trm_jax.errors import UserError
from trm_jax.inspect import chips, estimate, hlo, listing, program, topology
from trm_jax.inspect.estimate import Compiled, TooLarge
from trm_jax.run import sharding
from trm_jax.solve.rules import SolveConfig
from trm_jax.train import loop as fit

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

# Tiny, but with rows of the puzzle table that fill the lanes of a TPU: narrower
# ones are stored the other way round, and copied once a dispatch.
_TINY = {
  "data": {
    "task": "sudoku", "size": 4, "train": "generate", "test": "generate",
    "num_train": 40, "num_test": 12, "givens": (5, 8),
  },
  "model": {
    "width": 16, "layers": 1, "heads": 2, "expansion": 2.0,
    "inner_multiple": 8, "puzzle_emb_ndim": 128, "puzzle_emb_len": 8,
    "cycles": 3, "latent_steps": 2, "dtype": "float32", "remat": "none",
  },
  "halting": {"max_steps": 4},
  "train": {
    "steps": 40, "batch_size": 16, "steps_per_dispatch": 1, "log_every": 2,
    "augment": False,
  },
  "eval": {"batch_size": 16, "every": 8, "depth": 4},
  "checkpoint": {"every": 4},
}  # fmt: skip


def _experiment(**sections):
  values = {name: dict(section) for name, section in _TINY.items()}
  for name, section in sections.items():
    values.setdefault(name, {}).update(section)
  return config.read(values)


# As the TPU's compiler writes: no trip counts, tiles, and memory spaces. An
# outer loop of 3 from 0, an inner one of 4 from 8 down in steps of 2.
_TEXT = (DATA / "nested_loops.hlo").read_text()


def test_loops_count_as_often_as_they_run():
  counts = hlo.Module(_TEXT).count()
  assert counts.loops == (
    hlo.Loop("while.1", 3, "trm_jax/train.py:10 train_steps", False),
    hlo.Loop("while.2", 4, "core/recursion.py:20 think", True),
  )
  assert counts.flops == 3 * 4 * 2 * 97 * 512 * 512
  assert (counts.fusions, counts.fusions_run) == (2, 2 * 3 * 4)
  assert counts.cycles == 3 * 4 * 100  # and not what stands for unknown


def test_bytes_are_of_main_memory_of_parts_and_with_padding():
  counts = hlo.Module(_TEXT).count()
  row = 104 * 512 * 2  # 97 rows are padded to a multiple of 8
  # One fusion reads a slice and writes a row, the other reads and stores it.
  rows = 3 * 4 * 4 * row
  scalar = 128 * 4
  # The fusions' index, the counter's addition, copies and comparisons.
  assert 0 <= counts.bytes - rows - 2 * 512 <= 3 * 5 * 16 * scalar


def test_a_collective_is_found_where_it_is_offloaded_to():
  (one,) = hlo.Module(_TEXT).count().collectives
  assert (one.kind, one.dtypes, one.bytes) == ("all-reduce", ("f32",), 400)
  assert (one.groups, one.group_size, one.times) == (2, 2, 1)
  assert one.sent == 400  # both halves to the other one, and back
  assert not one.recursive
  assert one.where == "trm_jax/train.py:10 train_steps"


def test_a_loop_that_data_decide_counts_once():
  text = _TEXT.replace("%three = s32[]{:T(128)} constant(3)",
                       "%three = s32[]{:T(128)} parameter(3)")  # fmt: skip
  counts = hlo.Module(text).count()
  assert [loop.trips for loop in counts.loops] == [None, 4]
  assert counts.flops == 4 * 2 * 97 * 512 * 512


@pytest.mark.parametrize(
  ("written", "groups", "size"),
  [
    ("replica_groups={{0,1,2,3}}", 1, 4),
    ("replica_groups={{0,2},{1,3}}", 2, 2),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", 2, 2),
    ("replica_groups=mesh['axis_0'=4] {'axis_0'}", 1, 4),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a'}", 2, 2),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", 1, 4),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", 2, 2),
    ("replica_groups={}", 1, 4),
  ],
)
def test_groups_of_devices_are_read_in_all_their_forms(written, groups, size):
  text = _TEXT.replace("replica_groups=[2,2]<=[4]", written)
  (one,) = hlo.Module(text).count().collectives
  assert (one.groups, one.group_size) == (groups, size)
  assert one.sent == 2 * 400 * (size - 1) / size


@given(
  dims=st.lists(st.integers(1, 300), min_size=2, max_size=3),
  tile=st.tuples(*2 * [st.sampled_from([1, 2, 8, 128])]),
)
def test_padding_is_a_multiple_of_the_tile_and_no_more(dims, tile):
  array = listing.Array("bf16", tuple(dims), (), tile)
  assert array.bytes == 2 * math.prod(dims)
  padded = [-(-size // t) * t for size, t in zip(dims[-2:], tile, strict=True)]
  assert array.padded_bytes == 2 * math.prod(dims[:-2] + padded)
  turned = dataclasses.replace(
    array, dims=tuple(reversed(dims)), order=tuple(range(len(dims)))
  )
  assert turned.padded_bytes == array.padded_bytes
  assert dataclasses.replace(array, space=1).traffic == 0


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.Module("HloModule nothing")


@settings(max_examples=3, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6))
def test_nested_scans_compiled_here_count_exactly(outer, inner):
  def inside(x, w):
    return jnp.tanh(x @ w), None

  def scans(x, ws):
    def around(x, _):
      return jax.lax.scan(inside, x, ws)[0], None

    return jax.lax.scan(around, x, None, length=outer)[0]

  x = jax.ShapeDtypeStruct((8, 32), jnp.float32)
  ws = jax.ShapeDtypeStruct((inner, 32, 32), jnp.float32)
  text = jax.jit(scans).lower(x, ws).compile().as_text()
  counts = hlo.Module(text, recursion="test_aot.py").count()
  assert counts.flops == outer * inner * 2 * 8 * 32 * 32
  assert {loop.trips for loop in counts.loops} == {outer, inner}
  assert all(loop.recursive for loop in counts.loops)
  weights = outer * inner * 32 * 32 * 4
  assert weights <= counts.bytes < 20 * weights


def test_a_convolution_counts_no_padding():
  text = """ENTRY %main (x: f32[2,10,3], w: f32[5,3,7]) -> f32[2,10,7] {
  %x = f32[2,10,3]{2,1,0} parameter(0)
  %w = f32[5,3,7]{2,1,0} parameter(1)
  ROOT %y = f32[2,10,7]{2,1,0} convolution(%x, %w), WINDOW, dim_labels=b0f_0io->b0f
}"""  # noqa: E501
  padded = hlo.Module(text.replace("WINDOW", "window={size=5 pad=2_2}")).count()
  # Of 50 places, 2 + 1 lie over each edge.
  assert padded.flops == 2 * 2 * 7 * 3 * (50 - 6)
  # Between 10 numbers with holes, every other place; over the edges 1 of 2.
  dilated = hlo.Module(
    text.replace("WINDOW", "window={size=5 stride=2 pad=2_2 lhs_dilate=2}")
  ).count()
  assert dilated.flops == 2 * 2 * 7 * 3 * (10 * 3 - 2)


def test_the_real_step_has_the_flops_of_the_analytic_count():
  """On forced CPU devices, so where there is no libtpu too."""
  experiment = _experiment(model={"puzzle_emb_ndim": 16, "puzzle_emb_len": 1})
  mesh = sharding.make_mesh()
  data = program.assume(experiment)
  laid_out = fit.lay_out(experiment, mesh)
  table = program._stage(experiment, mesh, data)
  lowered = laid_out.dispatch.lower(
    laid_out.abstract, table, laid_out.recipe.choices(0, 1)
  )
  counts = hlo.Module(lowered.compile().as_text()).count()
  analytic = laid_out.recipe.training_flops(1)
  assert counts.flops * mesh.size == pytest.approx(analytic, rel=0.02)
  trips = [one.trips for one in counts.loops if one.recursive]
  assert trips
  assert None not in trips


def _placed(leaf):
  return leaf.shape, leaf.dtype, leaf.sharding


def test_large_data_is_spread_as_the_loop_does(monkeypatch):
  monkeypatch.setattr(fit, "_SHARED_FROM", 2**10)
  experiment = _experiment()
  mesh = sharding.make_mesh()
  rows = 99
  data = program.Data(rows=rows, copies=1, puzzle_ids=1)
  table = program._stage(experiment, mesh, data)
  there = fit.stage(synthetic.split(experiment.task, rows), mesh)
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
  assert program.assume(experiment) == program.Data(rows, copies, ids)
  told = program.assume(experiment, rows=5, puzzle_ids=6)
  assert told == program.Data(5, copies, 6)


@pytest.mark.parametrize("name", chips.SLICES)
def test_the_bound_is_the_slowest_of_three(name):
  kind, chip = chips.SLICES[name], chips.CHIPS[name]
  flops, moved = chip.peak_flops["bfloat16"], chip.bandwidth
  times = estimate.bound(kind, "bfloat16", flops, moved / 2, 0.0)
  # A chip of two devices takes twice as long on one of them.
  assert times.compute == pytest.approx(kind.devices)
  assert times.memory == pytest.approx(kind.devices / 2)
  assert (times.limit, times.seconds) == ("compute", times.compute)
  times = estimate.bound(kind, "float32", 0.0, moved, 2 * kind.interconnect)
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
    ("RESOURCE_EXHAUSTED: no more", 0, chips.SLICES["v5e"].usable_bytes, ()),
  ],
)  # fmt: skip
def test_a_refusal_says_what_it_would_need(message, needed, usable, largest):
  found = estimate.read_refusal(message, chips.SLICES["v5e"])
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
@pytest.mark.parametrize("kind", chips.SLICES)
def test_usable_memory_is_what_the_compiler_says(kind):
  shape = "1x1x1" if chips.SLICES[kind].dimensions == 3 else "1x1"
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
  found = estimate.read_refusal(str(raised.value), chips.SLICES[kind])
  assert found.needed > 300 * 2**30
  assert found.usable == chips.SLICES[kind].usable_bytes


def _train(name: str, puzzle_ids: int, **sections) -> Compiled | TooLarge:
  experiment, one = _experiment(**sections), topology.describe(name)
  data = program.assume(experiment, puzzle_ids=puzzle_ids)
  return estimate.compile_work(program.training(experiment, one, data), one)


@pytest.fixture(scope="module")
def small() -> Compiled:
  found = _train("v5e:2x2", 2**14)
  assert isinstance(found, Compiled)
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
  assert small.fusions_run > small.fusions > 10


@needs_libtpu
def test_a_data_mesh_reduces_gradients_once_and_outside_the_recursion(small):
  assert any(loop.recursive for loop in small.loops)
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
    fit.lay_out(_experiment(), sharding.make_mesh()).abstract.params.weights
  )
  weights = sum(4 * math.prod(leaf.shape) for leaf in leaves)
  assert weights <= reduction.bytes <= weights + 2 * rows + 256


@needs_libtpu
def test_the_puzzle_table_moves_touched_rows_alone(small):
  """16 times the rows: more arguments, and nothing else."""
  large = _train("v5e:2x2", 2**18)
  assert isinstance(large, Compiled)
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
  assert isinstance(found, Compiled)
  inside = [one for one in found.collectives if one.recursive]
  assert inside
  assert {one.group_size for one in inside} == {2}
  assert max(one.times for one in inside) >= 4


@needs_libtpu
def test_the_engine_compiles_for_one_host_of_a_slice():
  experiment, one = _experiment(), topology.describe("v4:2x2x2")
  assert one.hosts == 2
  data = program.assume(experiment)
  work = program.solving(experiment, one, data, 32, SolveConfig())
  found = estimate.compile_work(work, one)
  assert isinstance(found, Compiled)
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
  data = program.assume(experiment)
  work = program.population_training("2 seeds", experiment, (0, 1), one, data)
  found = estimate.compile_work(work, one)
  assert isinstance(found, Compiled)
  # But for their metrics, which every device gets, and the shuffle's end.
  assert all(one.bytes < 256 for one in found.collectives)
  assert not [one for one in found.collectives if one.recursive]
  assert found.flops_run * 2 == pytest.approx(found.flops, rel=0.01)


@needs_libtpu
def test_the_program_says_what_does_not_fit():
  flags = [
    "--config=configs/demo.py", "--topology=v5e:2x2",
    f"--puzzle_ids={2**28}",
  ]  # fmt: skip
  printed = run_program("compile", *flags, "--json", "--require_fit", status=1)
  found = json.loads(next(x for x in printed.splitlines() if x[0] == "{"))
  (row,) = found["programs"]
  assert not row["fits"]
  assert row["needed"] >= 2**28 * 96 * 4 / 4 > row["usable"]
  assert "does not fit" in printed
  # What libtpu has to say about machines is kept from the user.
  assert "TPU_" not in printed


@needs_libtpu
def test_bad_flags_are_explained():
  printed = run_program("compile", "--config=configs/demo.py", status=2)
  assert "--topology is missing" in printed
  printed = run_program(
    "compile", "--config=configs/demo.py", "--topology=v6e:16x16", status=2
  )
  assert "must be a multiple of the 256 devices" in printed
