"""Wrong answers to the exercises of the profiling chapter: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_ADD = "total.get(operator, 0) + ended - started"
_ALL = "sum(ended - started for name, _, started, ended in trace)"
_ITS = "sum(ended - started for name, _, started, ended in trace if name == operator)"
_LAST = "busy_until = max(busy_until, ended)"
_ORDER = "sorted(trace, key=lambda kernel: kernel[2])"
_WAIT = "max(0, queued - busy_until)"

PYTHON = [
    Wrong("profiling.bottleneck", "runs", "a name that is not there", "for operator,", "for name,"),
    Wrong(
        "profiling.bottleneck",
        "answers",
        "the time, not the operator",
        "max(total, key=total.get)",
        "max(total.values())",
    ),
    Wrong(
        "profiling.bottleneck",
        "all its kernels",
        "the longest kernel",
        _ADD,
        "max(total.get(operator, 0), ended - started)",
    ),
    Wrong("profiling.bottleneck", "time, not launches", "counts", _ADD, "total.get(operator, 0) + 1"),
    Wrong("profiling.bottleneck", "time on the GPU", "from the queue on", "_, started, ended", "started, _, ended"),
    Wrong("profiling.bottleneck", "value", "always the same", "max(total, key=total.get)", '"linear"'),
    Wrong("profiling.share", "runs", "divides by nothing", _ALL, "sum(())"),
    Wrong("profiling.share", "answers", "no return", "return its", "its"),
    Wrong(
        "profiling.share",
        "of the kernels' time",
        "of the step",
        _ALL,
        "(max(ended for *_, ended in trace) - min(started for _, _, started, _ in trace))",
    ),
    Wrong("profiling.share", "time, not launches", "counts", "ended - started for", "1 for"),
    Wrong("profiling.share", "between 0 and 1", "percent", "return its", "return 100 * its"),
    Wrong("profiling.share", "value", "from the queue on", "_, started, ended", "started, _, ended"),
    Wrong("profiling.idle_us", "runs", "a name that is not there", "return idle", "return gaps"),
    Wrong("profiling.idle_us", "answers", "no return", "return idle", "idle"),
    Wrong(
        "profiling.idle_us",
        "kernels that overlap",
        "the step less its kernels",
        "return idle",
        "return busy_until - in_order[0][2] - sum(kernel[3] - kernel[2] for kernel in trace)",
    ),
    Wrong("profiling.idle_us", "the one that ends last", "the one before", _LAST, "busy_until = ended"),
    Wrong("profiling.idle_us", "in the order in which they start", "as listed", _ORDER, "list(trace)"),
    Wrong("profiling.idle_us", "from the first kernel", "from zero", "0, in_order[0][2]", "0, 0"),
    Wrong("profiling.idle_us", "value", "the longest gap", "idle += max(0,", "idle = max(idle,"),
    Wrong("profiling.waiting_us", "answers", "the kernels", "return waiting", "return in_order"),
    Wrong("profiling.waiting_us", "queued in time", "every gap", "queued - busy_until", "_started - busy_until"),
    Wrong(
        "profiling.waiting_us",
        "until it is queued",
        "the whole gap",
        "+= max(0, queued - busy_until)",
        "+= _started - busy_until if queued > busy_until else 0",
    ),
    Wrong("profiling.waiting_us", "the one that ends last", "the one before", _LAST, "busy_until = ended"),
    Wrong("profiling.waiting_us", "value", "all that has been queued", _WAIT, "queued"),
    Wrong(
        "profiling.bound",
        "answers",
        "a truth value",
        '"launches" if waiting_us(trace) > busy else "GPU"',
        "waiting_us(trace) > busy",
    ),
    Wrong("profiling.bound", "the right way round", "swapped", "> busy", "<= busy"),
    Wrong("profiling.bound", "which gaps", "all gaps", "waiting_us(trace) > busy", "idle_us(trace) > busy"),
    Wrong("profiling.bound", "value", "always the GPU", '"launches" if waiting_us(trace) > busy else "GPU"', '"GPU"'),
    Wrong("profiling.graph_us", "the other gaps stay", "no gap is left", "waiting_us", "idle_us"),
    Wrong("profiling.graph_us", "less than before", "nothing is gained", " - waiting_us(trace)", ""),
    Wrong(
        "profiling.graph_us",
        "kernels that overlap",
        "all kernels",
        "last - first - waiting_us(trace)",
        "sum(kernel[3] - kernel[2] for kernel in trace)",
    ),
    Wrong("profiling.graph_us", "value", "from zero", "last - first - ", "last - "),
]
