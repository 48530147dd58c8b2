"""Traces: whose time it was, on every kind of device, and the program."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.profiler import ProfileData
from programs import TINY, run_in_forks

from trm_jax.errors import UserError
from trm_jax.inspect import cost, trace
from trm_jax.inspect.hlo import Module

pytestmark = pytest.mark.usefixtures("compiled_here")

COMMANDS = {
  "train": "profile {tiny} --steps=3 --json",
  "evaluate": "profile {tiny} --what=evaluate --steps=1 --top=5",
  "solve": "profile {tiny} --what=solve --steps=5 --json",
  "no_steps": "profile {tiny} --steps=0",
  "no_such": "profile {tiny} --what=guess",
  "in_the_way": "profile {tiny} --out={folder}/file",
  "population": "benchmark {config} --config.model.family=transformer "
  "--config.train.augment=False "
  "--seeds=2 --seconds=0.1 --json",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """name -> (status, output) of `COMMANDS`, on two devices."""
  folder = tmp_path_factory.mktemp("profile")
  (folder / "file").write_text("mine")
  config = " ".join(TINY(folder))
  tiny = f"{config} --out={folder}/out"
  return folder, run_in_forks(
    {
      name: command.format(tiny=tiny, config=config, folder=folder).split()
      for name, command in COMMANDS.items()
    },
    folder,
    devices=2,
  )


def _report(printed, name):
  status, text = printed[1][name]
  assert status == 0, text
  return json.loads(text.splitlines()[-1])


@pytest.mark.parametrize("name", ["train", "solve"])
def test_a_report_accounts_for_all_that_ran(printed, name):
  report = _report(printed, name)
  assert report["devices"] == 2
  assert 0 < report["busy"] <= 1 + 1e-9
  assert sum(p["fraction"] for p in report["parts"].values()) == pytest.approx(
    1
  )
  shares = [row["fraction"] for row in report["operations"]]
  assert shares == sorted(shares, reverse=True)
  assert len(shares) == 10
  # Steps are those of whole dispatches of 2, or of rounds of depth 4.
  assert report["steps"] == {"train": 4, "solve": 8}[name]
  assert any("network.py" in line for r in report["operations"]
             for line in r["lines"])  # fmt: skip
  products = [r for r in report["operations"] if r["gflops_a_second"]]
  assert all(row["gbytes_a_second"] > 0 for row in products)


def test_the_parts_of_training_are_told_apart(printed):
  parts = _report(printed, "train")["parts"]
  for part in (
    "norms", "heads", "loss and metrics", "drawing puzzles", "optimizer",
    "puzzle table", "halting", "embedding",
  ):  # fmt: skip
    assert parts[part]["fraction"] > 0, part
  assert 0 < parts["norms"]["backward"] < parts["norms"]["fraction"]
  assert parts["drawing puzzles"]["backward"] == 0


def test_every_trace_has_a_folder_of_its_own_and_says_where(printed):
  folder, done = printed
  status, text = done["evaluate"]
  assert status == 0, text
  for words in ("ui.perfetto.dev", "xprof --logdir=", "Busy for", "norms"):
    assert words in text
  kept = list((folder / "out").glob("plugins/profile/*/*.xplane.pb"))
  assert len(kept) == 3
  for file in kept:
    perfetto = file.with_name("perfetto_trace.json.gz")
    assert sum(str(perfetto) in text for _, text in done.values()) == 1
    with gzip.open(perfetto) as opened:
      assert json.load(opened)["traceEvents"]


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("no_steps", "--steps=0"),
    ("no_such", "train|evaluate|solve"),
    ("in_the_way", r"file: cannot be written to"),
  ],
)
def test_a_mistake_is_told_in_a_line(printed, name, says):
  status, text = printed[1][name]
  assert status == 2
  assert says in text
  assert "Traceback" not in text


def test_a_member_costs_its_device_what_a_run_costs(printed):
  report = _report(printed, "population")
  assert set(report) == {
    "device", "1 run, 1 device", "2 members, 2 devices", "ratio",
  }  # fmt: skip
  assert report["ratio"]["GFLOP a step"] == pytest.approx(1)
  assert report["ratio"]["memory, MiB"] == pytest.approx(1, abs=0.05)
  assert report["ratio"]["memory traffic a step, GB"] == pytest.approx(
    1, abs=0.05
  )


def test_what_is_seen_to_run_is_what_the_text_says_runs(tmp_path):
  """Products as often as the trace saw them, and as loops promise them."""

  def recur(weights, x):
    def step(x, _):
      x, _ = jax.lax.scan(
        lambda x, _: (jnp.tanh(x @ weights), None), x, None, 3
      )
      return jnp.tanh(x @ weights.T), None

    return jnp.sum(jax.lax.scan(step, x, None, 5)[0])

  weights = x = jnp.ones((64, 64))
  compiled = jax.jit(jax.grad(recur)).lower(weights, x).compile()
  jax.block_until_ready(compiled(weights, x))
  with jax.profiler.trace(str(tmp_path)):
    for _ in range(2):
      jax.block_until_ready(compiled(weights, x))
  [file] = tmp_path.glob("plugins/profile/*/*.xplane.pb")
  found = trace.read(file)
  flops = sum(found.source(o).flops * o.calls for o in found.operations)
  assert flops == 2 * cost.count(compiled).flops
  # Forward once, backward twice, but for what only leads to x.
  assert 2 * 59 <= flops / (2 * 64**3) <= 2 * 60
  assert {o.module for o in found.operations} <= {
    p.name for p in found.programs
  }


def _trained(weights, x):
  with jax.named_scope("mixer"):
    x = jnp.tanh(x @ weights)
  with jax.named_scope("mlp"):
    x = x @ weights.T
  return jnp.sum(x**2)


def test_operations_know_their_scope_line_and_direction():
  shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  compiled = jax.jit(jax.grad(_trained)).lower(shape, shape).compile()
  program = Module.of(compiled)
  products = [
    trace.read_source(program, name)
    for name, (_, one) in program.places.items()
    if one.opcode == "dot"
  ]
  first = _trained.__code__.co_firstlineno
  found = {
    (one.part, one.backward, one.lines[0][1] - first) for one in products
  }
  # x is not differentiated, so "mixer" has one product on the way back.
  assert found == {
    ("mixer", False, 2), ("mixer", True, 2),
    ("mlp", False, 4), ("mlp", True, 4),
  }  # fmt: skip
  assert {one.path.split("/")[0] for one in products} == {"mixer", "mlp"}
  assert all(one.flops == 2 * 64**3 for one in products)
  assert all(one.bytes == 3 * 4 * 64**2 for one in products)


def _space(planes):
  """A trace: plane -> line -> (name, start, end, module or None), in ns."""
  text = ""
  for number, (plane, lines) in enumerate(planes.items(), 1):
    names = sorted({event[0] for events in lines.values() for event in events})
    text += f'planes {{ id: {number} name: "{plane}"\n'
    for key, stat in enumerate(("hlo_op", "hlo_module"), 1):
      text += (
        f'stat_metadata {{ key: {key} value {{ id: {key} name: "{stat}" }} }}\n'
      )
    for key, name in enumerate(names, 1):
      text += (
        f"event_metadata {{ key: {key} value "
        f'{{ id: {key} name: "{name}" }} }}\n'
      )
    for key, (line, events) in enumerate(lines.items(), 1):
      text += f'lines {{ id: {key} name: "{line}"\n'
      for name, start, end, module in events:
        stats = ""
        if module:
          stats = (
            f'stats {{ metadata_id: 1 str_value: "op.{name}" }} '
            f'stats {{ metadata_id: 2 str_value: "{module}" }}'
          )
        text += (
          f"events {{ metadata_id: {names.index(name) + 1} "
          f"offset_ps: {start * 1000} duration_ps: {(end - start) * 1000} "
          f"{stats} }}\n"
        )
      text += "}\n"
    text += "}\n"
  return trace.add_up(ProfileData.from_text_proto(text))


def _times(found):
  return {
    (o.module, o.name): (round(o.seconds * 1e9), o.calls)
    for o in found.operations
  }


def test_a_tpu_is_read_from_its_line_of_operations():
  """As a TPU tells it: instructions by their text, and loops around them."""
  ops = [
    ("%while.1 = (f32[8]) while(%a), body=%b", 0, 100, None),
    ("%fusion.2 = f32[8]{0} fusion(%c)", 10, 40, None),
    ("%fusion.2 = f32[8]{0} fusion(%c)", 50, 80, None),
    ("%copy.3 = f32[8]{0} copy(%d)", 150, 200, None),
  ]
  found = _space(
    {
      "/device:TPU:0": {"XLA Ops": ops, "XLA Modules": [("jit_f", 0, 200, "")],
                        "Steps": [("1", 0, 200, None)]},
      "/device:TPU:1": {"XLA Ops": ops[:1]},
      "/host:CPU": {"python": [("dispatch", 0, 900, None)]},
    }
  )  # fmt: skip
  assert _times(found) == {
    ("", "while.1"): (40 + 100, 2),
    ("", "fusion.2"): (60, 2),
    ("", "copy.3"): (50, 1),
  }
  assert found.devices == 2
  assert found.seconds == pytest.approx(200e-9)
  assert found.busy == pytest.approx((150 + 100) / 2 / 200)


def test_a_gpu_is_read_from_its_streams():
  """Kernels name their instruction; streams of one device overlap."""
  found = _space(
    {
      "/host:CPU": {"thread": [("kernel", 0, 999, "jit_f")]},
      "/device:GPU:0": {
        "Stream #1(Compute)": [("a", 0, 50, "jit_f"), ("b", 60, 80, "jit_f")],
        "Stream #2(Memcpy)": [("MemcpyH2D", 40, 70, None)],
        "Launch Stats": [("noise", 0, 999, "jit_f")],
      },
    }
  )
  assert _times(found) == {
    ("jit_f", "op.a"): (50, 1),
    ("jit_f", "op.b"): (20, 1),
    ("", "MemcpyH2D"): (30, 1),
  }
  assert found.busy == 1
  moved = [o for o in found.operations if not o.module]
  assert [found.source(o).part for o in moved] == ["copies"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_own_times_add_up_to_the_time_that_something_ran(data):
  """However events nest, no nanosecond is counted twice or lost."""
  events = []

  def fill(start, end, depth):
    edges = data.draw(
      st.lists(st.integers(start, end), max_size=6, unique=True).map(sorted)
    )
    for low, high in zip(edges[::2], edges[1::2], strict=False):
      events.append((f"op{len(events)}", low, high, "jit_f"))
      if depth:
        fill(low, high, depth - 1)

  fill(0, 1000, 3)
  if not events:
    return
  found = _space({"/host:CPU": {"worker": events}})
  covered = np.zeros(1000, bool)
  for _, low, high, _ in events:
    covered[low:high] = True
  own = [seconds for seconds, _ in _times(found).values()]
  assert min(own) >= 0
  assert sum(own) == covered.sum()
  if span := max(e[2] for e in events) - min(e[1] for e in events):
    assert found.busy == pytest.approx(covered.sum() / span)


def test_a_trace_of_nothing_is_refused():
  with pytest.raises(UserError, match="no operation of a device"):
    _space({"/host:CPU": {"worker": [("idle", 0, 10, None)]}})
