"""The exercises of the chapter on timing: what a clock says of launches, how sure a median is, what a drift does, and
which times cannot be."""

from __future__ import annotations

import math
import statistics

from lab.benchmark import timing
from lab.benchmark.ceilings import Ceilings
from lab.check.calculation import Calculation, Mistake
from lab.ops.operator import Cost


def _all_done(calls: int, launch_us: float, kernel_us: float) -> float:
    """Microseconds from before the first of the launches until the GPU has done the last."""
    return launch_us + (calls - 1) * max(launch_us, kernel_us) + kernel_us


LOOP = Calculation(
    "timing.loop_us",
    "What the host's clock says of a loop of launches",
    lambda calls, launch_us, kernel_us, synchronized: (
        _all_done(calls, launch_us, kernel_us) / calls if synchronized else launch_us
    ),
    (
        {"calls": 1, "launch_us": 5, "kernel_us": 1000, "synchronized": True},
        {"calls": 100, "launch_us": 5, "kernel_us": 1000, "synchronized": False},
        {"calls": 100, "launch_us": 10, "kernel_us": 1, "synchronized": True},
        {"calls": 20, "launch_us": 8, "kernel_us": 12, "synchronized": True},
        {"calls": 20, "launch_us": 8, "kernel_us": 2, "synchronized": False},
    ),
    (
        Mistake(
            "waits for the GPU",
            "Who synchronizes reads the clock when the GPU has done the last kernel.",
            "Which of the four arguments have you used?",
            lambda calls, launch_us, kernel_us, synchronized: launch_us,
        ),
        Mistake(
            "waits only where it synchronizes",
            "A call returns when its kernel is queued, and so does the last one.",
            "What has the CPU done when the loop ends, and what the GPU?",
            lambda calls, launch_us, kernel_us, synchronized: _all_done(calls, launch_us, kernel_us) / calls,
        ),
        Mistake(
            "at the same time",
            "While the GPU runs a kernel the CPU launches the next one.",
            "Draw two lines, one for the CPU and one for the GPU. What lies above what?",
            lambda calls, launch_us, kernel_us, synchronized: launch_us + kernel_us if synchronized else launch_us,
        ),
        Mistake(
            "both ends",
            "The first launch and the last kernel overlap with nothing.",
            "What does the GPU do during the first launch, and the CPU during the last kernel?",
            lambda calls, launch_us, kernel_us, synchronized: max(launch_us, kernel_us) if synchronized else launch_us,
        ),
        Mistake(
            "of one call",
            "The time of a single call is asked for.",
            "How many calls is your time of?",
            lambda calls, launch_us, kernel_us, synchronized: (
                _all_done(calls, launch_us, kernel_us) if synchronized else calls * launch_us
            ),
        ),
    ),
)


def _low(count: int, allowed: float) -> int:
    """The largest `low` that a binomial(count, 1/2) does not exceed with a probability of at most `allowed`; 0 if there
    is none."""
    tails = [sum(math.comb(count, k) for k in range(low + 1)) / 2**count for low in range(count // 2)]
    return max((low for low, tail in enumerate(tails) if tail <= allowed), default=0)


MEDIAN_INTERVAL = Calculation(
    "timing.median_interval",
    "Between which samples the median lies",
    lambda count: timing.median_interval(count)[0],
    tuple({"count": count} for count in (6, 5, 8, 10, 30, 100, 101)),
    (
        Mistake(
            "both sides",
            "The median may lie below the interval or above it: the two together have 0.05.",
            "With 6 samples: how likely is it that all of them lie above the median? And below?",
            lambda count: _low(count, 0.05),
        ),
        Mistake(
            "the last that holds",
            "With this `low` the median is left out with a probability of at most 0.05; with one more it would not be.",
            "With 10 samples: how likely is it that two of them, or fewer, lie below the median?",
            lambda count: _low(count, 0.025) + 1,
        ),
        Mistake(
            "of the median, not of the samples",
            "The median is surer than a single sample: the interval is narrower than what holds 95% of the samples.",
            "If samples were ten times as many, would the interval hold as large a part of them?",
            lambda count: int(0.025 * count),
        ),
        Mistake(
            "counted, not approximated",
            "The probability of each number of samples is known exactly.",
            "How many ways are there to choose which k of the samples lie below the median?",
            lambda count: max(0, math.floor(count / 2 - 1.96 * math.sqrt(count) / 2)),
        ),
    ),
)


def _medians(order: str, drift: float) -> tuple[float, float]:
    """Of A and of B, where the n-th sample takes 1 + drift * n."""
    a, b = (statistics.median(1 + drift * n for n, name in enumerate(order) if name == which) for which in "AB")
    return a, b


def _ratio(count: int, drift: float, in_turns: bool) -> float:
    a, b = _medians("AB" * count if in_turns else "A" * count + "B" * count, drift)
    return b / a


APPARENT_RATIO = Calculation(
    "timing.apparent_ratio",
    "What a drift makes of a kernel timed against itself",
    _ratio,
    (
        {"count": 1, "drift": 0.25, "in_turns": False},
        {"count": 3, "drift": 0.01, "in_turns": False},
        {"count": 3, "drift": 0.01, "in_turns": True},
        {"count": 30, "drift": 0.001, "in_turns": False},
        {"count": 30, "drift": 0.001, "in_turns": True},
        {"count": 20, "drift": -0.002, "in_turns": False},
    ),
    (
        Mistake(
            "two orders",
            "In turns, A and B drift together.",
            "Which of the three arguments have you used?",
            lambda count, drift, in_turns: _ratio(count, drift, False),
        ),
        Mistake(
            "first all of A",
            "Where they do not take turns, B begins when A has all of its samples.",
            "How many samples were taken before B's first one?",
            lambda count, drift, in_turns: _ratio(count, drift, True),
        ),
        Mistake(
            "one sample later",
            "In turns, each sample of B still comes after A's: the drift is nearly gone, and not quite.",
            "With one sample each: does it matter whether they take turns?",
            lambda count, drift, in_turns: 1.0 if in_turns else _ratio(count, drift, False),
        ),
        Mistake(
            "B goes on where A ended",
            "n counts the samples of the whole run.",
            "Does the GPU slow down anew for B?",
            lambda count, drift, in_turns: _ratio(count, drift, True) if in_turns else 1.0,
        ),
        Mistake(
            "B over A",
            "It is B's median over A's.",
            "Above 1: which of the two looks slower?",
            lambda count, drift, in_turns: 1 / _ratio(count, drift, in_turns),
        ),
    ),
)

_GPU = {"tflops": 800, "gbps": 3200}
_PRODUCT = {"flops": 2 * 8192**3, "nbytes": 3 * 2 * 8192**2, **_GPU}  # its floor is 1374 us
_COPY = {"flops": 0, "nbytes": 2 << 30, **_GPU}  # 671 us


def _verdict(us: float, floor_us: float, tolerance: float = timing.FLOOR_TOLERANCE) -> str:
    return "impossible" if us < tolerance * floor_us else "possible"


def _floor_us(flops: int, nbytes: int, tflops: float, gbps: float) -> float:
    return Ceilings(gbps, 0, tflops, "", 0).floor_us(Cost({"": flops}, {"": nbytes}))


VERDICT = Calculation(
    "timing.verdict",
    "A time that cannot be",
    lambda us, **work: _verdict(us, _floor_us(**work)),
    (
        {"us": 1500, **_PRODUCT},
        {"us": 27, **_PRODUCT},
        {"us": 500, **_PRODUCT},
        {"us": 1300, **_PRODUCT},
        {"us": 700, **_COPY},
        {"us": 300, **_COPY},
        {"us": 650, **_COPY},
    ),
    (
        Mistake(
            "a tenth is allowed",
            "The ceilings are measured too: a time of up to a tenth below the floor is let through.",
            "What is 0.9 times the floor, in the case above?",
            lambda us, **work: _verdict(us, _floor_us(**work), 1.0),
        ),
        Mistake(
            "operations too",
            "What computes longer than it moves bytes has a floor by its operations.",
            "Which of the five arguments have you used?",
            lambda us, **work: _verdict(us, _floor_us(**(work | {"flops": 0}))),
        ),
        Mistake(
            "bytes too",
            "What moves bytes longer than it computes has a floor by its bytes.",
            "How fast may a copy be, by your floor?",
            lambda us, **work: _verdict(us, _floor_us(**(work | {"nbytes": 0}))),
        ),
        Mistake(
            "microseconds",
            "The time is in microseconds, and so is the floor.",
            "1 GB/s is how many bytes in a microsecond?",
            lambda us, **work: _verdict(us, _floor_us(**work) / 1e6),
        ),
        Mistake(
            "too fast, not too slow",
            "A kernel may take as long as it likes; it is the short times that cannot be.",
            "Which is the larger one, a time or its floor?",
            lambda us, **work: "possible" if us < timing.FLOOR_TOLERANCE * _floor_us(**work) else "impossible",
        ),
    ),
)

EXERCISES = (LOOP, MEDIAN_INTERVAL, APPARENT_RATIO, VERDICT)
