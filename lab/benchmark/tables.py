"""Tables out of records, for notebooks, reports and terminals."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.backends import registry
from lab.benchmark.experiments import speedup
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.records import PEER, Record, Row
from lab.benchmark.traps import Trap

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table of strings. best: (row, column) of the cells to set in bold. long_names: the first column is too wide for
    a terminal, and so stands above the others there. A notebook shows it as HTML, with the name of a long first column
    as its caption."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = field(default=frozenset())
    long_names: bool = False

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cells)} |"

        cells = [
            [f"**{cell}**" if (i, j) in self.best else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        rule = ["---"] + ["---:"] * (len(self.header) - 1)
        return "\n".join(map(line, [self.header, rule, *cells])) + "\n"

    def html(self) -> str:
        first, *others = map(html.escape, self.header)
        style = "caption-side: top; text-align: left; font-weight: bold"
        caption = f'<caption style="{style}">{first}</caption>' if self.long_names else ""
        cells = ["" if self.long_names else first, *others]
        head = "".join(f'<th scope="col">{cell}</th>' for cell in cells)
        body = ""
        for i, row in enumerate(self.rows):
            name = re.sub(r",(?=\S)", ",<wbr>", html.escape(row[0]))  # a choice of backends may take several lines
            body += f'<tr><th scope="row">{name}</th>'
            for j, cell in enumerate(row[1:], start=1):
                text = html.escape(cell)
                body += f"<td>{f'<strong>{text}</strong>' if (i, j) in self.best else text}</td>"
            body += "</tr>\n"
        return (
            f'<div style="overflow-x: auto"><table>{caption}\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
        )

    def text(self) -> str:
        """Aligned columns for a terminal; an asterisk marks the best."""
        cells = [
            [f"{cell}*" if (i, j) in self.best else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines = [self.header, *cells]
        if self.long_names:
            names, lines = [line[0] for line in lines], [line[1:] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(
                cell.ljust(width) if j == 0 and not self.long_names else cell.rjust(width)
                for j, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        if self.long_names:
            texts = [text for pair in zip(names, texts, strict=True) for text in pair]
        return "\n".join(texts)

    _repr_html_ = html
    __repr__ = __str__ = text


def percent(record: Record, row: Row) -> float | None:
    """Percent of the ceiling: floor over median."""
    return None if row.fraction is None else 100 * row.fraction


def microseconds(record: Record, row: Row) -> float | None:
    """Median time in microseconds."""
    return None if row.timing is None else row.timing.median_us


VALUES: dict[str, tuple[Callable[[Record, Row], float | None], str, bool]] = {
    "percent": (percent, "{:.0f}", True),
    "time": (microseconds, "{:.1f}", False),
    "speedup": (speedup, "{:.2f}", True),
}  # value: (what it is, how it is written, whether more is better)


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def labels(record: Record, operator: str, all_rungs: bool = False) -> list[str]:
    """The candidates of `operator`: of each backend the best rung that has a time (or every rung), then the peers."""
    rows = record.select(operator)
    shown = {row.label for row in rows if row.timing or all_rungs}
    ours: list[str] = []
    for backend in registry.backends():
        ladder = [f"{backend}:{rung.rung}" for rung in registry.ladder(operator, backend)]
        ladder = [label for label in ladder if label in shown]
        ours += ladder if all_rungs else ladder[-1:]
    return ours + list(dict.fromkeys(row.label for row in rows if row.backend == PEER))


def table(
    record: Record,
    operator: str,
    direction: str,
    columns: Sequence[str] | None = None,
    value: str = "percent",
) -> Table:
    """Workloads down, candidates across, the best of each row marked. Where the record has an operator in several
    dtypes, each has its rows.

    columns: candidates' labels; None means `labels(record, operator)`. value: "percent" (of the ceiling), "time"
    (microseconds) or "speedup" (over torch eager). Raises KeyError for another value.
    """
    read, written, more_is_better = VALUES[value]
    columns = list(columns if columns is not None else labels(record, operator))
    workloads = dict.fromkeys((row.shape, row.dtype) for row in record.select(operator, direction))
    several = len(record.dtypes(operator)) > 1
    rows, best = [], set()
    for i, (shape, dtype) in enumerate(workloads):
        found = {row.label: read(record, row) for row in record.at(operator, direction, shape, dtype)}
        values = [found.get(label) for label in columns]
        cells = [NOTHING if number is None else written.format(number) for number in values]
        there = [number for number in values if number is not None]
        if there:
            top = written.format(max(there) if more_is_better else min(there))
            best |= {(i, j + 1) for j, cell in enumerate(cells) if cell == top}  # what reads alike is alike
        rows.append([f"{shape_text(shape)} {dtype}" if several else shape_text(shape), *cells])
    return Table([f"{operator} {direction}", *columns], rows, frozenset(best))


def ladder_table(
    record: Record, operator: str, direction: str, shape: Sequence[int], dtype: str | None = None
) -> Table:
    """Every rung and peer on one workload: time and its 95% interval, GB/s, percent of the ceiling, speedup. dtype: as
    in `Record.at`."""
    rows, medians = [], []
    for row in _in_order(record.at(operator, direction, shape, dtype), labels(record, operator, all_rungs=True)):
        t = row.timing
        if t is None:
            rows.append([row.label, *[NOTHING] * 5])
            medians.append(float("inf"))
            continue
        gain = speedup(record, row)
        rows.append(
            [
                row.label,
                f"{t.median_us:.1f}",
                f"{t.ci_low_us:.1f}-{t.ci_high_us:.1f}",
                f"{row.gbps:.0f}",
                f"{100 * (row.fraction or 0):.0f}",
                NOTHING if gain is None else f"{gain:.2f}",
            ]
        )
        medians.append(t.median_us)
    least = min(medians, default=float("inf"))
    best = frozenset((i, 1) for i, median in enumerate(medians) if median == least < float("inf"))
    several = len(record.dtypes(operator)) > 1
    task = f"{direction} {shape_text(shape)}{f' {dtype or record.dtypes(operator)[0]}' if several else ''}"
    return Table([task, "us", "95%", "GB/s", "% of ceiling", "vs torch"], rows, best)


def model_table(record: Record, workload: ModelWorkload) -> Table:
    """Every candidate on one workload of a model: median time of a call and what comes of it, time in a CUDA graph (in
    training MFU, TFLOP/s as a fraction of the matrix product's), peak memory beyond weights and cache, seconds that the
    first call took, and the speedup over torch eager."""
    found = [row for row in record.models if row.workload == workload]
    rows = [[row.label, *_model_cells(record, row)] for row in found]
    medians = [row.timing.median_us if row.timing else float("inf") for row in found]
    least = min(medians, default=float("inf"))
    best = frozenset((i, 1) for i, median in enumerate(medians) if median == least < float("inf"))
    fifth = "MFU %" if workload.level == "training" else "graph us"
    header = ["us", "tokens/s", "TFLOP/s", "% floor", fifth, "MiB", "compile s", "vs torch"]
    return Table([str(workload), *header], rows, best, long_names=True)


def trap_table(trap: Trap) -> Table:
    """The ways of a trap: what each says of a call, and how many samples it took; where they were read, the medians of
    power and clock meanwhile."""
    header, rows = [f"{trap.name}: {trap.work}", "", "us", "samples"], []
    has_sensors = any(way.power_w for way in trap.ways)
    for way in trap.ways:
        row = [way.label, "right" if way.right else "wrong", f"{way.us:.1f}", f"{len(way.samples_us)}"]
        if has_sensors:
            row += [f"{statistics.median(read):.0f}" if read else NOTHING for read in (way.power_w, way.sm_clock_mhz)]
        rows.append(row)
    return Table([*header, *(["W", "MHz"] if has_sensors else [])], rows)


def _model_cells(record: Record, row: ModelRow) -> list[str]:
    if row.timing is None:
        return [NOTHING] * 8
    numbers = [
        (row.timing.median_us, ".1f"),
        (row.tokens_per_s, ".0f"),
        (row.tflops, ".3g"),
        (100 * (row.fraction or 0), ".0f"),
        (_mfu(record, row) if row.workload.level == "training" else row.graph_us, ".1f"),
        ((row.peak_memory or 0) / 2**20, ".1f"),
        (row.compile_s, ".1f"),
        (speedup(record, row), ".2f"),
    ]
    return [NOTHING if number is None else format(number, written) for number, written in numbers]


def _mfu(record: Record, row: ModelRow) -> float | None:
    """Percent."""
    return None if row.tflops is None else 100 * row.tflops / record.ceilings.matmul_tflops


def _in_order(rows: Sequence[Row], order: Sequence[str]) -> list[Row]:
    return sorted(rows, key=lambda row: order.index(row.label))
