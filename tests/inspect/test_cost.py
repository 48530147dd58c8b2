"""What a compiled program does, counted over its loops, on any machine."""

import math

import jax
import jax.numpy as jnp
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxlib import _hlo  # reads programs from text, for these tests alone

from trm_jax.inspect import cost, hlo

pytestmark = pytest.mark.usefixtures("compiled_here")

# As the TPU's compiler writes: no trip counts, tiles, and memory spaces. An
# outer loop of 3 from 0, an inner one of 4 from 8 down in steps of 2.
_TEXT = (DATA / "nested_loops.hlo").read_text()


def _count(text: str) -> cost.Counts:
  written = _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()
  return cost.count(hlo.Module(hlo.message("Module").FromString(written), 4))


def test_loops_count_as_often_as_they_run():
  counts = _count(_TEXT)
  assert counts.loops == (
    cost.Loop("trm_jax/train.py:10 train_steps", 3, False),
    cost.Loop("core/recursion.py:20 think", 4, True),
  )
  assert counts.flops == 3 * 4 * 2 * 97 * 512 * 512
  assert counts.cycles == 3 * 4 * 100  # and not what stands for unknown


def test_bytes_are_of_main_memory_of_parts_and_with_padding():
  counts = _count(_TEXT)
  row = 104 * 512 * 2  # 97 rows are padded to a multiple of 8
  # One fusion reads a slice and writes a row, the other reads and stores it.
  rows = 3 * 4 * 4 * row
  scalar = 128 * 4
  # The fusions' index, the counter's addition, copies and comparisons.
  assert 0 <= counts.bytes - rows - 2 * 512 <= 3 * 5 * 16 * scalar


def test_a_collective_is_found_where_it_is_offloaded_to():
  (one,) = _count(_TEXT).collectives
  assert (one.kind, one.dtypes, one.bytes) == ("all-reduce", ("f32",), 400)
  assert (one.groups, one.group_size, one.times) == (2, 2, 1)
  assert one.sent == 400  # both halves to the other one, and back
  assert not one.recursive
  assert one.where == "trm_jax/train.py:10 train_steps"


def test_a_loop_that_data_decide_counts_once():
  text = _TEXT.replace("%three = s32[]{:T(128)} constant(3)",
                       "%three = s32[]{:T(128)} parameter(3)")  # fmt: skip
  counts = _count(text)
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
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", 2, 2),
    ("replica_groups={}", 1, 4),
  ],
)
def test_groups_of_devices_are_read_in_all_their_forms(written, groups, size):
  text = _TEXT.replace("replica_groups=[2,2]<=[4]", written)
  (one,) = _count(text).collectives
  assert (one.groups, one.group_size) == (groups, size)
  assert one.sent == 2 * 400 * (size - 1) / size


@given(
  dims=st.lists(st.integers(1, 300), min_size=2, max_size=3),
  tile=st.tuples(*2 * [st.sampled_from([1, 2, 8, 128])]),
)
def test_padding_is_a_multiple_of_the_tile_and_no_more(dims, tile):
  bf16, order = 16, range(len(dims))
  layout = {"minor_to_major": order[::-1], "tiles": [{"values": tile}]}
  shape = {"element_type": bf16, "dimensions": dims, "layout": layout}
  array = hlo.message("Shape")(**shape)
  assert hlo.data_bytes(array) == 2 * math.prod(dims)
  padded = [-(-size // t) * t for size, t in zip(dims[-2:], tile, strict=True)]
  assert hlo.padded_bytes(array) == 2 * math.prod(dims[:-2] + padded)
  layout["minor_to_major"] = order
  turned = hlo.message("Shape")(**shape | {"dimensions": dims[::-1]})
  assert hlo.padded_bytes(turned) == hlo.padded_bytes(array)


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
  compiled = jax.jit(scans).lower(x, ws).compile()
  counts = cost.count(compiled, recursion="test_cost.py")
  assert counts.flops == outer * inner * 2 * 8 * 32 * 32
  assert {loop.trips for loop in counts.loops} == {outer, inner}
  assert all(loop.recursive for loop in counts.loops)
  weights = outer * inner * 32 * 32 * 4
  assert weights <= counts.bytes < 20 * weights


def test_a_convolution_counts_no_padding():
  text = """HloModule products

ENTRY %main (x: f32[2,10,3], w: f32[5,3,7]) -> f32[2,10,7] {
  %x = f32[2,10,3]{2,1,0} parameter(0)
  %w = f32[5,3,7]{2,1,0} parameter(1)
  ROOT %y = f32[2,10,7]{2,1,0} convolution(%x, %w), WINDOW, dim_labels=b0f_0io->b0f
}"""  # noqa: E501
  padded = _count(text.replace("WINDOW", "window={size=5 pad=2_2}"))
  # Of 50 places, 2 + 1 lie over each edge.
  assert padded.flops == 2 * 2 * 7 * 3 * (50 - 6)
  # Between 10 numbers with holes, every other place; over the edges 1 of 2.
  dilated = _count(
    text.replace("WINDOW", "window={size=5 stride=2 pad=2_2 lhs_dilate=2}")
  )
  assert dilated.flops == 2 * 2 * 7 * 3 * (10 * 3 - 2)
