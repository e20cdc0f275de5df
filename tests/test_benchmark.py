"""Timing, records, experiments, tables and figures, on a machine with no GPU: what is timed is faked, all else runs."""

import importlib.util
import json
import math
import random
import shutil
import sys
import time
import warnings
from dataclasses import replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rules import is_row_wise

from lab import files
from lab.backends import registry
from lab.backends.cuda import rmsnorm as cuda_rmsnorm
from lab.backends.hardware import ARCHITECTURES
from lab.backends.implementation import Implementation
from lab.backends.triton import rmsnorm as triton_rmsnorm
from lab.benchmark import (
    candidates,
    config,
    environment,
    experiments,
    figures,
    records,
    report,
    tables,
    timing,
)
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.fingerprint import fingerprint
from lab.benchmark.instruments import Instruments
from lab.benchmark.peers import Peer, PeerAbsent, peers
from lab.profiling import roofline

LAB = Path(records.__file__).parents[1]

# Timing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, interval", [(2, (0, 1)), (5, (0, 4)), (6, (0, 5)), (10, (1, 8)), (20, (5, 14)), (50, (17, 32))]
)
def test_median_interval_is_that_of_the_tables(count, interval):
    assert timing.median_interval(count) == interval


def test_median_interval_covers_the_median_in_95_percent_of_skewed_samples():
    draw = random.Random(1)
    low, high = timing.median_interval(20)
    covered = 0
    for _ in range(2000):
        ordered = sorted(draw.expovariate(1.0) for _ in range(20))
        covered += ordered[low] <= math.log(2) <= ordered[high]
    assert 0.94 < covered / 2000 < 0.98


def test_summarize():
    t = timing.summarize([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (t.median_us, t.p20_us, t.p80_us, t.mean_us, t.count) == (3.5, 2.0, 5.0, 3.5, 6)
    assert (t.ci_low_us, t.ci_high_us) == (1.0, 6.0)
    assert t.std_us == pytest.approx(1.8708, rel=1e-4)


def test_measure_takes_turns_and_does_not_count_the_warm_up():
    order, times = [], {"a": iter([900.0, 900.0] + [10.0] * 5), "b": iter([900.0, 900.0] + [20.0] * 5)}
    calls = {"a": lambda: "a", "b": lambda: "b"}

    def sample(fn):
        order.append(fn())
        return next(times[fn()])

    result = timing.measure(calls, sample=sample, warmup=2, min_count=5, max_count=5)
    assert all(one != other for one, other in pairwise(order))
    assert (result["a"].median_us, result["b"].median_us, result["a"].count) == (10.0, 20.0, 5)


@pytest.mark.parametrize(
    "spread, arguments, count",
    [
        (0.0, {"min_count": 8, "max_count": 40}, 8),  # sure at once
        (50.0, {"min_count": 8, "max_count": 40}, 40),  # never sure
        (50.0, {"min_count": 8, "max_count": 40, "target": 1.0}, 8),
        (0.0, {"min_count": 8, "max_count": 40, "cap_s": -1.0}, 3),  # out of time
    ],
)
def test_measure_stops(spread, arguments, count):
    draw = random.Random(0)
    result = timing.measure({"a": lambda: None}, sample=lambda fn: 100 + spread * draw.random(), **arguments)
    assert result["a"].count == count


def test_graphs_are_replayed_in_turns(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            log.append("event")

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 0.5  # milliseconds

    def captured(fn, calls):
        if fn is None:
            raise RuntimeError("synchronizes")
        return SimpleNamespace(replay=lambda: log.append(fn))

    monkeypatch.setattr(timing, "require_gpu", lambda: None)
    monkeypatch.setattr(timing, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = timing.graph_times({"a": ("a", 10), "refuses": (None, 10), "b": ("b", 5)}, replays=2)
    assert log == ["a", "event", "a", "event", "b", "event", "b", "event"] * 2
    assert (times["a"].us, times["b"].us) == (50.0, 100.0)
    assert times["refuses"] == (None, "cannot be captured: RuntimeError: synchronizes")


def test_timing_refuses_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for refused in (
        lambda: timing.measure({"a": lambda: None}),
        lambda: timing.graph_times({"a": (lambda: None, 1)}),
        lambda: timing.launch_overhead(lambda: None),
        lambda: timing.peak_memory_delta(lambda: None),
        experiments.gpu_instruments,
    ):
        with pytest.raises(RuntimeError, match="needs a CUDA GPU"):
            refused()


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_timing_refuses_in_the_interpreter(monkeypatch, value):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", value)
    with pytest.raises(RuntimeError, match="interpreter"):
        timing.measure({"a": lambda: None})


class FakeStream:
    """Stands in for CUDA events, and for the buffer that is cleared; logs what is put on the stream."""

    def __init__(self, hidden_behind: int):
        self.log, self.hidden_behind, self.clears = [], hidden_behind, 0

    def zero_(self):
        self.log.append("clear")

    def Event(self, enable_timing):
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, stream):
        self.stream = stream

    def record(self):
        self.stream.log.append("record")

    def query(self):
        return self.stream.log.count("clear") < self.stream.hidden_behind  # the GPU is done: the launch was not hidden

    def synchronize(self):
        self.stream.log.append("synchronize")

    def elapsed_time(self, end):
        return 0.25


@pytest.mark.parametrize("hidden_behind, clears", [(0, [1]), (3, [1, 2]), (10**6, [1, 2, 4, 8, 16])])
def test_the_clear_comes_first_and_hides_the_launch(monkeypatch, hidden_behind, clears):
    stream = FakeStream(hidden_behind)
    monkeypatch.setattr(torch.cuda, "Event", stream.Event)
    sampler = object.__new__(timing.ColdSampler)
    sampler.buffer, sampler.clears = stream, 1
    assert sampler(lambda: stream.log.append("call")) == 250.0
    attempts = [["clear"] * count + ["record", "call", "record", "synchronize"] for count in clears]
    assert stream.log == [step for attempt in attempts for step in attempt]
    assert sampler.clears == clears[-1]


def test_a_time_below_the_floor_is_impossible():
    t = timing.summarize([100.0, 100.0])
    timing.check_possible(t, 102.0)  # honest kernels reach that
    with pytest.raises(timing.ImpossibleTiming, match="below the physical floor"):
        timing.check_possible(t, 150.0)
    with pytest.raises(timing.ImpossibleTiming):
        timing.check_possible(replace(t, median_us=float("nan")), 1.0)


# A whole run, with fake times -----------------------------------------------------------------------------------------

CONFIG = {
    "seed": 0,
    "samples": {"min": 5, "max": 6},
    "operators": {
        "rmsnorm": [{"shape": [200, 64], "dtype": "float32", "directions": ["forward", "backward", "both"]}],
        "add_rmsnorm": [{"shape": [3, 64], "dtype": "float32", "directions": ["forward", "both"]}],
    },
    "implementations": ["torch:*", "fake:*"],
    "peers": ["torch eager", "liger"],
}
CEILINGS = Ceilings(copy_gbps=1.0, copy_bytes=1 << 30, matmul_tflops=100.0, matmul_dtype="bfloat16", matmul_size=8192)
ENVIRONMENT = environment.Environment(
    gpu="NVIDIA Fake 80GB", capability=(9, 0), multiprocessors=4, shared_memory=1 << 17,
    power_limit_w=700.0, sm_clock_mhz=None, memory_clock_mhz=None, driver="1", cuda="13.0",
    python="3.12.0", platform="Linux", lab="0.1.0", packages={"torch": "2.11"}, commit="0" * 40, dirty=False,
    date="2026-01-01T00:00:00+00:00",
)  # fmt: skip


@pytest.fixture
def fake_backend(monkeypatch):
    """A backend with a right rung, a wrong one, one that refuses, one that raises and one that is unavailable."""
    registry.backends()  # loads the built-in ones, once, and so not into the copy
    monkeypatch.setattr(registry, "_ladders", dict(registry._ladders))
    right = registry.ladder("rmsnorm", "torch")[0]

    def broken(*args):
        raise RuntimeError("a kernel\nthat failed")

    def double(*args):
        y, rstd = right.forward(*args)
        return 2 * y, rstd

    def zero_dw(*args):
        dx, dw = right.backward(*args)
        return dx, torch.zeros_like(dw)

    rungs = [
        replace(right, rung="raises", forward=broken, backward=broken),
        replace(right, rung="wrong", forward=double, backward=zero_dw),
        replace(right, rung="refuses", refuses=lambda *args: "too long"),
        replace(right, rung="unavailable", unavailable=lambda device: "needs Hopper"),
        replace(right, rung="right"),
    ]
    registry.register_backend("fake", {"rmsnorm": rungs})


def graphs(result):
    return lambda candidates: dict.fromkeys(candidates, result)


def instruments(sample=lambda fn: fn() and 5000.0):
    return Instruments(
        torch.device("cpu"), ENVIRONMENT, CEILINGS, sample, latency=sample,
        graph_times=graphs(timing.GraphTime(None, "faked")), launch_overhead=lambda fn: 7.0,
        peak_memory=lambda fn: 1024, synchronize=lambda: None,
    )  # fmt: skip


_measured = []


@pytest.fixture
def record(fake_backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # absent, wherever this runs
    if not _measured:  # once: a record cannot be changed
        _measured.append(experiments.run(config.parse("fake", CONFIG), instruments(), progress=False))
    return _measured[0]


def test_run_records_every_candidate(record):
    per_workload = {}
    for row in record.rows:
        per_workload.setdefault(row.workload, []).append(row.label)
    ladder = ["torch:eager", "fake:raises", "fake:wrong", "fake:refuses", "fake:unavailable", "fake:right"]
    assert per_workload == {
        ("rmsnorm", "forward", (200, 64), "float32"): [*ladder, "torch eager", "liger"],
        ("rmsnorm", "backward", (200, 64), "float32"): [*ladder, "torch eager", "liger"],
        ("rmsnorm", "both", (200, 64), "float32"): [*ladder, "torch eager", "liger"],
        ("add_rmsnorm", "forward", (3, 64), "float32"): ["torch:eager", "torch eager", "liger"],
        ("add_rmsnorm", "both", (3, 64), "float32"): ["torch:eager", "torch eager", "liger"],
    }


def test_run_measures_the_right_and_gives_the_rest_their_errors(record):
    for row in record.select("rmsnorm"):
        expected = {
            "fake:raises": "RuntimeError: a kernel",
            "fake:wrong": "WrongResult: ",
            "fake:refuses": "cannot run: too long",
            "fake:unavailable": "cannot run: needs Hopper",
            "liger": "absent: liger-kernel",
        }.get(row.label)
        if expected:
            assert row.error.startswith(expected) and row.timing is None and row.fraction is None
        else:
            assert row.error is None and row.timing.median_us == 5000.0
            assert row.gbps == pytest.approx(row.bytes / 5000e3)
            assert row.fraction == pytest.approx(row.bytes / 1e3 / 5000.0)
            assert row.peak_memory == 1024 and row.compile_s > 0
    forward = record.select("rmsnorm", "forward", (200, 64), "fake:right")[0]
    assert forward.bytes == 2 * 200 * 64 * 4 + 64 * 4
    assert "dw" in record.select("rmsnorm", "backward", label="fake:wrong")[0].error
    assert record.select("rmsnorm", "forward", label="torch eager")[0].version == metadata.version("torch")


def test_launch_and_graph_are_measured_where_the_floor_is_short(record):
    short = record.select("add_rmsnorm", "forward", label="torch:eager")[0]
    long = record.select("rmsnorm", "forward", label="torch:eager")[0]
    assert short.floor_us < experiments.SHORT_US < long.floor_us
    assert short.launch_us == 7.0 and short.notes == ("graph: faked",)
    assert long.launch_us is None and "not measured" in long.notes[0]


def test_an_impossible_time_is_an_error_and_no_time(fake_backend):
    record = experiments.run(config.parse("fake", CONFIG), instruments(lambda fn: fn() and 0.001), progress=False)
    timed = [row for row in record.rows if row.timing]
    assert not timed
    assert "ImpossibleTiming" in record.select("rmsnorm", "forward", label="fake:right")[0].error


def test_running_out_of_memory_is_recorded(fake_backend):
    def sample(fn):
        raise torch.cuda.OutOfMemoryError("out of memory")

    record = experiments.run(config.parse("fake", CONFIG), instruments(sample), progress=False)
    assert record.select("rmsnorm", "forward", label="fake:right")[0].error == "OutOfMemoryError: out of memory"


def test_a_broken_gpu_ends_the_run(fake_backend):
    def dead():
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory"):
        experiments.run(config.parse("fake", CONFIG), replace(instruments(), synchronize=dead), progress=False)


@pytest.mark.gpu
def test_a_real_run_times_everything_that_can_run():
    entries = [{"shape": [64, 4096], "dtype": "float16", "directions": list(config.DIRECTIONS)}]
    raw = CONFIG | {
        "operators": {name: entries for name, op in registry.operators().items() if is_row_wise(op)},
        "implementations": ["torch:*", "triton:*", "cuda:*"],
        "peers": ["torch eager", "torch.compile", "liger", "quack"],
    }
    record = experiments.run(config.parse("real", raw), progress=False)
    assert record.environment.gpu == torch.cuda.get_device_name()
    assert record.ceilings.copy_gbps > 50 and record.ceilings.matmul_tflops > 5
    untimed = [row for row in record.rows if row.error and not row.error.startswith(("cannot run: ", "absent: "))]
    assert not untimed, [f"{row.workload} {row.label}: {row.error}" for row in untimed]
    for row in record.rows:
        if row.timing:
            assert row.launch_us > 0 and (row.graph_us is None) == any(note.startswith("graph: ") for note in row.notes)
        if row.timing and row.direction == "forward" and row.backend != records.PEER:
            assert row.graph_us is not None, row.notes


@pytest.mark.gpu
@pytest.mark.alone
def test_on_a_gpu_the_cache_is_cold_and_the_launch_hidden():
    x = torch.zeros(1 << 20, device="cuda")  # 4 MB, which every L2 holds
    y = torch.empty_like(x)
    cold = timing.measure({"copy": lambda: y.copy_(x)})["copy"].median_us
    warm = timing.graph_times({"copy": (lambda: y.copy_(x), 20)})["copy"].us
    assert warm is not None and cold > warm
    slow_launch = timing.measure({"copy": lambda: time.sleep(500e-6) or y.copy_(x)})["copy"].median_us
    assert slow_launch < 100


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_the_stream_as_it_was():
    x, here = torch.zeros(1, device="cuda"), torch.cuda.current_stream()
    failed = timing.graph_times({"waits for the GPU": (lambda: x.item(), 1)})["waits for the GPU"]
    assert failed.us is None and failed.reason.startswith("cannot be captured: ")
    assert torch.cuda.current_stream() == here
    assert timing.graph_times({"adds": (lambda: x.add_(1), 1)})["adds"].us > 0


@pytest.mark.parametrize("op, shape", [("rmsnorm", (200, 33)), ("rmsnorm", (64, 64)), ("add_rmsnorm", (1, 5))])
def test_what_is_expected_is_what_float64_gives_in_full(monkeypatch, op, shape):
    monkeypatch.setattr(candidates, "CHUNK", 1000)  # several chunks
    inputs = candidates.Inputs(candidates.Workload(op, shape, "float64", "both"), torch.device("cpu"), 0)
    expected = candidates.Expected(inputs)
    full = inputs.call_of_peer(inputs.op.reference)()
    expected.check(full)
    assert expected.rows is not None and len(expected.rows) == min(64, shape[0])
    assert torch.allclose(expected.values["dweight"], full[-1], rtol=1e-12)


@pytest.mark.parametrize("direction", config.DIRECTIONS)
@pytest.mark.parametrize("op", registry.operators())
def test_the_calls_of_every_rung_that_runs_here_are_right(op, direction):
    operator = registry.operator(op)
    shape = (5, 40) if is_row_wise(operator) else operator.trial_shapes[-1]
    inputs = candidates.Inputs(candidates.Workload(op, shape, "float32", direction), torch.device("cpu"), 0)
    expected = candidates.Expected(inputs)
    for rung in registry.implementations(op):
        if not rung.unavailable(torch.device("cpu")):
            expected.check(inputs.call_of(rung)())


@pytest.mark.parametrize("name, where", [("y", (199, 32)), ("y", (0, 0)), ("dx", (199, 0)), ("dweight", (7,))])
@pytest.mark.parametrize("planted", [1e3, float("nan")])
def test_one_wrong_element_is_found(name, where, planted):
    inputs = candidates.Inputs(candidates.Workload("rmsnorm", (200, 33), "bfloat16", "both"), torch.device("cpu"), 0)
    expected = candidates.Expected(inputs)
    results = [result.detach().clone() for result in inputs.call_of_peer(inputs.op.reference)()]
    expected.check(tuple(results))
    results[inputs.names.index(name)][where] = planted
    with pytest.raises(candidates.WrongResult, match=f"^{name} is wrong in 1 of"):
        expected.check(tuple(results))


def test_compiled_peers_run_backward_again_and_again():
    for direction in ("both", "backward"):
        torch._dynamo.reset()
        workload = candidates.Workload("rmsnorm", (8, 32), "float32", direction)
        inputs = candidates.Inputs(workload, torch.device("cpu"), 0)
        compiled = torch.compile(peers("rmsnorm")["torch eager"].make(), backend="aot_eager", fullgraph=True)
        call = inputs.call_of_peer(compiled)
        candidates.Expected(inputs).check(call())
        candidates.Expected(inputs).check(call())


@pytest.mark.parametrize("op", [op for op in registry.operators() if "torch eager" in peers(op)])
def test_pytorchs_own_peer_computes_the_operator(op):
    workload = candidates.Workload(op, next(iter(registry.operator(op).tiny_shapes), (3, 7)), "float32", "both")
    inputs = candidates.Inputs(workload, torch.device("cpu"), 0)
    candidates.Expected(inputs).check(inputs.call_of_peer(peers(op)["torch eager"].make())())


def test_a_peer_that_is_absent_or_broken_says_so():
    def broken():
        raise AttributeError("no such thing")

    with pytest.raises(PeerAbsent, match="no-such-package is not installed"):
        Peer("no-such-package", broken).load()
    with pytest.raises(PeerAbsent, match="torch cannot be used: AttributeError: no such thing"):
        Peer("torch", broken).load()
    assert peers("no_such_operator") == {}


# Records --------------------------------------------------------------------------------------------------------------


def test_a_record_survives_json(record, tmp_path):
    record.write(tmp_path / "r.json")
    again = records.read(tmp_path / "r.json")
    again.write(tmp_path / "again.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "again.json").read_text()
    assert again.environment == record.environment and again.rows[0].workload == record.rows[0].workload
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda raw: raw.update(schema=0), "schema is 0"),
        (lambda raw: raw.pop("ceilings"), r"record is \['ceilings'\]"),
        (lambda raw: raw["rows"][0].update(extra=1), r"rows\[0\] is \['extra'\]"),
        (lambda raw: raw["rows"][0].update(bytes="many"), r"rows\[0\].bytes is 'many'; expected int"),
        (lambda raw: raw["rows"][0].update(direction="sideways"), r"rows\[0\].direction is 'sideways'"),
        (lambda raw: raw["rows"][0].update(timing=None), "either a timing or an error"),
        (lambda raw: raw["rows"][0].update(fraction=0.99), "floor over median"),
        (lambda raw: raw["rows"][0]["timing"].update(p80_us=1.0), "p20 <= median <= p80"),
        (lambda raw: raw["rows"][0].update(floor_us=1e9), "no time below the physical floor, 9e\\+08 us"),
        (lambda raw: raw["ceilings"].update(copy_gbps=float("nan")), "a finite number"),
        (lambda raw: raw["ceilings"].update(copy_gbps=10**400), "a finite number"),
        (lambda raw: raw["ceilings"].update(copy_gbps=True), "a number"),
    ],
)
def test_a_broken_record_is_refused(record, tmp_path, break_it, message):
    path = tmp_path / "r.json"
    record.write(path)
    raw = json.loads(path.read_text())
    break_it(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(records.RecordError, match=message):
        records.read(path)


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "r.json"
    files.write_text(path, "old")

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(OSError):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_record_cannot_hold_nan(record, tmp_path):
    with pytest.raises(records.RecordError, match="cannot hold nan"):
        replace(record, rows=(replace(record.rows[0], graph_us=float("nan")),)).write(tmp_path / "r.json")


PUBLISHED = [path for _, path in report.all_records()]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_published_records_are_valid_and_of_the_present_kernels(path):
    published = records.read(path)
    assert path.stem == environment.slug(published.environment.gpu)
    stale = published.stale()
    assert not stale, f"{stale} have changed since {path} was measured: run `lab record {published.experiment}`"


def stale_where(monkeypatch, module, name, value) -> list[str]:
    monkeypatch.setattr(module, name, value)
    return records.published("rmsnorm").stale()


def test_another_launch_makes_the_rungs_that_it_concerns_stale(monkeypatch):
    stale = stale_where(monkeypatch, triton_rmsnorm, "_warps", lambda block: 2)
    assert {"rmsnorm triton:one_pass", "add_rmsnorm triton:tuned"} <= set(stale)
    assert not any("cuda" in name or "naive" in name for name in stale)


def test_another_plan_makes_one_rung_stale(monkeypatch):
    stale = stale_where(monkeypatch, cuda_rmsnorm, "_ring", lambda *args: None)
    assert stale == ["rmsnorm cuda:pipelined", "add_rmsnorm cuda:pipelined"]


def test_another_cost_makes_every_row_stale_peers_too(monkeypatch):
    op, cost = registry.operator("add_rmsnorm"), registry.operator("rmsnorm").cost
    stale = stale_where(monkeypatch, type(op), "cost", lambda self, *args: cost(*args))
    assert "add_rmsnorm quack" in stale and not any(name.startswith("rmsnorm") for name in stale)


def test_a_rung_that_is_gone_is_stale(monkeypatch):
    ladder = registry.ladder("rmsnorm", "triton")
    monkeypatch.setitem(registry._ladders["triton"], "rmsnorm", ladder[1:])
    assert records.published("rmsnorm").stale() == ["rmsnorm triton:naive"]


# Fingerprints ---------------------------------------------------------------------------------------------------------

MODULE = '''
import torch, triton, triton.language as tl
from lab.backends.cuda.compile import launch

SCALE = tl.constexpr(2)
SOURCE = """
// a comment
template <typename T> __global__ void add(T *y, const T *x) { y[threadIdx.x] += x[0]; /* so */ }
"""


@triton.jit
def _scaled(a):
    return SCALE * a


@triton.jit
def _scale(x, y, columns, BLOCK: tl.constexpr):
    """Doc."""
    column = tl.arange(0, BLOCK)  # a comment
    value = tl.load(x + tl.program_id(0) * columns + column, column < columns)
    tl.store(y + tl.program_id(0) * columns + column, _scaled(value), column < columns)


@triton.jit
def _another(x):
    tl.store(x, 0)


def forward(x, weight, eps):
    if x.dim() != 2:
        raise ValueError("x is not a matrix")
    y = torch.empty_like(x)
    _scale[(x.shape[0],)](x, y, x.shape[1], BLOCK=128, num_warps=4)
    launch(SOURCE, "add<float>", 3, 32, y, x, shared=0)
    return y, x.new_empty(x.shape[0])
'''


def fingerprint_of(tmp_path, monkeypatch, text):
    path = tmp_path / f"module_{len(list(tmp_path.iterdir()))}.py"  # another file: the source of a module is cached
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    rung = Implementation(module.forward, module.forward, "best", operator="rmsnorm", backend="test")
    return fingerprint(rung, candidates.Workload("rmsnorm", (5, 100), "float32", "forward"), ARCHITECTURES["sm_90"])


@pytest.mark.parametrize(
    "old, new",
    [
        ("Doc.", "Other words."),
        ("  # a comment", ""),
        ("// a comment", "// another"),
        ("{ y[threadIdx.x] += x[0]; /* so */ }", "{\n  y[threadIdx.x]+=x[0];\n}"),
        ("column < columns)\n    tl.store", "(column  <  columns))\n    tl.store"),
        ("is not a matrix", "has the wrong shape"),
        ("x.dim() != 2", "x.dim() == 1"),
        ("tl.store(x, 0)", "tl.store(x, 1)"),
    ],
)
def test_what_the_gpu_does_not_see_leaves_the_fingerprint_alone(tmp_path, monkeypatch, old, new):
    assert MODULE.count(old) == 1
    assert fingerprint_of(tmp_path, monkeypatch, MODULE.replace(old, new)) == fingerprint_of(
        tmp_path, monkeypatch, MODULE
    )


@pytest.mark.parametrize(
    "old, new",
    [
        ("tl.arange(0, BLOCK)", "tl.arange(0, BLOCK) + 0"),
        ("SCALE * a", "a * SCALE"),
        ("tl.constexpr(2)", "tl.constexpr(3)"),
        ("BLOCK=128", "BLOCK=256"),
        ("num_warps=4", "num_warps=8"),
        ("(x.shape[0],)", "(x.shape[0] + 1,)"),
        ("x, y, x.shape[1]", "x, y, x.shape[0]"),
        ("torch.empty_like(x)", "torch.empty_like(x).t()"),
        ("+= x[0]", "-= x[0]"),
        ('add<float>"', 'add<int>"'),
        ('", 3, 32', '", 4, 32'),
        ('", 3, 32', '", 3, 64'),
        ("shared=0", "shared=16"),
        ("    launch(SOURCE", "    return\n    launch(SOURCE"),
    ],
)
def test_what_the_gpu_sees_changes_the_fingerprint(tmp_path, monkeypatch, old, new):
    assert MODULE.count(old) == 1
    assert fingerprint_of(tmp_path, monkeypatch, MODULE.replace(old, new)) != fingerprint_of(
        tmp_path, monkeypatch, MODULE
    )


def test_of_a_rung_without_kernels_the_module_counts(tmp_path, monkeypatch):
    text = "import torch\n\n\ndef forward(x, weight, eps):\n    return x * weight,  # so\n"
    before = fingerprint_of(tmp_path, monkeypatch, text)
    assert fingerprint_of(tmp_path, monkeypatch, text.replace("  # so", "")) == before
    assert fingerprint_of(tmp_path, monkeypatch, text.replace("x * weight", "x + weight")) != before


def test_of_a_rung_without_passes_the_module_of_its_function_counts():
    without = [rung for op in registry.operators() for rung in registry.ladder(op, "torch") if not rung.has_passes]
    assert {"attention", "decode_attention"} <= {rung.operator for rung in without}
    found = set()
    for rung in without:
        shape = (registry.operator(rung.operator).trial_shapes or [(3, 129)])[-1]
        workload = candidates.Workload(rung.operator, shape, "float32", "forward")
        found.add(fingerprint(rung, workload, ARCHITECTURES["sm_90"]))
    assert len(found) == len(without)


# Configs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.names())
def test_the_experiments_of_this_repository_are_valid(name):
    experiment = config.load(name)
    assert experiment.workloads or experiment.models or experiment.traps


def changed(**changes):
    raw = json.loads(json.dumps(CONFIG)) | {"implementations": ["torch"]}
    return raw | changes


def workload(**changes):
    return {"rmsnorm": [{"shape": [4, 8], "dtype": "float32", "directions": ["forward"]} | changes]}


@pytest.mark.parametrize(
    "raw, message",
    [
        ([], "^config is "),
        (changed(colour="red"), "^config.colour is not a key"),
        ({k: v for k, v in CONFIG.items() if k != "seed"}, "^config.seed is missing"),
        (changed(seed=-1), "^seed is -1"),
        (changed(seed=True), "^seed is True"),
        (changed(samples={"min": 9, "max": 8}), "^samples.max is 8"),
        (changed(samples={"min": 9}), "^samples.max is missing"),
        (changed(operators={}), "^operators is "),
        (changed(operators={"foo": workload()["rmsnorm"]}), "^operators.foo is 'foo'"),
        (changed(operators=workload(shape=[4])), r"^operators.rmsnorm\[0\].shape is \[4\]; expected 2 numbers"),
        (changed(operators=workload(shape=[4, "8"])), r"^operators.rmsnorm\[0\].shape\[1\] is '8'"),
        (changed(operators=workload(dtype="int8")), r"^operators.rmsnorm\[0\].dtype is 'int8'"),
        (changed(operators=workload(directions=["up"])), r"^operators.rmsnorm\[0\].directions\[0\] is 'up'"),
        (changed(operators=workload(directions=[])), r"^operators.rmsnorm\[0\].directions is \[\]"),
        (changed(operators=workload(directions=["both", "both"])), "no workload twice"),
        (changed(operators=workload(size=1)), r"^operators.rmsnorm\[0\].size is not a key"),
        (changed(implementations=["pascal"]), r"^implementations\[0\] is 'pascal'; expected a backend"),
        (changed(implementations=["torch:fastest"]), r"^implementations\[0\] is 'torch:fastest'; expected a rung"),
        (changed(implementations=[3]), r"^implementations\[0\] is 3"),
        (changed(peers=["apex"]), r"^peers\[0\] is 'apex'; expected one of liger"),
    ],
)
def test_a_bad_config_is_refused_by_key(raw, message):
    with pytest.raises(config.ConfigError, match=message):
        config.parse("bad", raw)


def test_choices_name_rungs(fake_backend):
    def named(choice):
        return [each.rung for each in config.rungs("rmsnorm", choice)]

    assert named("fake:*") == ["raises", "wrong", "refuses", "unavailable", "right"]
    assert (named("fake"), named("fake:wrong")) == (["right"], ["wrong"])
    assert config.rungs("add_rmsnorm", "fake:right") == []


def test_bfloat16_gives_way_where_there_is_none():
    bf16 = candidates.Workload("rmsnorm", (4, 8), "bfloat16", "forward")
    fp32 = replace(bf16, dtype="float32")
    assert config.without_bfloat16(bf16, (7, 5)).dtype == "float16"
    assert config.without_bfloat16(bf16, (8, 0)) == bf16
    assert config.without_bfloat16(fp32, (7, 5)) == fp32


# Publishing and reproducing -------------------------------------------------------------------------------------------


def slower(record, factor, label="fake:right"):
    """The record, had the candidate taken `factor` times as long."""

    def row_of(row):
        if row.timing is None or row.label != label:
            return row
        t = row.timing
        scaled = {name: getattr(t, name) * factor for name in t.__dataclass_fields__ if name != "count"}
        return replace(row, timing=timing.Timing(**scaled, count=t.count), fraction=row.fraction / factor)

    return replace(record, rows=tuple(map(row_of, record.rows)))


@pytest.fixture
def house(tmp_path, monkeypatch, record):
    """A checkout of its own with the experiment "fake"; its record is published."""
    folder = tmp_path / "experiments"
    (folder / "fake").mkdir(parents=True)
    (folder / "fake" / "config.yaml").write_text(json.dumps(CONFIG))
    for module in (records, config):
        monkeypatch.setattr(module, "experiments_folder", lambda: folder)
    monkeypatch.setattr(experiments, "AUTO", tmp_path / "auto.json")
    (tmp_path / "auto.json").write_text('{"Other GPU": {"softmax": "cuda"}}')
    experiments.publish(slower(record, 0.9))
    return tmp_path


def test_publish_writes_record_environment_and_auto(house, tmp_path):
    folder = house / "experiments" / "fake"
    assert records.published("fake").environment == ENVIRONMENT
    assert records.published("fake", "NVIDIA Fake 80GB").rows
    assert (folder / "results" / "nvidia-fake-80gb.json").exists()
    assert "torch: 2.11" in (folder / "env.txt").read_text()
    assert json.loads((house / "auto.json").read_text()) == {
        "Other GPU": {"softmax": "cuda"},
        "NVIDIA Fake 80GB": {"rmsnorm": "fake", "add_rmsnorm": "torch"},
    }
    with pytest.raises(FileNotFoundError, match="on Some GPU"):
        records.published("fake", "Some GPU")


def on(record, gpu):
    return replace(record, environment=replace(record.environment, gpu=gpu))


def test_records_of_several_gpus_lie_side_by_side(house, record, monkeypatch):
    folder = house / "experiments" / "fake"
    another = on(slower(record, 2.0), "A GPU that comes first")
    experiments.publish(another)
    assert records.published("fake", "A GPU that comes first").environment == another.environment
    assert records.published("fake", "NVIDIA Fake 80GB").environment == ENVIRONMENT
    environments = (folder / "env.txt").read_text().split("\n\n")
    assert [text.split("\n")[0] for text in environments] == ["gpu: A GPU that comes first", "gpu: NVIDIA Fake 80GB"]
    assert environments[1] == ENVIRONMENT.text()
    choices = json.loads((house / "auto.json").read_text())
    assert choices["NVIDIA Fake 80GB"]["rmsnorm"] == "fake" and choices[another.environment.gpu]["rmsnorm"] == "torch"
    monkeypatch.setattr(experiments, "run", lambda *args: slower(record, 0.9))
    assert not experiments.reproduce("fake", instruments())  # with its own GPU's record
    with pytest.raises(FileNotFoundError, match="there is one of a-gpu-that-comes-first, nvidia-fake-80gb"):
        records.published("fake", "Some GPU")


def test_the_book_goes_on_showing_its_gpu_when_another_is_added(house, record, monkeypatch):
    experiments.publish(on(record, "A GPU that comes first"))
    assert records.published("fake").environment.gpu == "A GPU that comes first"
    monkeypatch.setattr(records, "SHOWN", ("Some GPU", "NVIDIA Fake 80GB"))
    assert records.published("fake").environment.gpu == "NVIDIA Fake 80GB"
    experiments.publish(on(record, "Some GPU"))
    assert records.published("fake").environment.gpu == "Some GPU"


EXPERIMENTS = sorted({path.parents[1] for path in records.experiments_folder().glob("*/results/*.json")})


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_env_txt_tells_of_every_record(folder):
    assert (folder / "env.txt").read_text() == records.environments(folder)


def test_a_record_without_environment_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    for text in ("{", "[]", "{}", '{"environment": {}}'):
        (tmp_path / "results" / "a.json").write_text(text)
        with pytest.raises(records.RecordError, match=r"a\.json: has no environment"):
            records.environments(tmp_path)


def test_a_record_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"schema": "\xff"}')
    with pytest.raises(records.RecordError, match=r"a\.json: is not JSON: 'utf-8' codec"):
        records.read(tmp_path / "a.json")


def test_publish_elsewhere_leaves_the_checkout_alone(house, record):
    before = {path: path.read_text() for path in house.rglob("*") if path.is_file()}
    output = house / "elsewhere"
    assert experiments.publish(record, output) == output / "results" / "nvidia-fake-80gb.json"
    assert {"results", "env.txt", "auto.json"} == {path.name for path in output.iterdir()}
    assert all(path.read_text() == text for path, text in before.items())


def test_auto_does_not_take_a_backend_whose_best_rung_fails_somewhere(record):
    fast = slower(record, 0.5)
    assert experiments.fastest_backends(fast)["rmsnorm"] == "fake"
    rows = list(fast.rows)
    index = next(i for i, row in enumerate(rows) if row.label == "fake:right" and row.direction == "both")
    rows[index] = replace(rows[index], timing=None, fraction=None, error="cannot run: too long")
    assert experiments.fastest_backends(replace(fast, rows=tuple(rows)))["rmsnorm"] == "torch"
    assert experiments.fastest_backends(slower(record, 2.0))["rmsnorm"] == "torch"


@pytest.mark.parametrize(
    "base_us, factor, drifted",
    [
        (5000.0, 1.0, False),
        (5000.0, 1.02, False),
        (5000.0, 1.04, True),
        (5000.0, 0.96, True),
        (50.0, 1.05, False),
        (50.0, 1.10, True),
    ],
)
def test_reproduce_finds_a_planted_slowdown(house, record, monkeypatch, base_us, factor, drifted):
    scale = base_us / 5000.0
    scaled = replace(record, ceilings=replace(record.ceilings, copy_gbps=record.ceilings.copy_gbps / scale))
    for label in {row.label for row in record.rows}:
        scaled = slower(scaled, scale, label)
    floors = [
        replace(row, floor_us=row.floor_us * scale, fraction=row.fraction and row.fraction * scale)
        for row in scaled.rows
    ]
    scaled = replace(scaled, rows=tuple(floors))
    experiments.publish(scaled)
    monkeypatch.setattr(experiments, "run", lambda *args: slower(scaled, factor))
    found = experiments.reproduce("fake", instruments())
    assert {drift.row.label for drift in found} == ({"fake:right"} if drifted else set())
    assert {drift.row.direction for drift in found} == ({"forward", "backward", "both"} if drifted else set())
    ratios = {"fraction of ceiling", "speedup over torch eager"}
    assert {drift.ratio for drift in found} == (ratios if drifted else set())


def test_reproduce_runs_the_experiment_and_notices_what_can_no_longer_be_timed(house, record):
    experiments.publish(record)
    assert experiments.reproduce("fake", instruments(), progress=False) == []
    right = registry.ladder("rmsnorm", "fake")[-1]
    registry.register_backend("fake", {"rmsnorm": replace(right, refuses=lambda *args: "too long")})
    found = experiments.reproduce("fake", instruments(), progress=False)
    assert found and all(drift.measured is None and drift.row.label == "fake:right" for drift in found)
    assert "now cannot be measured" in str(found[0])


# Tables, figures, reports ---------------------------------------------------------------------------------------------


def test_table_marks_the_best_of_each_row(record):
    shown = tables.table(slower(record, 0.8), "rmsnorm", "forward")
    assert shown.header == ["rmsnorm forward", "torch:eager", "fake:right", "torch eager", "liger"]
    assert shown.rows == [["200x64", "2", "3", "2", tables.NOTHING]]
    assert shown.best == {(0, 2)}
    assert "| 200x64 | 2 | **3** | 2 | - |" in shown.markdown()
    assert "<strong>3</strong>" in shown.html() and '<th scope="col">liger</th>' in shown.html()
    long = replace(shown, long_names=True).html()
    assert f">{shown.header[0]}</caption>" in long and long.count(shown.header[0]) == 1
    assert "caption" not in shown.html()
    choice = replace(shown, rows=[["torch,rmsnorm=triton eager, here"]])
    assert ">torch,<wbr>rmsnorm=triton eager, here</th>" in choice.html()  # a line may end there on a phone
    assert "3*" in shown.text() and repr(shown) == shown.text()
    times = tables.table(slower(record, 0.8), "rmsnorm", "forward", ["fake:right", "torch eager"], "time")
    assert times.rows == [["200x64", "4000.0", "5000.0"]] and times.best == {(0, 1)}
    gains = tables.table(slower(record, 0.8), "rmsnorm", "forward", ["fake:right", "torch eager"], "speedup")
    assert gains.rows == [["200x64", "1.25", tables.NOTHING]]


def test_one_shape_in_two_dtypes_is_two_workloads(record):
    wider = [replace(row, dtype="float64") for row in slower(record, 0.5).rows]
    both = replace(record, rows=(*record.rows, *wider))
    task = "rmsnorm", "forward", (200, 64)
    assert [row[0] for row in tables.table(both, *task[:2]).rows] == ["200x64 float32", "200x64 float64"]
    assert [row[2] for row in tables.table(both, *task[:2], value="time").rows] == ["5000.0", "2500.0"]
    for dtype, us in (("float32", "5000.0"), ("float64", "2500.0")):
        shown = tables.ladder_table(both, *task, dtype)
        assert shown.header[0] == f"forward 200x64 {dtype}"
        assert [row[1] for row in shown.rows if row[0] == "fake:right"] == [us]
    assert figures.ladder(both, *task).alt == figures.ladder(record, *task).alt
    drawn = figures.ladder(both, *task, dtype="float64")
    assert "200x64 in float64" in drawn.alt and drawn.alt.count("fake:right") == 1
    assert roofline.plot(both, "rmsnorm", (200, 64), "forward").alt.count("fake:right") == 1


def test_ladder_table_fits_a_terminal(record):
    shown = tables.ladder_table(slower(record, 0.8), "rmsnorm", "both", (200, 64))
    assert [row[0] for row in shown.rows][:2] == ["torch:eager", "fake:raises"]
    assert next(row for row in shown.rows if row[0] == "fake:right")[5] == "1.25"
    assert shown.best == {(5, 1)}
    assert max(map(len, shown.text().splitlines())) <= 80


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figures.Figure("<svg/>", "old").save(tmp_path / "f.svg")

    def full(self, text):
        self.write_bytes(b"<s")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        figures.Figure("<svg>new</svg>", "new").save(tmp_path / "f.svg")
    assert (tmp_path / "f.svg").read_text() == "<svg/>" and len(list(tmp_path.iterdir())) == 1


def test_figures_are_the_same_each_time_and_speak(record):
    first, again = (figures.ladder(record, "rmsnorm", "forward", (200, 64)) for _ in range(2))
    assert first.svg == again.svg
    html = first._repr_html_()
    assert html.startswith("<svg") and 'role="img"' in html and f"<title>{first.alt}</title>" in html
    assert "fake:right" in first.alt and repr(first) == f"Figure: {first.alt}"
    for forbidden in ("<style", "<metadata", "<?xml", "<!DOCTYPE", "dc:date"):
        assert forbidden not in html
    changed = figures.ladder(slower(record, 0.8), "rmsnorm", "forward", (200, 64))
    assert changed.svg != first.svg
    with pytest.raises(ValueError, match="no time"):
        figures.ladder(record, "rmsnorm", "forward", (1, 1))


def test_the_figure_of_times_says_what_was_measured(record):
    drawn = figures.times(record, "rmsnorm", "forward", (200, 64), ["fake:right"])
    row = record.select("rmsnorm", "forward", (200, 64), "fake:right")[0]
    assert f"floor is {row.floor_us:.0f}: fake:right {row.timing.median_us:.0f}" in drawn.alt
    assert f">{row.timing.median_us:.0f}</text>" in drawn.svg
    for label in ("fake:wrong", "nobody"):  # one without a time, one that is not there
        with pytest.raises(ValueError, match=f"no time of {label} for rmsnorm forward 200x64"):
            figures.times(record, "rmsnorm", "forward", (200, 64), [label])


def test_the_figure_of_predictions_says_what_was_predicted_and_what_came(record):
    task = "rmsnorm", "forward", (200, 64)
    drawn = figures.predictions(slower(record, 0.8), *task, {"fake:right": (90, 97)})
    assert "fake:right 125.0%, predicted 90 to 97" in drawn.alt and ">125</text>" in drawn.svg
    assert "predicted" not in figures.predictions(slower(record, 0.8), *task, {}).alt
    for label in ("fake:wrong", "nobody"):  # one without a time, one that is not there
        with pytest.raises(ValueError, match=f"no time of {label} for rmsnorm forward 200x64"):
            figures.predictions(record, *task, {label: (1, 2)})


def test_figures_do_not_depend_on_the_readers_settings(record):
    import matplotlib

    before = figures.ladder(record, "rmsnorm", "forward", (200, 64)).svg
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        assert figures.ladder(record, "rmsnorm", "forward", (200, 64)).svg == before


def test_what_has_no_flops_has_no_roofline(record, tmp_path):
    moves = records.published("transpose")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report.write(moves, tmp_path).read_text()
    assert "transpose forward 8192x8192, float32" in text and "Roofline" not in text
    assert "Roofline" in report.write(record, tmp_path).read_text()
    with pytest.raises(ValueError, match="transpose forward has no FLOPs"):
        roofline.plot(moves, "transpose", (8192, 8192), "forward")


@pytest.mark.parametrize("as_html", [False, True])
def test_report(record, tmp_path, as_html):
    path = report.write(record, tmp_path, as_html)
    text = path.read_text()
    assert "NVIDIA Fake 80GB" in text and "rmsnorm backward" in text and "needs Hopper" in text
    if as_html:
        assert text.count("<svg") >= 5 and list(tmp_path.iterdir()) == [path]
    else:
        images = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
        assert len(images) >= 5 and all((tmp_path / image).read_text().startswith("<svg") for image in images)
    shutil.rmtree(tmp_path)
