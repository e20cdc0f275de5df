"""The roofline's arithmetic, and its plot."""

from dataclasses import replace

import pytest
import torch

from lab.backends import registry
from lab.benchmark.candidates import Workload
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.environment import Environment
from lab.benchmark.records import SCHEMA, Record, Row
from lab.benchmark.timing import summarize
from lab.ops.operator import Cost
from lab.profiling.roofline import Roofline, of, places, plot, roofline, table

CEILINGS = Ceilings(2000.0, copy_bytes=1 << 32, matmul_tflops=500.0, matmul_dtype="bfloat16", matmul_size=8192)
SHAPE = (16384, 4096)


def make_record(times):
    """A record of rmsnorm forward with these microseconds by (backend, rung)."""
    cost = registry.operator("rmsnorm").cost(SHAPE, torch.bfloat16, "forward")
    rows = tuple(
        Row(
            "rmsnorm", backend, rung, None, "forward", SHAPE, "bfloat16", 0, cost.flops, cost.bytes,
            CEILINGS.floor_us(cost), timing=summarize([us, us]), gbps=cost.bytes / us / 1e3,
            tflops=cost.flops / us / 1e6, fraction=CEILINGS.floor_us(cost) / us,
        )
        for (backend, rung), us in times.items()
    )  # fmt: skip
    environment = Environment(
        "GPU", (9, 0), 132, 1 << 17, None, None, None, None, None, "3", "Linux", "0", {}, None, None, "2026-01-01"
    )
    return Record(SCHEMA, "rmsnorm", {}, "", environment, CEILINGS, rows)


def test_memory_and_compute_bounds():
    # 2 MB take 1 us at 2000 GB/s; 500 MFLOP take 1 us at 500 TFLOP/s; so the ridge is at 250 FLOPs a byte.
    memory = Roofline(Cost({"add": 100_000_000}, {"read": 2_000_000}), CEILINGS)
    assert (memory.intensity, memory.ridge, memory.bound) == (50.0, 250.0, "memory")
    assert memory.floor_us == pytest.approx(1.0) and memory.roof_tflops == pytest.approx(100.0)
    compute = Roofline(Cost({"add": 1_000_000_000}, {"read": 2_000_000}), CEILINGS)
    assert compute.bound == "compute"
    assert compute.floor_us == pytest.approx(2.0) and compute.roof_tflops == pytest.approx(500.0)


def test_rmsnorm_is_bound_by_memory():
    here = roofline(make_record({}), "rmsnorm", SHAPE, "forward")
    bytes_moved = 2 * (2 * SHAPE[0] * SHAPE[1] + SHAPE[1])
    assert here.bound == "memory" and here.cost.bytes == bytes_moved
    assert here.floor_us == pytest.approx(bytes_moved / 2000e3)
    with pytest.raises(ValueError, match="unknown operator"):
        roofline(make_record({}), "nothing", SHAPE, "forward")


def test_plot_shows_every_candidate_and_follows_the_record():
    times = {("torch", "eager"): 250.0, ("peer", "liger"): 150.0}
    shown = plot(make_record(times), "rmsnorm", SHAPE, "forward")
    assert shown.svg == plot(make_record(times), "rmsnorm", SHAPE, "forward").svg
    for word in ("torch:eager", "liger", "memory-bound"):
        assert word in shown.alt
    for word in ("torch:eager", "liger", "memory: 2000 GB/s", "compute: 500 TFLOP/s"):
        assert word in shown.svg
    moved = plot(make_record(times | {("peer", "liger"): 200.0}), "rmsnorm", SHAPE, "forward")
    assert moved.svg != shown.svg
    with pytest.raises(ValueError, match="no time"):
        plot(make_record(times), "rmsnorm", (1, 1), "forward")


DECODE = Workload("linear", (16, 14336, 4096), "bfloat16", "forward")
PREFILL = Workload("linear", (8192, 14336, 4096), "bfloat16", "forward")


def test_table_says_what_bounds_a_workload():
    record = make_record({})
    (decode, prefill) = table(record, [DECODE, PREFILL]).rows
    cost = of(record, DECODE).cost
    assert decode == ["forward 16x14336x4096", "15.92", "memory", f"{cost.bytes / 2000e3:.1f}", "1879", "118"]
    assert prefill[2:4] == ["compute", f"{of(record, PREFILL).cost.flops / 500e6:.1f}"]
    mixed = table(record, [DECODE, Workload("rmsnorm", SHAPE, "bfloat16", "forward")])
    assert mixed.header[0] == "operator" and mixed.rows[1][0] == "rmsnorm forward 16384x4096"


def test_places_tells_each_group_and_follows_the_ceilings():
    record = make_record({})
    shown = places(record, {"layer": [DECODE, PREFILL], "norm": [Workload("rmsnorm", SHAPE, "bfloat16", "forward")]})
    assert "ridge is at 250 FLOPs a byte" in shown.alt
    assert "layer 15.92 to 2294, memory-bound or compute-bound; norm 1.00, memory-bound" in shown.alt
    for word in ("layer 15.92 to 2294", "norm 1.00", "memory: 2000 GB/s", "compute: 500 TFLOP/s"):
        assert word in shown.svg
    faster = replace(record, ceilings=replace(CEILINGS, copy_gbps=4000.0))
    assert "ridge is at 125" in places(faster, {"layer": [DECODE]}).alt


@pytest.mark.parametrize("name", registry.operators())
def test_the_cost_of_both_passes_is_the_sum_of_each(name):
    op = registry.operator(name)
    shape = next(iter(op.shapes.values()))
    forward, backward, both = (op.cost(shape, torch.bfloat16, way) for way in ("forward", "backward", "both"))
    assert both.flops == forward.flops + backward.flops and both.bytes == forward.bytes + backward.bytes
    with pytest.raises(ValueError, match=f"{name}: direction is 'up'; expected forward, backward or both"):
        op.cost(shape, torch.bfloat16, "up")
