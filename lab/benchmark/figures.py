"""Figures as SVG that is the same on every machine, with alternative text, readable in light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib import rc_context
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from lab.benchmark.experiments import speedup
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.records import PEER, Record, Row
from lab.benchmark.tables import labels, shape_text
from lab.benchmark.training_runs import TrainingRecord, spread
from lab.files import write_text

STYLE = Path(__file__).parents[1] / "style.mplstyle"
COLOURS = {"torch": "#009E73", "triton": "#0072B2", "cuda": "#D55E00", PEER: "#767676"}
OTHER = "#CC79A7"  # a backend that is not built in


@dataclass(frozen=True)
class Figure:
    """An SVG and its alternative text. A notebook shows it as HTML with the SVG inside."""

    svg: str
    alt: str

    def _repr_html_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def save(self, path: Path) -> None:
        write_text(path, self.svg)


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults and nothing else but the style file, whatever the user has set."""
    with rc_context():
        matplotlib.rcdefaults()
        with rc_context(fname=STYLE):
            yield


def figure(fig: MplFigure, alt: str) -> Figure:
    """A matplotlib figure as SVG with alternative text `alt`. Call it inside `style()`.

    The identifiers in the SVG derive from `alt`, so that two figures of one page do not share any.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": alt}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style sheet inside of the SVG would apply to the whole page: say the same on the root element.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    text = html.escape(alt)
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} role="img" '
        f'aria-label="{text}" style="width: 100%; max-width: {float(box[1]) * 4 / 3:.0f}px; height: auto; '
        f'stroke-linejoin: round; stroke-linecap: butt">\n <title>{text}</title>\n'
    )
    return Figure(root + svg[svg.index(">") + 1 :].lstrip("\n"), alt)


def colour(row: Row | ModelRow) -> str:
    """That of a row's backend; of a choice of several, that of the one beside torch."""
    if isinstance(row, Row):
        return COLOURS.get(row.backend, OTHER)
    beside = {ran.partition(":")[0] for ran in row.implementations.values()} - {"torch"}
    return COLOURS.get(beside.pop() if beside else "torch", OTHER) if len(beside) < 2 else OTHER


def ladder(
    record: Record,
    operator: str,
    direction: str,
    shape: Sequence[int],
    columns: Sequence[str] | None = None,
    dtype: str | None = None,
) -> Figure:
    """Percent of the ceiling on one workload, a bar for each rung, then for each peer.

    columns: the candidates' labels; None means all. dtype: as in `Record.at`. Raises ValueError if the record has no
    time for the workload.
    """
    order = list(columns if columns is not None else labels(record, operator, all_rungs=True))
    rows = sorted(
        (
            row
            for row in record.at(operator, direction, shape, dtype)
            if row.fraction is not None and row.label in order
        ),
        key=lambda row: order.index(row.label),
    )
    if not rows:
        raise ValueError(f"the record has no time for {operator} {direction} {shape_text(shape)}")
    with style():
        fig = MplFigure(figsize=(5.6, 0.9 + 0.4 * len(rows)))
        axes = fig.subplots()
        values = [100 * (row.fraction or 0) for row in rows]
        axes.barh([row.label for row in rows], values, color=[colour(row) for row in rows])
        right = max(114, max(values) + 12)
        for index, value in enumerate(values):  # in a column of their own, right of the ceiling
            axes.text(right, index, f"{value:.0f}", fontsize=12, ha="right", va="center")
        axes.invert_yaxis()
        axes.axvline(100, color="#767676", linestyle="--", linewidth=1)
        axes.set_xlim(0, right)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("% of the ceiling")
        axes.tick_params(left=False)
        told = ", ".join(f"{row.label} {value:.0f}%" for row, value in zip(rows, values, strict=True))
        what = f"{operator} {direction} at {shape_text(shape)}{f' in {dtype}' if dtype else ''}"
        alt = f"{what} on {record.environment.gpu}, percent of ceiling: {told}"
        return figure(fig, alt)


def times(record: Record, operator: str, direction: str, shape: Sequence[int], columns: Sequence[str]) -> Figure:
    """Median microseconds on one workload, a bar for each of the candidates `columns` (labels), and the floor. Raises
    ValueError if the record has no time for one of them."""
    rows = []
    for label in columns:
        found = record.select(operator, direction, shape, label)
        if not found or found[0].timing is None:
            raise ValueError(f"the record has no time of {label} for {operator} {direction} {shape_text(shape)}")
        rows.append(found[0])
    with style():
        fig = MplFigure(figsize=(5.6, 0.75 + 0.25 * len(rows)))
        axes = fig.subplots()
        values = [row.timing.median_us for row in rows if row.timing]
        axes.barh(columns, values, color=[colour(row) for row in rows])
        right = 1.2 * max(values)
        for index, value in enumerate(values):
            axes.text(right, index, f"{value:.0f}", fontsize=12, ha="right", va="center")
        axes.invert_yaxis()
        floor = rows[0].floor_us
        axes.axvline(floor, color="#767676", linestyle="--", linewidth=1)
        axes.set_xlim(0, right)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"microseconds; dashed: the floor, {floor:.0f}")
        axes.tick_params(left=False)
        told = ", ".join(f"{label} {value:.0f}" for label, value in zip(columns, values, strict=True))
        what = f"{operator} {direction} at {shape_text(shape)} on {record.environment.gpu}"
        return figure(fig, f"{what}, microseconds, where the floor is {floor:.0f}: {told}")


def predictions(
    record: Record,
    operator: str,
    direction: str,
    shape: Sequence[int],
    predicted: Mapping[str, tuple[float, float]],
) -> Figure:
    """The speed of every rung of ours on one workload in percent of torch eager's, a bar each, and a box from the least
    to the most that was predicted of it. predicted: percent by label; a rung that is not there has no box.

    Raises ValueError for a label in `predicted`, or torch eager, that has no time in the record.
    """
    speeds = {
        row.label: 100 * gain
        for row in record.at(operator, direction, shape)
        if (gain := speedup(record, row)) is not None and row.backend != PEER
    }
    if missing := sorted(set(predicted) - set(speeds)):
        raise ValueError(f"the record has no time of {missing[0]} for {operator} {direction} {shape_text(shape)}")
    rungs = [label for label in labels(record, operator, all_rungs=True) if label in speeds]
    with style():
        fig = MplFigure(figsize=(5.6, 0.9 + 0.4 * len(rungs)))
        axes = fig.subplots()
        values = [speeds[label] for label in rungs]
        axes.barh(rungs, values, color=[COLOURS.get(label.partition(":")[0], OTHER) for label in rungs])
        right, told = max(114, max(values) + 12), []
        for index, (label, value) in enumerate(zip(rungs, values, strict=True)):
            axes.text(
                right, index, f"{value:.0f}" if value >= 10 else f"{value:.1f}", fontsize=12, ha="right", va="center"
            )
            told.append(f"{label} {value:.1f}%")
            if label in predicted:
                low, high = predicted[label]
                axes.add_patch(
                    Rectangle((low, index - 0.5), high - low, 1, fill=False, edgecolor="#767676", linewidth=2)
                )
                told[-1] += f", predicted {low:g} to {high:g}"
        axes.invert_yaxis()
        axes.axvline(100, color="#767676", linestyle="--", linewidth=1)
        axes.set_xlim(0, right)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("% of the speed of torch eager; box: predicted")
        axes.tick_params(left=False)
        what = f"{operator} {direction} at {shape_text(shape)} on {record.environment.gpu}"
        return figure(fig, f"{what}, percent of the speed of torch eager: {'; '.join(told)}")


def tokens_per_second(record: Record, workload: ModelWorkload) -> Figure:
    """New tokens a second on one workload of a model, a bar for each candidate. Raises ValueError if the record has no
    time for the workload."""
    rows = [row for row in record.models if row.workload == workload and row.tokens_per_s is not None]
    if not rows:
        raise ValueError(f"the record has no time for {workload}")
    names = [row.label.replace(",", ",\n") for row in rows]
    lines = sum(1 + name.count("\n") for name in names)
    with style():
        fig = MplFigure(figsize=(5.6, 0.9 + 0.18 * len(rows) + 0.22 * lines))
        axes = fig.subplots()
        values = [row.tokens_per_s or 0 for row in rows]
        axes.barh(names, values, color=[colour(row) for row in rows])
        for index, value in enumerate(values):
            axes.text(1.3 * max(values), index, f"{value:.0f}", fontsize=12, ha="right", va="center")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(values))
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("tokens a second")
        axes.tick_params(left=False)
        told = ", ".join(f"{row.label} {value:.0f}" for row, value in zip(rows, values, strict=True))
        return figure(fig, f"{workload} on {record.environment.gpu}, tokens a second: {told}")


def timing_errors(record: Record) -> Figure:
    """What each wrong way to time says, over the right one, on a logarithmic axis. Raises ValueError if the record has
    no traps."""
    found = {label: ratio for trap in record.traps for label, ratio in trap.errors().items()}
    if not found:
        raise ValueError("the record has no wrong way to time")
    names = [label.replace(", ", ",\n") if len(label) > 14 else label for label in found]
    written = {label: f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}" for label, ratio in found.items()}
    with style():
        fig = MplFigure(figsize=(5.6, 0.9 + 0.4 * len(names)))
        axes = fig.subplots()
        colours = [COLOURS["cuda"] if ratio > 1 else COLOURS["triton"] for ratio in found.values()]
        axes.barh(names, [ratio - 1 for ratio in found.values()], left=1, color=colours)
        axes.set_xscale("log")
        right = 100 * max(1.0, *found.values())
        axes.set_xlim(min(0.5, *found.values()) / 2, right)
        for index, text in enumerate(written.values()):
            axes.text(right, index, text, fontsize=12, ha="right", va="center")
        axes.axvline(1, color="#767676", linewidth=1)
        axes.set_xticks([tick for tick in (0.01, 1, 100, 10_000) if axes.get_xlim()[0] < tick < right])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.invert_yaxis()
        axes.set_xlabel("times what the right way says")
        axes.tick_params(left=False)
        told = "; ".join(f"{label}: {text}" for label, text in written.items())
        return figure(fig, f"Wrong ways to time on {record.environment.gpu}, as multiples of the right one. {told}")


def in_order(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], xlabel: str, alt: str) -> Figure:
    """Samples in the order in which they were taken: a panel below the other for each title, and in it for each label
    points of where it stands in the order, and microseconds."""
    with style():
        fig = MplFigure(figsize=(5.6, 0.6 + 2.2 * len(panels)))
        every = fig.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (title, series) in zip(every, panels.items(), strict=True):
            for label, points in series.items():
                axes.plot(*zip(*points, strict=True), linewidth=1.5, label=label)
            axes.set_title(title)
            axes.set_ylabel("us")
            axes.legend(loc="best")
        every[-1].set_xlabel(xlabel)
        return figure(fig, alt)


def loss_curve(record: TrainingRecord) -> Figure:
    """The loss of the first run at each step, its validation loss, and that of a bigram model where there is one.
    Raises ValueError if the run did not come to its end."""
    run = record.runs[0]
    if run.error is not None:
        raise ValueError(f"the run did not come to its end: {run.error}")
    with style():
        fig = MplFigure(figsize=(5.6, 3.6))
        axes = fig.subplots()
        steps = range(1, len(run.losses) + 1)
        axes.plot(steps, run.losses, color=(COLOURS["triton"], 0.4), linewidth=1.5, label="trained on")
        axes.plot(
            run.evaluated, run.validation_losses, color=COLOURS["cuda"], marker="o", markersize=6, label="held out"
        )
        told = f"held out {run.validation_losses[0]:.2f} after {run.evaluated[0]} steps"
        told += f" and {run.validation_losses[-1]:.2f} after {run.evaluated[-1]}"
        if record.bigram_loss is not None:
            axes.axhline(record.bigram_loss, color="#767676", linestyle="--", linewidth=1.5, label="a bigram model")
            told += f"; a bigram model {record.bigram_loss:.2f}"
        axes.set(xlim=(0, len(run.losses)), ylim=(0, None), xlabel="step", ylabel="loss, nats a token")
        axes.legend(loc="upper right")
        axes.grid(axis="y")
        told = f"trained on {run.losses[0]:.2f} at step 1, {run.losses[-1]:.2f} at step {len(run.losses)}; {told}"
        return figure(fig, f"Loss of {record.experiment} on {record.environment.gpu}, nats a token: {told}.")


def seed_spread(record: TrainingRecord, mean_of: int = 20) -> Figure:
    """Above, PyTorch's seeds as a band from the least loss to the greatest, and each other backend's mean over its
    seeds. Below, the band less the seeds' mean, and every run of the others less that on PyTorch with its seed. Each
    point is the mean over the last `mean_of` steps, fewer at the beginning. Raises ValueError unless there are two
    seeds or more."""
    found = spread(record)

    def smooth(losses: Sequence[float]) -> list[float]:
        return [fmean(losses[max(0, end - mean_of) : end]) for end in range(1, len(losses) + 1)]

    columns = list(zip(*(smooth(run.losses) for run in found.seeds)))
    edges = [[pick(column) for column in columns] for pick in (min, max)]
    centre = list(map(fmean, columns))
    steps = range(1, len(columns) + 1)
    with style():
        fig = MplFigure(figsize=(5.6, 5.0))
        above, below = fig.subplots(2, sharex=True)
        band = {"color": (COLOURS["torch"], 0.3), "linewidth": 0}
        above.fill_between(steps, *edges, label=f"torch, {len(found.seeds)} seeds", **band)
        below.fill_between(steps, *([y - z for y, z in zip(edge, centre)] for edge in edges), **band)
        for backend, runs in found.backends.items():
            colour_of = COLOURS.get(backend, OTHER)
            mean = list(map(fmean, zip(*(smooth(run.losses) for run in runs))))
            label = f"{backend}, mean of {len(runs)}" if len(runs) > 1 else backend
            above.plot(steps, mean, "--", color=colour_of, linewidth=1.5, label=label)
            for run in runs:
                off = [y - z for y, z in zip(smooth(run.losses), smooth(found.twin(run).losses))]
                below.plot(steps, off, color=colour_of, linewidth=1)
        above.set_ylabel("loss, nats a token")
        below.set(xlabel="step", ylabel="off mean, off twin", xlim=(1, len(columns)))
        below.grid(axis="y")
        above.legend(loc="upper right")
        told = "; ".join(
            f"a run on {backend} and the one on torch with its seed by at most {found.off_twins(backend)[-1]:.2g}"
            for backend in found.backends
        )
        apart = found.seeds_apart()
        return figure(
            fig,
            f"Losses of {record.experiment} on {record.environment.gpu}, step by step, means of {mean_of}. Validation "
            f"losses differ: two of torch's {len(found.seeds)} seeds by {apart[0]:.2g} to {apart[-1]:.2g}; {told}.",
        )
