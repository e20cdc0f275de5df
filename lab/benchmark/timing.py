"""How long a call takes on the GPU, and how sure that is. All times are in microseconds."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

Call = Callable[[], object]

# A time may lie this far below the floor (minimal bytes over the copy bandwidth, or FLOPs over the matrix-product rate)
# before it counts as impossible. Reading is a little faster than copying, because the memory bus need not turn around,
# and up to an L2 cache of the output may still wait there when the kernel ends, so honest kernels come out slightly
# above the ceiling. A kernel that skips a tensor, or a time that missed a launch, is off by far more than a tenth.
FLOOR_TOLERANCE = 0.9

MOST_CLEARS = 16
GRAPH_CALLS = 20  # to a CUDA graph, at most


class CannotTime(RuntimeError):
    """There is nothing here to time on."""


class ImpossibleTiming(RuntimeError):
    """A time below what the hardware allows: the measurement is wrong, whatever it says."""


def require_gpu() -> None:
    """Raise CannotTime where a time would mean nothing: without a GPU, and in Triton's interpreter."""
    if not torch.cuda.is_available():
        raise CannotTime("timing needs a CUDA GPU, and this machine has none")
    if triton.knobs.runtime.interpret:
        said = os.environ["TRITON_INTERPRET"]
        raise CannotTime(
            f"timing refuses to run in Triton's interpreter (TRITON_INTERPRET={said}): it would time Python"
        )


@dataclass(frozen=True)
class Timing:
    """Statistics of the samples of one candidate, in microseconds.

    p20_us, p80_us: 20th and 80th percentile. ci_low_us, ci_high_us: 95% confidence interval of the median.
    """

    median_us: float
    p20_us: float
    p80_us: float
    mean_us: float
    std_us: float
    ci_low_us: float
    ci_high_us: float
    count: int

    @property
    def relative_error(self) -> float:
        """Standard error of the median over the median, as far as the confidence interval tells it."""
        return (self.ci_high_us - self.ci_low_us) / (2 * 1.96 * self.median_us)


def median_interval(count: int) -> tuple[int, int]:
    """Indices into `count` sorted samples between which the true median lies with at least 95% confidence.

    The number of samples below the median is binomial(count, 1/2) whatever the distribution is, so no normality is
    assumed. Fewer than 6 samples cannot give 95%: then all of them are spanned.
    """
    tail, low = 0.0, 0
    for below in range(count // 2):
        tail += math.comb(count, below) / 2**count
        if 2 * tail > 0.05:
            break
        low = below
    return low, count - 1 - low


def summarize(samples: Sequence[float]) -> Timing:
    """Statistics of at least two samples in microseconds."""
    ordered = sorted(samples)
    low, high = median_interval(len(ordered))
    fifths = statistics.quantiles(ordered, n=5, method="inclusive")
    return Timing(
        median_us=statistics.median(ordered),
        p20_us=fifths[0],
        p80_us=fifths[3],
        mean_us=statistics.fmean(ordered),
        std_us=statistics.stdev(ordered),
        ci_low_us=ordered[low],
        ci_high_us=ordered[high],
        count=len(ordered),
    )


class ColdSampler:
    """Times one call with a cold L2 cache: `sampler(fn)` returns microseconds between two CUDA events around `fn()`.

    In front of the first event a buffer several times as large as L2 is overwritten with zeros. That evicts the inputs,
    and leaves L2 full of dirty lines, as the kernel that ran before would in a model: the call pays for writing them
    back. While the GPU clears, the CPU already issues the call, so that its launch cost does not show: nothing
    synchronizes between the clear and the end of the call. A sample in which the GPU was faster than the CPU is thrown
    away, and taken again behind twice as many clears (16 at most: a call that synchronizes can never be hidden).
    """

    def __init__(self) -> None:
        require_gpu()
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.buffer = torch.empty(max(4 * l2, 256 << 20), dtype=torch.uint8, device="cuda")
        self.clears = 1

    def __call__(self, fn: Call) -> float:
        while True:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            for _ in range(self.clears):
                self.buffer.zero_()
            start.record()
            fn()
            hidden = not start.query()
            end.record()
            end.synchronize()
            if hidden or self.clears >= MOST_CLEARS:
                return start.elapsed_time(end) * 1e3
            self.clears *= 2

    def latency(self, fn: Call) -> float:
        """Microseconds by the clock on the wall from before the call of `fn` until the GPU has done all of it: what its
        caller waits for, launches included. L2 is cleared first, outside of that time: the weights of a layer by itself
        would fit, and in a model those of the other layers have pushed them out."""
        self.buffer.zero_()
        torch.cuda.synchronize()
        began = time.perf_counter()
        fn()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e6


def measure(
    candidates: Mapping[str, Call],
    *,
    sample: Callable[[Call], float] | None = None,
    min_count: int = 20,
    max_count: int = 60,
    target: float = 0.002,
    cap_s: float = 1.0,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Time the candidates in turns, one sample of each a round, so that a drift of the clock meets them all alike.

    sample: times one call, in microseconds; None means a `ColdSampler`.
    A candidate leaves the rounds once it has `min_count` samples and the relative standard error of its median is at
    most `target`, or `max_count` samples, or (but with three samples at least) `cap_s` seconds spent on it.
    warmup: rounds taken first and not counted.

    Raises CannotTime without a GPU or in Triton's interpreter, unless `sample` is given.
    """
    sample = sample or ColdSampler()
    gc.freeze()  # or a collection, searching all that is loaded, would stop the CPU in the middle of a launch
    try:
        for _ in range(warmup):
            for fn in candidates.values():
                sample(fn)
        taken = _rounds(candidates, sample, min_count, max_count, target, cap_s)
    finally:
        gc.unfreeze()
    return {name: summarize(samples) for name, samples in taken.items()}


def _rounds(
    candidates: Mapping[str, Call],
    sample: Callable[[Call], float],
    min_count: int,
    max_count: int,
    target: float,
    cap_s: float,
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    pending = dict(candidates)
    while pending:
        for name, fn in list(pending.items()):
            began = time.perf_counter()
            samples[name].append(sample(fn))
            spent[name] += time.perf_counter() - began
            count = len(samples[name])
            sure = count >= max(min_count, 2) and summarize(samples[name]).relative_error <= target
            if sure or count >= max_count or (count >= 3 and spent[name] > cap_s):
                del pending[name]
    return samples


def check_possible(timing: Timing, floor_us: float) -> None:
    """Raise ImpossibleTiming for a median below 0.9 of the floor (`FLOOR_TOLERANCE` says why 0.9)."""
    if not timing.median_us >= FLOOR_TOLERANCE * floor_us:
        raise ImpossibleTiming(
            f"a median of {timing.median_us:.4g} us is below the physical floor of {floor_us:.4g} us: "
            "the call did not do all of its work, or the measurement is wrong"
        )


class GraphTime(NamedTuple):
    """Microseconds a call, or None and why."""

    us: float | None
    reason: str | None


def graph_times(candidates: Mapping[str, tuple[Call, int]], replays: int = 30) -> dict[str, GraphTime]:
    """Time of a call inside a CUDA graph, with a warm cache, of every candidate, {name: (call, calls to a graph)}: the
    median over `replays`, which the candidates take in turns, so that a drift of the clock meets them all alike.

    Without the launches between the kernels, so this is what to look at when a kernel is shorter than its launch.
    """
    require_gpu()
    found: dict[str, GraphTime] = {}
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, (fn, calls) in candidates.items():
        try:
            graphs[name] = _captured(fn, calls)
        except Exception as error:  # each library has its own way of refusing capture
            torch.cuda.synchronize()  # but a broken context raises here
            found[name] = GraphTime(None, f"cannot be captured: {first_line(error)}")
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(replays):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            graph.replay()  # what the one before left in the cache makes room
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) * 1e3 / candidates[name][1])
    return found | {name: GraphTime(statistics.median(each), None) for name, each in times.items()}


def _captured(fn: Call, calls: int) -> torch.cuda.CUDAGraph:
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    here.wait_stream(side)
    with torch.cuda.stream(here):  # a capture that fails leaves its own stream the current one
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            for _ in range(calls):
                fn()
    return graph


def launch_overhead(fn: Call, calls: int = 100) -> float:
    """CPU microseconds that a call of `fn` takes to return. `fn` should work on tiny inputs: a GPU that lags behind by
    more than its queue holds would make the CPU wait."""
    require_gpu()
    for _ in range(3):
        fn()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        fn()
    took = time.perf_counter() - began
    torch.cuda.synchronize()
    return took * 1e6 / calls


def peak_memory_delta(fn: Call) -> int:
    """Bytes of GPU memory, beyond what is allocated already, that `fn` holds at its worst, outputs included."""
    require_gpu()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def first_line(error: BaseException) -> str:
    """`ValueError: what went wrong`, cut to one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
