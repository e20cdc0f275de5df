"""What can be said of an experiment where nothing can be timed: the config is valid, and what the work amounts to."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from lab.backends import registry
from lab.benchmark import records, report
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.config import Experiment
from lab.benchmark.models import ModelWorkload
from lab.benchmark.tables import NOTHING, Table, shape_text
from lab.core.cost import OperatorCall
from lab.ops.operator import Cost


def estimates(experiment: Experiment, ad_hoc: bool) -> Iterator[str]:
    """A text for a terminal, part by part. ad_hoc: the experiment is none of the book's, which are recorded or will be;
    of its models it is told what they call."""
    record = _record_with_ceilings(experiment.name)
    known = [f"floors at the ceilings of {record.environment.gpu}"] if record else []
    if not ad_hoc and experiment.name in report.not_recorded():
        known.insert(0, "not yet recorded")
    yield textwrap.fill("; ".join([f"{experiment.name}: the config is valid", *known]), 80, subsequent_indent="  ")
    ceilings = record.ceilings if record else None
    if experiment.workloads:
        yield textwrap.indent(_of_operators(experiment, ceilings).text(), "  ")
    if experiment.models:
        yield textwrap.indent(_of_models(experiment, ceilings).text(), "  ")
    for workload in experiment.models if ad_hoc else ():
        yield f"  {workload} calls"
        yield textwrap.indent(_calls(workload).text(), "    ")


def _record_with_ceilings(experiment: str) -> records.Record | None:
    """The published record of the experiment, or else of the first that has one: ceilings are the GPU's."""
    recorded = dict.fromkeys(name for name, _ in report.all_records())
    name = experiment if experiment in recorded else next(iter(recorded), None)
    return records.published(name) if name else None


def _numbers(cost: Cost, ceilings: Ceilings | None) -> list[str]:
    floor = f"{ceilings.floor_us(cost):.1f}" if ceilings else NOTHING
    return [f"{cost.bytes / 1e6:.1f}", f"{cost.flops / 1e6:.1f}", f"{cost.intensity:.2f}", floor]


def _of_operators(experiment: Experiment, ceilings: Ceilings | None) -> Table:
    rows = []
    for workload in experiment.workloads:
        operator = registry.operator(workload.operator)
        cost = operator.cost(workload.shape, workload.torch_dtype, workload.direction)
        name = f"{workload.operator} {workload.direction}"
        rows.append([name, shape_text(workload.shape), *_numbers(cost, ceilings)])
    return Table(["operator", "shape", "MB", "MFLOP", "FLOP/B", "floor us"], rows)


def _of_models(experiment: Experiment, ceilings: Ceilings | None) -> Table:
    rows = [[str(workload), *_numbers(workload.cost, ceilings)] for workload in experiment.models]
    return Table(["model", "MB", "MFLOP", "FLOP/B", "floor us"], rows, long_names=True)


def _calls(workload: ModelWorkload) -> Table:
    """The operators that a pass calls, by shape; what each moves by itself, its inputs and outputs, is more in all than
    what the pass must."""
    alike: dict[tuple[str, tuple[int, ...]], list[OperatorCall]] = {}
    for call in workload.calls:
        alike.setdefault((call.operator, call.shape), []).append(call)
    rows = []
    for (op, shape), calls in alike.items():
        count, cost = sum(call.count for call in calls), calls[0].cost(workload.torch_dtype, workload.direction)
        megas = [f"{count * each / 1e6:.1f}" for each in (cost.bytes, cost.flops)]
        rows.append([op, shape_text(shape), str(count), *megas])
    return Table(["operator", "shape", "calls", "MB", "MFLOP"], rows)
