"""Seven ways to time a kernel wrongly, each beside the right one, on the same work.

What is measured is separate from what it is measured on: `Tools` are a GPU's clocks or a test's, `Works` its kernels.
All times are in microseconds.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from lab.backends.cuda.compile import launch
from lab.backends.hardware import half_dtype
from lab.benchmark import timing
from lab.benchmark.environment import number, nvidia_smi
from lab.benchmark.timing import Call

SIZE = 8192  # of the large matrix products
SMALL_BYTES, LARGE_BYTES = 8 << 20, 1 << 30  # of copies: one that a cache holds twice over, and one that none does
LOOP = 100  # calls of the tiny kernel in one sample
IDLE_S = 2.0  # for a GPU to cool and its clock to recover
BUSY_US = 1.5e6  # of work while the sensors are read


@dataclass(frozen=True)
class Way:
    """One way to measure. us: what it says of a call. samples_us: what that was made of, in order. power_w,
    sm_clock_mhz: read while it ran; empty where nobody reads them, or they cannot be read."""

    label: str
    right: bool
    us: float
    samples_us: tuple[float, ...]
    power_w: tuple[float, ...] = ()
    sm_clock_mhz: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trap:
    """name: as the config has it. work: what was timed, in words."""

    name: str
    work: str
    ways: tuple[Way, ...]

    def way(self, label: str) -> Way:
        """Raises KeyError if there is none of that label."""
        return {way.label: way for way in self.ways}[label]

    def errors(self) -> dict[str, float]:
        """By label, what each wrong way says over what the right one after it says. Of two wrong ones that time the
        same kernel (`drift`), what the second says over the first."""
        found = {}
        for one, other in zip(self.ways[::2], self.ways[1::2]):
            if other.right and not one.right:
                found[one.label] = one.us / other.us
            elif not other.right:
                found[other.label] = other.us / one.us
        return found


class Event(Protocol):
    """As torch.cuda.Event; elapsed_time is in milliseconds."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end) -> float: ...
    def query(self) -> bool: ...


class Sensors(NamedTuple):
    power_w: float
    sm_clock_mhz: float


@dataclass(frozen=True)
class Tools:
    """now: seconds on the host's clock. synchronize: waits for the GPU. event: a new one. hide: keeps the GPU busy, and
    leaves caches alone, while the CPU launches what comes next. clear: evicts L2, which hides a launch too.
    capture(fn, calls): what replays that many calls as one CUDA graph. sensors: None where there are none. idle: lets
    that many seconds pass."""

    now: Callable[[], float]
    synchronize: Callable[[], None]
    event: Callable[[], Event]
    hide: Call
    clear: Call
    capture: Callable[[Call, int], Call]
    sensors: Callable[[], Sensors | None]
    idle: Callable[[float], None]

    def until_done(self, fn: Call) -> float:
        """By the host's clock, from before the call until the GPU has done it."""
        self.synchronize()
        began = self.now()
        fn()
        self.synchronize()
        return (self.now() - began) * 1e6

    def until_returned(self, fn: Call) -> float:
        """By the host's clock, until the call returns; the GPU may not even have begun."""
        began = self.now()
        fn()
        took = self.now() - began
        self.synchronize()
        return took * 1e6

    def between_events(self, fn: Call) -> float:
        """By the GPU's own clock; what it waits for while `fn` is launched is part of it, unless `hide` went before."""
        start, end = self.event(), self.event()
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


@dataclass(frozen=True)
class Works:
    """What is timed. fresh: a kernel that this process has not compiled. random, zeros: the same large matrix product
    of such numbers. small, large: copies. tiny: a kernel shorter than its launch. neighbour: work of somebody else."""

    fresh: Call
    random: Call
    zeros: Call
    small: Call
    large: Call
    tiny: Call
    neighbour: Call


def _median(label: str, right: bool, samples: Sequence[float]) -> Way:
    return Way(label, right, statistics.median(samples), tuple(samples))


def _warm(fn: Call, tools: Tools) -> None:
    for _ in range(3):
        fn()
    tools.synchronize()


def first_call(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """The first call compiles the kernel and loads it."""
    first = tools.until_done(works.fresh)
    _warm(works.fresh, tools)
    after = [tools.until_done(works.fresh) for _ in range(count)]
    return _median("the first call", False, [first]), _median("after warming up", True, after)


def no_synchronize(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """A call returns when the kernel is queued."""
    _warm(works.random, tools)
    returned = [tools.until_returned(works.random) for _ in range(count)]
    events = [tools.between_events(works.random) for _ in range(count)]
    return _median("host clock, no synchronize", False, returned), _median("events", True, events)


def warm_cache(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """What the sample before has left in L2 need not come from device memory."""
    ways = []
    for name, fn in (("small", works.small), ("large", works.large)):
        _warm(fn, tools)
        samples: dict[str, list[float]] = {"warm": [], "cold": []}
        for _ in range(count):
            tools.hide()  # the sample before has left what it moved in L2
            samples["warm"].append(tools.between_events(fn))
            tools.clear()
            samples["cold"].append(tools.between_events(fn))
        ways += [
            _median(f"{name}, warm L2", False, samples["warm"]),
            _median(f"{name}, cold L2", True, samples["cold"]),
        ]
    return tuple(ways)


def launches(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """A loop in Python cannot launch as fast as a tiny kernel runs."""
    _warm(works.tiny, tools)

    def loop() -> None:
        for _ in range(LOOP):
            works.tiny()

    replay = tools.capture(works.tiny, LOOP)
    _warm(replay, tools)
    looped = [tools.between_events(loop) / LOOP for _ in range(count)]
    graphed = [tools.between_events(replay) / LOOP for _ in range(count)]
    return _median("a loop in Python", False, looped), _median("a CUDA graph", True, graphed)


def mean(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """One sample of ten, in which somebody else's work ran, moves the mean and hardly the median."""
    _warm(works.small, tools)

    def disturbed() -> None:
        works.neighbour()
        works.small()

    samples = []
    for index in range(10):
        tools.clear()
        samples.append(tools.between_events(disturbed if index == 5 else works.small))
    return Way("mean of ten", False, statistics.fmean(samples), tuple(samples)), _median("median of ten", True, samples)


def zeros(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """Multiplying zeros flips fewer bits: less power, and a clock that need not fall."""
    ways = []
    for label, right, fn in (("zeros", False, works.zeros), ("random numbers", True, works.random)):
        _warm(fn, tools)
        calls = max(count, round(BUSY_US / tools.between_events(fn)))
        events = [tools.event() for _ in range(calls + 1)]
        events[0].record()
        for event in events[1:]:
            fn()
            event.record()
        readings = []
        while not events[-1].query():  # while the GPU is busy
            if (reading := tools.sensors()) is None:
                break
            readings.append(reading)
        events[-1].synchronize()
        samples = [start.elapsed_time(end) * 1e3 for start, end in pairwise(events)]
        steady = samples[len(samples) // 2 :]  # what settles fast has settled
        ways.append(
            Way(
                label,
                right,
                statistics.median(steady),
                tuple(steady),
                tuple(reading.power_w for reading in readings),
                tuple(reading.sm_clock_mhz for reading in readings),
            )
        )
    return tuple(ways)


def drift(tools: Tools, works: Works, count: int) -> tuple[Way, ...]:
    """The same kernel twice, under two names: first all samples of A and then all of B, or in turns. As the clock
    moves, one of two that are equal looks slower."""
    found: dict[str, list[float]] = {}
    for orders, names in (
        ([[0]] * count + [[1]] * count, ("A, first", "B, after it")),
        ([[0, 1]] * count, ("A, in turns with B", "B, in turns with A")),
    ):
        tools.idle(IDLE_S)
        for order in orders:
            for which in order:
                found.setdefault(names[which], []).append(tools.between_events(works.random))
    return tuple(_median(label, "in turns" in label, samples) for label, samples in found.items())


_PRODUCT = f"a product of two {SIZE} x {SIZE} matrices"
_COPY = f"a copy of {SMALL_BYTES >> 20} MiB"

TRAPS: dict[str, tuple[str, Callable[[Tools, Works, int], tuple[Way, ...]]]] = {
    "first_call": ("a CUDA C++ kernel that scales a vector", first_call),
    "no_synchronize": (_PRODUCT, no_synchronize),
    "warm_cache": (f"{_COPY}, and one of {LARGE_BYTES >> 20} MiB", warm_cache),
    "launches": ("an addition to 1024 numbers, in place", launches),
    "mean": (f"{_COPY}, once with a neighbour's", mean),
    "zeros": (_PRODUCT, zeros),
    "drift": (_PRODUCT, drift),
}


def measure(name: str, count: int) -> Trap:
    """One trap on the current GPU, with `count` samples a way. Raises CannotTime without a GPU."""
    timing.require_gpu()
    work, ways = TRAPS[name]
    return Trap(name, work, ways(gpu_tools(), gpu_works(), count))


# On a GPU -------------------------------------------------------------------------------------------------------------


def gpu_tools() -> Tools:
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    buffer = torch.empty(max(4 * l2, 256 << 20), dtype=torch.uint8, device="cuda")
    return Tools(
        now=time.perf_counter,
        synchronize=torch.cuda.synchronize,
        event=lambda: torch.cuda.Event(enable_timing=True),
        hide=lambda: torch.cuda._sleep(200_000),  # cycles: long enough to launch a few kernels
        clear=buffer.zero_,
        capture=_capture,
        sensors=_sensors,
        idle=time.sleep,
    )


def _capture(fn: Call, calls: int) -> Call:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            fn()
    return graph.replay


def _sensors() -> Sensors | None:
    power, clock = map(number, nvidia_smi("power.draw", "clocks.current.sm"))
    return None if power is None or clock is None else Sensors(power, clock)


def gpu_works() -> Works:
    options = {"dtype": half_dtype(torch.device("cuda")), "device": "cuda"}
    a, b = torch.randn(2, SIZE, SIZE, **options)
    nothing, out = torch.zeros(SIZE, SIZE, **options), torch.empty(SIZE, SIZE, **options)
    small = torch.empty(2, SMALL_BYTES, dtype=torch.uint8, device="cuda")
    large = torch.empty(2, LARGE_BYTES, dtype=torch.uint8, device="cuda")
    tiny = torch.zeros(1024, device="cuda")
    return Works(
        fresh=_fresh(),
        random=lambda: torch.mm(a, b, out=out),
        zeros=lambda: torch.mm(nothing, nothing, out=out),
        small=lambda: small[1].copy_(small[0]),
        large=lambda: large[1].copy_(large[0]),
        tiny=lambda: tiny.add_(1),
        neighbour=lambda: large[1].copy_(large[0]),
    )


def _fresh() -> Call:
    """A kernel whose source nobody has compiled before: NVRTC keeps none on disk, and `launch` only this process's."""
    source = f"""// {uuid.uuid4()}
    __global__ void scale(const float* x, float* y, long long n) {{
      long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
      if (at < n) y[at] = 2 * x[at];
    }}"""
    x, y = torch.zeros(2, 1 << 20, device="cuda")
    return lambda: launch(source, "scale", 4096, 256, x, y, x.numel())
