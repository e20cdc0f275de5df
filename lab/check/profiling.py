"""The exercises of the profiling chapter: what each asks of a trace, and the mistakes that its value tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lab.check.calculation import Calculation, Mistake

Kernel = tuple[str, int, int, int]  # operator, and when it was queued, when it started and when it ended
Trace = Sequence[Kernel]

# Each in the order in which the CPU launches, in microseconds.
_AHEAD: Trace = (("rmsnorm", 0, 5, 9), ("linear", 4, 10, 50), ("swiglu", 8, 51, 56), ("linear", 12, 57, 97))
_BEHIND: Trace = (
    ("rmsnorm", 0, 5, 7),
    ("linear", 20, 20, 27),
    ("rope", 45, 48, 51),
    ("rope", 65, 65, 67),
    ("attention", 80, 85, 90),
)
_MANY_SMALL: Trace = (
    ("linear", 0, 3, 15),
    ("rope", 10, 16, 21),
    ("rope", 14, 22, 27),
    ("rope", 30, 30, 35),
    ("attention", 31, 36, 37),
    ("attention", 32, 38, 39),
    ("attention", 33, 40, 41),
    ("attention", 34, 42, 43),
)
_TWO_STREAMS: Trace = (  # "rope" runs beside the others; its second kernel begins before what was launched before it
    ("linear", 0, 4, 24),
    ("rope", 2, 6, 16),
    ("attention", 30, 90, 115),
    ("rope", 32, 65, 70),
    ("rmsnorm", 60, 116, 119),
)
_TRACES = tuple({"trace": trace} for trace in (_AHEAD, _BEHIND, _MANY_SMALL, _TWO_STREAMS))
_OF_OPERATORS = tuple(
    {"trace": trace, "operator": operator}
    for trace, operator in ((_AHEAD, "swiglu"), (_BEHIND, "rope"), (_MANY_SMALL, "attention"), (_AHEAD, "softmax"))
)


def _most(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0]


def _by_operator(trace: Trace) -> Counter[str]:
    """Microseconds on the GPU."""
    totals: Counter[str] = Counter()
    for operator, _, start, end in trace:
        totals[operator] += end - start
    return totals


def _bottleneck(trace: Trace) -> str:
    return _most(_by_operator(trace))


def _since_queued(trace: Trace) -> str:
    totals: Counter[str] = Counter()
    for operator, queued, _, end in trace:
        totals[operator] += end - queued
    return _most(totals)


def _calls(trace: Trace) -> Counter[str]:
    return Counter(operator for operator, *_ in trace)


BOTTLENECK = Calculation(
    "profiling.bottleneck",
    "The operator that takes the most time",
    _bottleneck,
    _TRACES,
    (
        Mistake(
            "all its kernels",
            "What counts is the time of all of an operator's kernels.",
            "Which operator do the many short kernels belong to, and how long are they together?",
            lambda trace: max(trace, key=lambda kernel: kernel[3] - kernel[2])[0],
        ),
        Mistake(
            "time, not launches",
            "What counts is time, not how often an operator is launched.",
            "How long does each of those kernels run?",
            lambda trace: _most(_calls(trace)),
        ),
        Mistake(
            "time on the GPU",
            "A kernel that waits in the queue takes no time of the GPU.",
            "Which two of the three times does the GPU spend on the kernel?",
            _since_queued,
        ),
    ),
)


def _share(trace: Trace, operator: str) -> float:
    return _by_operator(trace)[operator] / _by_operator(trace).total()


def _span(trace: Trace) -> int:
    """From the start of the first kernel to the end of the last."""
    return max(end for *_, end in trace) - min(start for _, _, start, _ in trace)


SHARE = Calculation(
    "profiling.share",
    "An operator's share",
    _share,
    _OF_OPERATORS,
    (
        Mistake(
            "of the kernels' time",
            "The shares of all operators add up to one.",
            "To whom does your sum give the time in which nothing runs?",
            lambda trace, operator: _by_operator(trace)[operator] / _span(trace),
        ),
        Mistake(
            "time, not launches",
            "A share is one of time, not of launches.",
            "Are all kernels equally long?",
            lambda trace, operator: _calls(trace)[operator] / len(trace),
        ),
        Mistake(
            "between 0 and 1",
            "A share is a fraction.",
            "What is the largest share that there can be?",
            lambda trace, operator: 100 * _share(trace, operator),
        ),
    ),
)


def _by_start(trace: Trace) -> Trace:
    return sorted(trace, key=lambda kernel: kernel[2])


def _gaps(in_order: Trace) -> Iterator[tuple[int, Kernel]]:
    """When the GPU ran out of kernels, and the one that came next; for every gap."""
    first, *rest = in_order
    done = first[3]
    for kernel in rest:
        if kernel[2] > done:
            yield done, kernel
        done = max(done, kernel[3])


def _gaps_after_the_one_before(trace: Trace) -> Iterator[tuple[int, Kernel]]:
    """The same by a mistake: as if no kernel went on after the next had begun."""
    return ((before[3], after) for before, after in pairwise(_by_start(trace)) if after[2] > before[3])


def _idle_us(trace: Trace) -> int:
    return sum(start - done for done, (_, _, start, _) in _gaps(_by_start(trace)))


_LAST = "the one that ends last"
_LAST_SAYS = "A gap begins when the last of the running kernels ends, and that need not be the one that started last."
_LAST_HINT = "Which kernels have started before the gap, and when has the last of them ended?"

IDLE = Calculation(
    "profiling.idle_us",
    "The gaps",
    _idle_us,
    _TRACES,
    (
        Mistake(
            "kernels that overlap",
            "Where two kernels run at the same time, the GPU is busy once.",
            "Does your sum stay the same if a kernel on another stream runs beside a long one?",
            lambda trace: _span(trace) - _by_operator(trace).total(),
        ),
        Mistake(
            _LAST,
            _LAST_SAYS,
            _LAST_HINT,
            lambda trace: sum(start - done for done, (_, _, start, _) in _gaps_after_the_one_before(trace)),
        ),
        Mistake(
            "in the order in which they start",
            "Kernels on two streams need not start in the order in which they were launched.",
            "Which kernel is the next to start, and is it the next of the list?",
            lambda trace: sum(start - done for done, (_, _, start, _) in _gaps(trace)),
        ),
        Mistake(
            "from the first kernel",
            "The step begins on the GPU with its first kernel.",
            "What do you count before anything has run?",
            lambda trace: _idle_us(trace) + min(start for _, _, start, _ in trace),
        ),
    ),
)


def _waiting(gaps: Iterator[tuple[int, Kernel]]) -> int:
    return sum(max(0, queued - done) for done, (_, queued, _, _) in gaps)


def _waiting_us(trace: Trace) -> int:
    return _waiting(_gaps(_by_start(trace)))


WAITING = Calculation(
    "profiling.waiting_us",
    "The gaps that launches make",
    _waiting_us,
    _TRACES,
    (
        Mistake(
            "queued in time",
            "A gap before a kernel that had been queued is not the launch's.",
            "What could the CPU have done earlier?",
            _idle_us,
        ),
        Mistake(
            "until it is queued",
            "The GPU waits for a launch until the kernel is queued; what comes after that is something else.",
            "From when on could the GPU have started the kernel?",
            lambda trace: sum(kernel[2] - done for done, kernel in _gaps(_by_start(trace)) if kernel[1] > done),
        ),
        Mistake(
            _LAST,
            _LAST_SAYS,
            _LAST_HINT,
            lambda trace: _waiting(_gaps_after_the_one_before(trace)),
        ),
    ),
)


def _bound(trace: Trace) -> str:
    return "launches" if _waiting_us(trace) > _span(trace) - _idle_us(trace) else "GPU"


BOUND = Calculation(
    "profiling.bound",
    "Bound by launches, or by the GPU?",
    _bound,
    _TRACES,
    (
        Mistake(
            "the right way round",
            "Bound by launches is a step whose GPU waits.",
            "A step of one kernel that takes a second: what is it bound by?",
            lambda trace: "GPU" if _bound(trace) == "launches" else "launches",
        ),
        Mistake(
            "which gaps",
            "A gap that no launch has made is not mended by launching faster.",
            "Which of your two sums of gaps is it?",
            lambda trace: "launches" if _idle_us(trace) > _span(trace) - _idle_us(trace) else "GPU",
        ),
    ),
)


GRAPH = Calculation(
    "profiling.graph_us",
    "The step as a CUDA graph",
    lambda trace: _span(trace) - _waiting_us(trace),
    _TRACES,
    (
        Mistake(
            "the other gaps stay",
            "A graph takes away the waiting for launches, and no other gap.",
            "Which gaps were there although the kernel behind them had been queued?",
            lambda trace: _span(trace) - _idle_us(trace),
        ),
        Mistake(
            "kernels that overlap",
            "Kernels that run at the same time take that time once.",
            "Which of the traces has two streams?",
            lambda trace: _by_operator(trace).total(),
        ),
        Mistake(
            "less than before",
            "In the graph the GPU does not wait for launches.",
            "What is left of the step, if all has been queued before it begins?",
            _span,
        ),
    ),
)

EXERCISES = (BOTTLENECK, SHARE, IDLE, WAITING, BOUND, GRAPH)
