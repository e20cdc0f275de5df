"""A report of one record: tables and charts, as Markdown beside SVG files or as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from lab.benchmark import config, records, training_runs
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.environment import Environment
from lab.benchmark.figures import Figure, ladder, loss_curve, seed_spread, timing_errors, tokens_per_second
from lab.benchmark.records import Record
from lab.benchmark.tables import Table, ladder_table, model_table, shape_text, table, trap_table
from lab.benchmark.training_runs import TrainingRecord
from lab.benchmark.waterfall import choices, steps, time_table, waterfall, waterfall_table
from lab.files import write_text
from lab.profiling import roofline

Block = str | Table | Figure  # a paragraph, or "# heading" and the like


def blocks(record: Record) -> Iterator[Block]:
    """What a report of `record` says, in order."""
    yield from _measured(record.experiment, record.environment, record.method)
    percent = "Percent is the time that the minimal bytes or FLOPs take at these, over the median time."
    yield f"{_ceilings(record.ceilings)} {percent}"
    if stale := record.stale():
        yield f"Changed since: {', '.join(stale)}."
    yield _versions(record.environment)
    for op in record.operators():
        yield f"## {op}"
        for direction in record.directions(op):
            yield f"### {op} {direction}, percent of the ceiling"
            yield table(record, op, direction)
        timed = dict.fromkeys((row.direction, row.shape, row.dtype) for row in record.select(op) if row.timing)
        for direction, shape, dtype in timed:
            yield f"### {op} {direction} {shape_text(shape)}, {dtype}"
            yield ladder_table(record, op, direction, shape, dtype)
            yield ladder(record, op, direction, shape, dtype=dtype)
        if timed and any(row.flops for row in record.select(op)):  # what only moves bytes has no place on a roofline
            direction, shape, _ = next(iter(timed))
            yield roofline.plot(record, op, shape, direction)
    for workload in record.model_workloads():
        yield f"## {workload}"
        yield model_table(record, workload)
        if any(row.timing for row in record.models if row.workload == workload):
            yield tokens_per_second(record, workload)
    if replacing := choices(record):
        yield "## From kernel to training step"
        for compiled in (False, True):
            if any(step.measured for backend in replacing for step in steps(record, backend, compiled)):
                yield waterfall(record, compiled)
                yield from (waterfall_table(record, backend, compiled) for backend in replacing)
        # Not of a layer: alone it finds in cache what its kernels by themselves do not, and takes less time than they.
        whole = (workload for workload in record.model_workloads() if workload.level != "layer")
        yield from (time_table(record, workload) for workload in whole)
    if record.traps:
        yield "## Ways to measure"
        yield timing_errors(record)
    for trap in record.traps:
        yield trap_table(trap)
    failed = [row for row in record.all_rows if row.error]
    if failed:
        yield "## Not timed"
        yield Table(["workload", "candidate", "why"], [(row.task, row.label, row.error or "") for row in failed])


def training_blocks(record: TrainingRecord) -> Iterator[Block]:
    """The same of an experiment that trains."""
    yield from _measured(record.experiment, record.environment, record.method)
    yield _ceilings(record.ceilings)
    yield _versions(record.environment)
    yield training_runs.table(record)
    if record.bigram_loss is not None:
        yield f"On the same text a bigram model has a loss of {record.bigram_loss:.4f}."
    yield loss_curve(record) if len(record.runs) == 1 else seed_spread(record)
    if failed := [run for run in record.runs if run.error]:
        yield "## Not ended"
        yield Table(["backend", "seed", "why"], [(run.backend, str(run.seed), run.error or "") for run in failed])


def _measured(experiment: str, environment: Environment, method: str) -> Iterator[Block]:
    yield f"# {experiment} on {environment.gpu}"
    commit = f"commit {environment.commit or 'unknown'}{', with changes' if environment.dirty else ''}"
    yield f"Measured on {environment.date}, at {commit}. {method}"


def _ceilings(c: Ceilings) -> str:
    return (
        f"Ceilings of the same run: a copy of {c.copy_bytes / 2**30:.1f} GiB at {c.copy_gbps:.0f} GB/s, a "
        f"{c.matmul_size} cubed {c.matmul_dtype} matrix product at {c.matmul_tflops:.0f} TFLOP/s."
    )


def _versions(e: Environment) -> Table:
    return Table(["", "version"], [["driver", e.driver or "unknown"], ["python", e.python], *e.packages.items()])


def write(record: Record | TrainingRecord, output: Path, as_html: bool = False) -> Path:
    """Write the report into folder `output`: report.md with its figures as figure-N.svg, or report.html by itself.
    Returns the path of the report."""
    output.mkdir(parents=True, exist_ok=True)
    parts, count = [], 0
    for block in blocks(record) if isinstance(record, Record) else training_blocks(record):
        if isinstance(block, Figure) and not as_html:
            count += 1
            block.save(output / f"figure-{count}.svg")
            parts.append(f"![{block.alt}](figure-{count}.svg)\n")
        elif isinstance(block, Figure):
            parts.append(f"<figure>{block.svg}</figure>\n")
        elif isinstance(block, Table):
            parts.append(block.html() if as_html else block.markdown())
        else:
            parts.append(_html_text(block) if as_html else block + "\n")
    path = output / ("report.html" if as_html else "report.md")
    body = "\n".join(parts)
    write_text(path, _PAGE.format(title=html.escape(record.experiment), body=body) if as_html else body)
    return path


def not_recorded() -> list[str]:
    """The experiments of this checkout that have no record yet."""
    recorded = {name for name, _ in (*all_records(), *training_records())}
    return sorted({*config.names(), *training_runs.names()} - recorded)


def all_records() -> list[tuple[str, Path]]:
    """(experiment, path) of every published record, but those of `training_records`."""
    return [found for found in _published() if not (found[1].parents[1] / "train.yaml").exists()]


def training_records() -> list[tuple[str, Path]]:
    """The same of the experiments that train, which have records of their own (`lab.benchmark.training_runs`)."""
    return [found for found in _published() if (found[1].parents[1] / "train.yaml").exists()]


def _published() -> list[tuple[str, Path]]:
    paths = sorted(records.experiments_folder().glob("*/results/*.json"))
    return [(path.parents[1].name, path) for path in paths]


def _html_text(text: str) -> str:
    level = len(text) - len(text.lstrip("#"))
    return f"<h{level}>{html.escape(text[level:].strip())}</h{level}>\n" if level else f"<p>{html.escape(text)}</p>\n"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: auto; padding: 1em; }}
th, td {{ padding: 0.2em 0.6em; text-align: right; }}
th:first-child {{ text-align: left; }}
figure {{ margin: 1em 0; }}
</style>
</head>
<body>
{body}</body>
</html>
"""
