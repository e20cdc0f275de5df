"""The roofline: how fast an operator's work can go on a GPU, and what bounds it.

A pass that does F FLOPs and moves B bytes has the intensity F / B. On a GPU that copies `bandwidth` bytes and computes
`rate` FLOPs a second, it cannot do more than min(rate, intensity x bandwidth) FLOPs a second. Left of the ridge, where
the two are equal, memory is the bound; right of it, compute is. Both ceilings are measured, and come out of a record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure

from lab.backends import registry
from lab.benchmark.candidates import Workload
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.figures import Figure, colour, figure, style
from lab.benchmark.records import PEER, Record
from lab.benchmark.tables import Table, labels, shape_text
from lab.ops.operator import Cost

MARKERS = "os^Dv<>Pp*hX"
ROOF = "#767676"


@dataclass(frozen=True)
class Roofline:
    """Where one pass lies under the ceilings of one GPU.

    intensity: FLOPs a byte, of the minimal bytes. ridge: the intensity at which memory and compute take equally long.
    bound: "memory" or "compute". floor_us: microseconds that the pass takes at the least. roof_tflops: TFLOP/s that it
    reaches then.
    """

    cost: Cost
    ceilings: Ceilings

    @property
    def intensity(self) -> float:
        return self.cost.intensity

    @property
    def ridge(self) -> float:
        return self.ceilings.matmul_tflops * 1e3 / self.ceilings.copy_gbps

    @property
    def bound(self) -> str:
        return "memory" if self.intensity < self.ridge else "compute"

    @property
    def floor_us(self) -> float:
        return self.ceilings.floor_us(self.cost)

    @property
    def roof_tflops(self) -> float:
        return self.cost.flops / self.floor_us / 1e6


def roofline(record: Record, operator: str, shape: Sequence[int], direction: str, dtype: str = "bfloat16") -> Roofline:
    """The roofline of a pass at the ceilings of `record`; the workload itself need not be in the record.

    Raises ValueError for an unknown operator.
    """
    cost = registry.operator(operator).cost(tuple(shape), getattr(torch, dtype), direction)
    return Roofline(cost, record.ceilings)


def of(record: Record, workload: Workload) -> Roofline:
    """The roofline of a workload at the ceilings of `record`, which need not hold it."""
    return roofline(record, workload.operator, workload.shape, workload.direction, workload.dtype)


def table(record: Record, workloads: Iterable[Workload]) -> Table:
    """What each workload is made of, what bounds it, and the microseconds that it takes at the least."""
    workloads = list(workloads)
    operators = dict.fromkeys(workload.operator for workload in workloads)
    rows = []
    for workload in workloads:
        here = of(record, workload)
        name = "" if len(operators) == 1 else f"{workload.operator} "
        rows.append(
            [
                f"{name}{workload.direction} {shape_text(workload.shape)}",
                _number(here.intensity),
                here.bound,
                f"{here.floor_us:.1f}",
                _number(here.cost.flops / 1e6),
                _number(here.cost.bytes / 1e6),
            ]
        )
    first = next(iter(operators)) if len(operators) == 1 else "operator"
    return Table([first, "FLOPs a byte", "bound", "floor us", "MFLOP", "MB"], rows)


def places(record: Record, groups: Mapping[str, Sequence[Workload]]) -> Figure:
    """Both roofs, and on them the places of the workloads: a marker for each group, which the legend names with the
    intensity of its workloads, from the least to the largest. What does no arithmetic stands at the left edge. Nothing
    in it was timed but the roofs.
    """
    heres = {name: [of(record, workload) for workload in group] for name, group in groups.items()}
    every = [here for group in heres.values() for here in group]
    ridge = every[0].ridge
    left = min([ridge / 1000, *(here.intensity / 2 for here in every if here.intensity)])
    right = max([ridge * 50, *(here.intensity * 2 for here in every)])
    with style():
        fig = MplFigure(figsize=(5.6, 3.6 + 0.22 * ((len(groups) + 1) // 2)))
        axes = fig.subplots()
        _draw_roofs(axes, record.ceilings, left, right, min(here.roof_tflops or math.inf for here in every), 1.6)
        axes.minorticks_off()
        axes.vlines(ridge, axes.get_ylim()[0], record.ceilings.matmul_tflops, color=ROOF, linestyle=":", linewidth=1)
        told = []
        for index, (name, group) in enumerate(heres.items()):
            least, most = (_number(pick(here.intensity for here in group)) for pick in (min, max))
            intensity = least if least == most else f"{least} to {most}"
            bounds = " or ".join(sorted({f"{here.bound}-bound" for here in group}, reverse=True))
            axes.plot(
                [here.intensity or left for here in group],
                [here.roof_tflops or left * record.ceilings.copy_gbps / 1e3 for here in group],
                clip_on=False,
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                markerfacecolor="none",
                markeredgewidth=2,
                label=f"{name} {intensity}",
            )
            told.append(f"{name} {intensity}, {bounds}")
        fig.legend(loc="outside lower center", ncols=2, handletextpad=0.2, columnspacing=1.0)
        alt = (
            f"Places on the roofline of {record.environment.gpu}, whose ridge is at {ridge:.0f} FLOPs a byte, by FLOPs "
            f"a byte: {'; '.join(told)}"
        )
        return figure(fig, alt)


def plot(record: Record, operator: str, shape: Sequence[int], direction: str) -> Figure:
    """Both roofs, and every rung and peer that has a time on this workload, each with its own marker.

    All do the same work, so they stand above one another at the operator's intensity: the nearer to the roof, the less
    time is lost. The inset shows them side by side under the roof, on a linear scale.

    Raises ValueError if the record has no time for the workload, or if it has no FLOPs.
    """
    order = labels(record, operator, all_rungs=True)
    rows = [row for row in record.at(operator, direction, shape) if row.tflops is not None]
    rows.sort(key=lambda row: order.index(row.label))
    if not rows:
        raise ValueError(f"the record has no time for {operator} {direction} {shape_text(shape)}")
    here = roofline(record, operator, shape, direction, rows[0].dtype)
    if not here.intensity:
        raise ValueError(f"{operator} {direction} has no FLOPs, and so no place on a logarithmic axis of them")
    left, right = min(here.intensity, here.ridge) / 8, max(here.intensity, here.ridge) * 8
    achieved = [row.tflops or 0 for row in rows]
    with style():
        fig = MplFigure(figsize=(5.6, 4.0 + 0.22 * len(rows)))
        axes = fig.subplots()
        _draw_roofs(axes, record.ceilings, left, right, min(achieved), 1.15)
        near = axes.inset_axes((0.53, 0.08, 0.46, 0.42))  # the part below the roof, its points side by side
        near.axhline(here.roof_tflops, color=ROOF)
        near.text(len(rows) - 0.5, here.roof_tflops, "roof", fontsize=12, ha="right", va="bottom")
        near.set(xlim=(-0.5, len(rows) - 0.5), ylim=(0, 1.2 * max(here.roof_tflops, *achieved)), xticks=[])
        for index, (row, value) in enumerate(zip(rows, achieved, strict=True)):
            looks: dict[str, Any] = {
                "linestyle": "none",
                "marker": MARKERS[index % len(MARKERS)],
                "color": colour(row),
                "markerfacecolor": "none" if row.backend == PEER else colour(row),
            }
            axes.plot(here.intensity, value, label=f"{row.label} {_number(value)}", **looks)
            near.plot(index, value, **looks)
        fig.legend(loc="outside lower center", ncols=2, handletextpad=0.2, columnspacing=1.0)
        told = ", ".join(f"{row.label} {_number(value)}" for row, value in zip(rows, achieved, strict=True))
        alt = (
            f"Roofline of {operator} {direction} at {shape_text(shape)} on {record.environment.gpu}: "
            f"{here.bound}-bound at {here.intensity:.3g} FLOPs a byte under a roof of {here.roof_tflops:.3g} TFLOP/s; "
            f"reached: {told}"
        )
        return figure(fig, alt)


def _draw_roofs(axes: Axes, ceilings: Ceilings, left: float, right: float, least: float, above: float) -> None:
    """Both roofs between the intensities `left` and `right`, with room below for `least` TFLOP/s. The name of the upper
    one stands at `above` times its height."""
    bandwidth, rate = ceilings.copy_gbps, ceilings.matmul_tflops
    axes.loglog(
        [left, rate * 1e3 / bandwidth, right], [left * bandwidth / 1e3, rate, rate], color=ROOF, zorder=1, linewidth=2
    )
    steep = left * 12 * bandwidth / 1e3 > rate / 5  # a decade on, which the name is wide, the roof would go through it
    axes.text(left * 1.2, rate * above if steep else rate / 4, f"memory: {bandwidth:.0f} GB/s", fontsize=12)
    axes.text(right, rate * above, f"compute: {rate:.0f} TFLOP/s", fontsize=12, ha="right")
    axes.set_xlim(left, right)
    axes.set_ylim(min(least, left * bandwidth / 1e3) / 2, rate * 3)
    axes.set_xlabel("FLOPs a byte")
    axes.set_ylabel("TFLOP/s")


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
