"""That each trap measures what it says: on a GPU that is made up, with clocks, a cache and a temperature of its own."""

import json
from dataclasses import replace

import pytest
import torch

from lab.benchmark import config, experiments, figures, records, report, tables, timing, traps
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.environment import Environment
from lab.benchmark.instruments import Instruments
from lab.benchmark.traps import Sensors, Tools, Trap, Way, Works
from lab.check.exercise import exercises

COUNT = 12
LAUNCH_US, COMPILE_US, PRODUCT_US, TINY_US = 5.0, 200_000.0, 1000.0, 1.0
COLD_US, WARM_US, LARGE_US, HIDE_US = 30.0, 10.0, 700.0, 100.0
SLOWEST, HEATED_S = 1.2, 0.01  # a busy GPU's clock falls, by a fifth, within that time


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = max(self.gpu.free, self.gpu.host)

    def synchronize(self):
        self.gpu.host = max(self.gpu.host, self.at)

    def query(self):
        return self.gpu.host >= self.at

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class GPU:
    """host: its clock, in seconds. free: when the GPU will have done what is queued. busy: how long it worked since it
    was last left alone. cached: what lies in L2. capturing: the durations of the calls that are being captured."""

    def __init__(self, has_sensors=True):
        self.host = self.free = self.busy = 0.0
        self.cached, self.capturing, self.fresh, self.has_sensors = None, None, True, has_sensors
        self.watts = 0.0

    def run(self, us, leaves=None):
        if self.capturing is not None:
            self.capturing.append(us)
            return
        self.host += LAUNCH_US * 1e-6
        slow = 1 + (SLOWEST - 1) * min(1, self.busy / HEATED_S)
        self.free = max(self.free, self.host) + us * slow * 1e-6
        self.busy += us * 1e-6
        self.cached = leaves or self.cached

    def first(self):
        if self.fresh:
            self.host += COMPILE_US * 1e-6
        self.fresh = False
        self.run(TINY_US)

    def small(self):
        self.run(WARM_US if self.cached == "small" else COLD_US, "small")

    def product(self, watts, us):
        def call():
            self.watts = watts
            self.run(us)

        return call

    def synchronize(self):
        self.host = max(self.host, self.free)

    def capture(self, fn, calls):
        self.capturing = []
        for _ in range(calls):
            fn()
        whole, self.capturing = sum(self.capturing), None
        return lambda: self.run(whole)

    def sensors(self):
        self.host += 0.1
        return Sensors(self.watts, 1000.0) if self.has_sensors else None

    def idle(self, seconds):
        self.synchronize()
        self.host += seconds
        self.busy = 0.0

    def tools(self):
        return Tools(
            now=lambda: self.host,
            synchronize=self.synchronize,
            event=lambda: Event(self),
            hide=lambda: self.run(HIDE_US),
            clear=lambda: self.run(LARGE_US, "zeros"),
            capture=self.capture,
            sensors=self.sensors,
            idle=self.idle,
        )

    def works(self):
        return Works(
            fresh=self.first,
            random=self.product(700.0, PRODUCT_US),
            zeros=self.product(400.0, 0.9 * PRODUCT_US),
            small=self.small,
            large=lambda: self.run(LARGE_US, "large"),
            tiny=lambda: self.run(TINY_US),
            neighbour=lambda: self.run(LARGE_US, "large"),
        )


@pytest.fixture
def cool(monkeypatch):
    """A GPU whose clock does not fall, for traps that are about something else."""
    monkeypatch.setitem(globals(), "SLOWEST", 1.0)


def ways(name, gpu=None):
    gpu = gpu or GPU()
    found = traps.TRAPS[name][1](gpu.tools(), gpu.works(), COUNT)
    assert all(way.samples_us for way in found)
    return found


def test_what_was_queued_before_is_not_timed(cool):
    gpu = GPU()
    gpu.run(LARGE_US)
    assert gpu.tools().until_done(lambda: gpu.run(TINY_US)) == pytest.approx(LAUNCH_US + TINY_US)
    assert gpu.tools().until_returned(lambda: gpu.run(LARGE_US)) == pytest.approx(LAUNCH_US)
    assert gpu.host >= gpu.free  # nor is anything left for the next one to wait for


def test_the_first_call_compiles(cool):
    first, after = ways("first_call")
    assert first.us == pytest.approx(COMPILE_US + LAUNCH_US + TINY_US) and len(first.samples_us) == 1
    assert after.us == pytest.approx(LAUNCH_US + TINY_US) and len(after.samples_us) == COUNT
    assert (first.right, after.right) == (False, True)


def test_without_synchronize_the_launch_is_timed(cool):
    returned, events = ways("no_synchronize")
    assert returned.us == pytest.approx(LAUNCH_US)
    assert events.us == pytest.approx(PRODUCT_US + LAUNCH_US)  # of which it waits for the launch
    assert (returned.right, events.right) == (False, True)


def test_a_warm_cache_makes_what_fits_faster_and_no_other(cool):
    found = {way.label: way for way in ways("warm_cache")}
    assert found["small, warm L2"].us == pytest.approx(WARM_US)
    assert found["small, cold L2"].us == pytest.approx(COLD_US)
    assert found["large, warm L2"].us == found["large, cold L2"].us == pytest.approx(LARGE_US)
    assert all(way.right == ("cold" in label) for label, way in found.items())
    assert all(way.samples_us == pytest.approx([way.us] * COUNT) for way in found.values())


def test_a_loop_measures_launches_and_a_graph_the_kernel(cool):
    loop, graph = ways("launches")
    assert loop.us == pytest.approx(LAUNCH_US, rel=0.02)
    assert graph.us == pytest.approx(TINY_US, rel=0.06)
    assert (loop.right, graph.right) == (False, True)


@pytest.mark.parametrize("us", [TINY_US, PRODUCT_US])
def test_the_exercise_on_a_loop_is_right_of_this_gpu(cool, us):
    gpu = GPU()

    def loop():
        for _ in range(20):
            gpu.run(us)

    for synchronized, clock in ((True, gpu.tools().until_done), (False, gpu.tools().until_returned)):
        expected = exercises()["timing.loop_us"].answer(20, LAUNCH_US, us, synchronized)
        assert clock(loop) / 20 == pytest.approx(expected)


def test_one_sample_moves_the_mean_and_not_the_median(cool):
    mean, median = ways("mean")
    assert mean.samples_us == median.samples_us and len(mean.samples_us) == 10
    assert sorted(mean.samples_us)[:9] == pytest.approx([COLD_US] * 9)
    assert max(mean.samples_us) == pytest.approx(COLD_US + LARGE_US)
    assert mean.us == pytest.approx(COLD_US + LARGE_US / 10) and median.us == pytest.approx(COLD_US)
    summary = timing.summarize(median.samples_us)
    assert (summary.mean_us, summary.median_us) == (mean.us, median.us)
    assert summary.ci_high_us == pytest.approx(COLD_US)  # the interval does not mind one in ten
    assert (mean.right, median.right) == (False, True)


def test_zeros_are_faster_and_need_less_power():
    nothing, numbers = ways("zeros")
    assert numbers.us == pytest.approx(PRODUCT_US * SLOWEST)
    assert nothing.us == pytest.approx(0.9 * PRODUCT_US * SLOWEST)
    assert min(nothing.samples_us) == pytest.approx(nothing.us)  # those before the clock had fallen are left out
    assert set(nothing.power_w) == {400.0} and set(numbers.power_w) == {700.0}
    assert len(numbers.sm_clock_mhz) == len(numbers.power_w) > 5
    assert (nothing.right, numbers.right) == (False, True)


def test_without_sensors_there_are_times_alone():
    nothing, numbers = ways("zeros", GPU(has_sensors=False))
    assert nothing.us < numbers.us
    assert nothing.power_w == numbers.power_w == nothing.sm_clock_mhz == ()


def test_what_comes_second_looks_slower_unless_they_take_turns():
    first, second, a, b = ways("drift")
    assert second.us / first.us > 1.05
    assert b.us / a.us == pytest.approx(1, abs=0.02)
    assert first.samples_us[0] == pytest.approx(a.samples_us[0])  # from a start as cool
    assert [way.right for way in (first, second, a, b)] == [False, False, True, True]


def test_in_a_clock_that_does_not_fall_order_does_not_matter(cool):
    assert len({round(way.us, 6) for way in ways("drift")}) == 1


def test_a_trap_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(timing.CannotTime, match="needs a CUDA GPU"):
        traps.measure("mean", 3)


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("name", [name for name in traps.TRAPS if name not in ("zeros", "drift")])
def test_on_a_gpu_the_wrong_way_is_wrong(name):
    """In the direction that is said. (The other two need a GPU of one's own.)"""
    if name == "warm_cache" and torch.cuda.get_device_properties(0).L2_cache_size < 3 * traps.SMALL_BYTES:
        pytest.skip("the small copy does not fit this GPU's L2")
    found = traps.measure(name, 10).ways
    wrong, right = found[:2]
    assert wrong.us > 1.1 * right.us if name in ("first_call", "launches", "mean") else wrong.us < 0.9 * right.us


# The record ---------------------------------------------------------------------------------------------------------


MADE = Environment("Made Up", (9, 0), 1, 1, None, None, None, None, None, "3", "p", "0", {}, None, None, "2026")
CONFIG = {"seed": 0, "samples": {"min": 3, "max": 7}, "traps": ["mean", "drift"]}


def measured(name, count):
    gpu = GPU()
    work, ways = traps.TRAPS[name]
    return Trap(name, work, ways(gpu.tools(), gpu.works(), count))


@pytest.fixture
def record():
    ceilings = Ceilings(1.0, 1, 1.0, "bfloat16", 1)
    made = Instruments(torch.device("cpu"), MADE, ceilings, lambda fn: 1.0, lambda fn: 1.0, trap=measured)
    return experiments.run(config.parse("timing", CONFIG), made, progress=False)


def test_an_experiment_of_traps_is_recorded_and_read_again(record, tmp_path):
    assert [trap.name for trap in record.traps] == ["mean", "drift"]
    assert len(record.traps[1].ways[0].samples_us) == 7
    path = experiments.publish(record, tmp_path)
    assert path == tmp_path / "results" / "made-up.json" and (tmp_path / "env.txt").exists()
    again = records.read(path)
    assert [trap.name for trap in again.traps] == ["mean", "drift"]
    assert again.traps[1].ways[2].us == pytest.approx(record.traps[1].ways[2].us, rel=1e-5)
    assert "median of ten" in tables.trap_table(again.traps[0]).text()


def test_a_record_from_before_there_were_traps_is_read(record, tmp_path):
    raw = json.loads(records.as_json(record))
    del raw["traps"]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    assert records.read(tmp_path / "old.json").traps == ()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"samples_us": ()}, "samples_us"),
        ({"samples_us": (1.0, 0.0)}, "samples_us"),
        ({"us": -1.0}, "samples_us"),
        ({"power_w": (1.0,)}, "power_w"),
    ],
)
def test_a_broken_way_is_refused(record, tmp_path, changes, told):
    broken = replace(record.traps[0], ways=(replace(record.traps[0].ways[0], **changes),))
    (tmp_path / "broken.json").write_text(records.as_json(replace(record, traps=(broken,))))
    with pytest.raises(records.RecordError, match=rf"record\.traps\[0\]\.ways\[0\]\.{told}"):
        records.read(tmp_path / "broken.json")


@pytest.mark.parametrize(
    "value, told",
    [
        ([], "traps is []; expected a list"),
        (["cold"], "traps[0] is 'cold'; expected one of first_call"),
        (["mean", "mean"], "no trap twice"),
    ],
)
def test_a_bad_list_of_traps_is_refused(value, told):
    with pytest.raises(config.ConfigError) as raised:
        config.parse("timing", {**CONFIG, "traps": value})
    assert told in str(raised.value)


def test_the_table_tells_right_from_wrong():
    found = tables.trap_table(Trap("mean", "work", (Way("mean of ten", False, 2.0, (1.0, 3.0), (5.0,), (6.0,)),)))
    assert found.rows == [["mean of ten", "wrong", "2.0", "2", "5", "6"]]


def test_power_and_clock_are_shown_where_they_were_read():
    found = tables.trap_table(Trap("mean", "work", (Way("mean of ten", False, 2.0, (1.0, 3.0)),)))
    assert found.header == ["mean: work", "", "us", "samples"] and found.rows == [["mean of ten", "wrong", "2.0", "2"]]


def test_how_wrong_a_way_is(record):
    mean, drift = record.traps
    assert mean.errors() == {"mean of ten": mean.way("mean of ten").us / mean.way("median of ten").us}
    assert drift.errors() == {"B, after it": drift.way("B, after it").us / drift.way("A, first").us}
    with pytest.raises(KeyError):
        mean.way("mean of twenty")


def test_the_figure_of_errors_says_them(record):
    drawn = figures.timing_errors(record)
    mean, drift = (next(iter(trap.errors().values())) for trap in record.traps)
    assert f"mean of ten: {mean:.3g}; B, after it: {drift:.3g}" in drawn.alt and "Made Up" in drawn.alt
    assert f">{mean:.3g}</text>" in drawn.svg and drawn == figures.timing_errors(record)
    with pytest.raises(ValueError, match="no wrong way"):
        figures.timing_errors(replace(record, traps=()))


def test_samples_are_drawn_in_order():
    points = {"A": [(0, 5.0), (1, 6.0)], "B": [(2, 7.0)]}
    drawn = figures.in_order({"first": points, "again": points}, "sample", "What A and B took, twice.")
    assert drawn.alt == "What A and B took, twice."
    for text in ("first", "again", "A", "B", "sample"):
        assert f">{text}</text>" in drawn.svg
    moved = figures.in_order({"first": points, "again": {**points, "B": [(2, 8.0)]}}, "sample", drawn.alt)
    assert moved.svg != drawn.svg


def test_the_report_of_an_experiment_of_traps(record, tmp_path):
    text = report.write(record, tmp_path).read_text()
    assert "![Wrong ways to time on Made Up" in text and "| median of ten | right |" in text


def test_traps_are_not_reproduced_by_ratios():
    with pytest.raises(ValueError, match="'timing' has traps alone"):
        experiments.reproduce("timing")
