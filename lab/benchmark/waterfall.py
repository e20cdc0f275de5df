"""From a kernel to a training step: what is left of a faster kernel in a layer, a block, a model and a step of training
it, beside what Amdahl's law leaves of it.

The record has both: models, with operators replaced; and the operators by themselves, at the shapes that these models
give them. Times of models are the GPU's, inside a CUDA graph; a training step is not captured, and is timed by the
clock on the wall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.figure import Figure as MplFigure

from lab.benchmark.figures import Figure, colour, figure, style
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.records import BASELINE, Record
from lab.benchmark.tables import NOTHING, Table

COMPILED = "torch.compile"  # the peer whose kernels a compiled model has in place of torch eager's


def amdahl(share: float, kernel: float) -> float:
    """How many times as fast a whole becomes of which the part `share`, 0 to 1, becomes `kernel` times as fast
    (Amdahl 1967, https://doi.org/10.1145/1465482.1465560)."""
    return 1 / (1 - share + share / kernel)


@dataclass(frozen=True)
class Step:
    """What a choice of backends brings on one workload of a model, relative to torch, both eager or both compiled.

    share: the part of torch's time that its kernels take in whose place others were put; at most 1, although alone and
    with a cold cache they may take longer than in the model. kernel: how many times as fast these become; expected: by
    Amdahl's law, the whole; measured: the whole. clock: the whole as its caller sees it, launches included. Where the
    record has no time for it, each is None but the last.
    """

    workload: ModelWorkload
    share: float | None
    kernel: float | None
    expected: float | None
    measured: float | None
    clock: float


def gpu_us(row: ModelRow) -> float | None:
    """Microseconds that the GPU takes, without launches; of a training step those by the clock on the wall."""
    if row.workload.level == "training":
        return row.timing.median_us if row.timing else None
    return row.graph_us


def replaced(row: ModelRow) -> tuple[str, ...]:
    """The operators that do not run on torch."""
    return tuple(op for op, ran in row.implementations.items() if not ran.startswith("torch:"))


def kernels_us(record: Record, row: ModelRow) -> dict[str, float]:
    """{operator: microseconds that its kernels take for all its calls}, each by itself and with a cold cache. They are
    those that the row ran on; where that is torch, what PyTorch runs eager or torch.compile makes of it. Only operators
    of which the record has times at every shape."""
    found = {}
    for op, ran in row.implementations.items():
        label = ran if op in replaced(row) else COMPILED if row.compiled else BASELINE
        times = {
            (each.shape, each.direction): each.timing.median_us
            for each in record.select(op, label=label)
            if each.timing and each.dtype == row.workload.dtype
        }
        calls = [call for call in row.workload.calls if call.operator == op]
        if all((call.shape, row.workload.direction) in times for call in calls):
            found[op] = math.fsum(call.count * times[call.shape, row.workload.direction] for call in calls)
    return found


def choices(record: Record) -> list[str]:
    """The choices of backends that put other kernels in the place of torch's, of which the record has times by
    themselves."""
    found = {row.backend for row in record.models if set(replaced(row)) & set(kernels_us(record, row))}
    return [backend for backend in dict.fromkeys(row.backend for row in record.models) if backend in found]


def name_of(record: Record, backend: str) -> str:
    """A choice in the words of a table: "add_rmsnorm, rmsnorm (triton), linear (cuda)"."""
    by_backend: dict[str, set[str]] = {}
    for row in record.models:
        for op in replaced(row) if row.backend == backend else ():
            by_backend.setdefault(row.implementations[op].partition(":")[0], set()).add(op)
    return ", ".join(f"{', '.join(sorted(ops))} ({name})" for name, ops in sorted(by_backend.items(), reverse=True))


def steps(record: Record, backend: str, compiled: bool) -> list[Step]:
    """What the choice `backend` brings on every workload that has a time with it and with torch, in the record's
    order."""
    torch = {row.workload: row for row in record.models if (row.backend, row.compiled) == ("torch", compiled)}
    rows = [row for row in record.models if (row.backend, row.compiled) == (backend, compiled)]
    pairs = [(row, torch[row.workload]) for row in rows if row.workload in torch]
    return [_step(record, row, before) for row, before in pairs if row.timing and before.timing]


def _step(record: Record, row: ModelRow, torch: ModelRow) -> Step:
    assert row.timing and torch.timing
    ours, theirs, after, before = kernels_us(record, row), kernels_us(record, torch), gpu_us(row), gpu_us(torch)
    share = kernel = expected = None
    if all(op in ours and op in theirs for op in replaced(row)):
        mine, yours = (math.fsum(times[op] for op in replaced(row)) for times in (ours, theirs))
        kernel = yours / mine
        share = min(yours / before, 1.0) if before else None
    if share is not None and kernel is not None:
        expected = amdahl(share, kernel)
    measured = before / after if before and after else None
    return Step(row.workload, share, kernel, expected, measured, torch.timing.median_us / row.timing.median_us)


def waterfall_table(record: Record, backend: str, compiled: bool) -> Table:
    """The steps of a choice: the share of torch's time, how many times as fast its kernels become, and the whole: as
    Amdahl's law has it, as the GPU takes it, and as the clock on the wall sees it."""
    rows = []
    for step in steps(record, backend, compiled):
        share = None if step.share is None else 100 * step.share
        numbers = [(share, ".1f"), *((each, ".3f") for each in (step.kernel, step.expected, step.measured, step.clock))]
        rows.append([_where(step.workload), *(NOTHING if n is None else format(n, form) for n, form in numbers)])
    header = ["share %", "kernels", "Amdahl", "measured", "by the clock"]
    return Table([f"{name_of(record, backend)}, {_how(compiled)}", *header], rows, long_names=True)


def time_table(record: Record, workload: ModelWorkload) -> Table:
    """Where the GPU's time goes on a workload, for torch and every choice: microseconds of the kernels of each operator
    that the record has times of, by themselves; of the rest; and of all."""
    backends = {"torch": "torch"} | {backend: name_of(record, backend) for backend in choices(record)}
    rows = [row for row in record.models if row.workload == workload and row.backend in backends and row.timing]
    times = {row.label: kernels_us(record, row) for row in rows}
    operators = list(dict.fromkeys(op for found in times.values() for op in found))
    lines = []
    for row in rows:
        found, whole = times[row.label], gpu_us(row)
        rest = None if whole is None else whole - math.fsum(found.values())
        numbers = [*(found.get(op) for op in operators), rest, whole]
        cells = [NOTHING if number is None else f"{round(number)}" for number in numbers]
        lines.append([f"{backends[row.backend]}, {_how(row.compiled)}", *cells])
    return Table([f"{_where(workload)}, us", *operators, "the rest", "all"], lines, long_names=True)


def waterfall(record: Record, compiled: bool) -> Figure:
    """How many times as fast as torch, on the GPU: a panel for each choice, with bars for its kernels by themselves (on
    the largest forward pass that calls them, and in training) and for every workload; a diamond is what Amdahl's law
    expects. Raises ValueError if the record has no time for it."""
    panels = {backend: _bars(steps(record, backend, compiled)) for backend in choices(record)}
    panels = {backend: bars for backend, bars in panels.items() if bars}
    if not panels:
        raise ValueError(f"the record has no {_how(compiled)} model with kernels that it has times of")
    everything = [gain for bars in panels.values() for _, *gains in bars for gain in gains if gain is not None]
    low, high = min(0.95, *everything), max(1.05, *everything)
    left, right = low - 0.02 * (high - low), high + 0.3 * (high - low)
    heights = [1.0 + 0.32 * len(bars) for bars in panels.values()]
    with style():
        fig = MplFigure(figsize=(5.6, sum(heights) + 0.4))
        column = fig.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (backend, bars) in zip(column, panels.items(), strict=True):
            ran = max((row for row in record.models if row.backend == backend), key=lambda row: len(replaced(row)))
            axes.barh(range(len(bars)), [gain - 1 for _, gain, _ in bars], left=1, color=colour(ran))
            axes.set_yticks(range(len(bars)), labels=[name for name, *_ in bars])
            for index, (_, gain, expected) in enumerate(bars):
                axes.text(right, index, f"{gain:.2f}", fontsize=12, ha="right", va="center")
                if expected is not None:
                    axes.plot(expected, index, "D", markersize=6, markerfacecolor="none", color="#767676")
            axes.axvline(1, color="#767676", linewidth=1)
            axes.invert_yaxis()
            axes.set_xlim(left, right)
            axes.set_title(name_of(record, backend).replace("), ", "),\n"), fontsize=12, loc="left")
            axes.tick_params(left=False)
        column[-1].locator_params(axis="x", nbins=5)
        column[-1].set_xlabel(f"times as fast as torch {_how(compiled)}\ndiamond: by Amdahl's law")
        told = "; ".join(
            f"{name_of(record, backend)}: " + ", ".join(map(_told, bars)) for backend, bars in panels.items()
        )
        return figure(fig, f"On {record.environment.gpu}, times as fast as torch {_how(compiled)}: {told}")


def _bars(found: list[Step]) -> list[tuple[str, float, float | None]]:
    """(name, gain, what Amdahl's law expects)."""
    bars: list[tuple[str, float, float | None]] = []
    for direction, name in (("forward", "kernels, forward"), ("both", "kernels, training")):
        there = [step for step in found if step.workload.direction == direction and step.kernel]
        if there:
            largest = max(there, key=lambda step: step.workload.cost.flops)
            bars.append((name, largest.kernel or 0, None))
    one_phase = len({step.workload.phase for step in found if step.workload.phase}) == 1
    names = [step.workload.part if one_phase else _where(step.workload) for step in found]
    gains = [(name, step.measured, step.expected) for name, step in zip(names, found, strict=True)]
    return bars + [(name, measured, expected) for name, measured, expected in gains if measured]


def _told(bar: tuple[str, float, float | None]) -> str:
    name, gain, expected = bar
    return f"{name} {gain:.2f}" + ("" if expected is None else f" (by Amdahl's law {expected:.2f})")


def _where(workload: ModelWorkload) -> str:
    return " ".join(filter(None, (workload.part, workload.phase)))


def _how(compiled: bool) -> str:
    return "compiled" if compiled else "eager"
