"""Run an experiment on the GPU that is here, publish its record, and measure it again to see what has drifted."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch._dynamo
import torch._functorch.config
from tqdm import tqdm

from lab.backends import registry
from lab.backends.implementation import Implementation
from lab.benchmark import config, model_runs, records, timing
from lab.benchmark.candidates import METHOD, Call, Expected, Inputs, Workload
from lab.benchmark.config import Experiment
from lab.benchmark.environment import slug
from lab.benchmark.fingerprint import described_launches, fingerprint
from lab.benchmark.instruments import Instruments, gpu_instruments
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.peers import PeerAbsent
from lab.benchmark.peers import peers as known_peers
from lab.benchmark.records import BASELINE, PEER, Record, Row
from lab.files import write_text

SHORT_US = 20.0  # with a floor below this, launching takes as long as running: CUDA graph and launch are measured too
AnyRow = Row | ModelRow
AUTO = Path(registry.__file__).with_name("auto.json")


def run(experiment: Experiment, instruments: Instruments | None = None, progress: bool = True) -> Record:
    """Measure every candidate on every workload, and every trap. A candidate that cannot run, is wrong, or is
    impossibly fast becomes a row with its error and no time.

    Raises CannotTime without a GPU, and whatever a GPU raises that has broken down.
    """
    instruments = instruments or gpu_instruments()
    workloads, models = experiment.workloads, experiment.models
    if instruments.device.type == "cuda":
        capability = torch.cuda.get_device_capability(instruments.device)
        workloads = tuple(config.without_bfloat16(workload, capability) for workload in workloads)
        models = tuple(config.without_bfloat16(workload, capability) for workload in models)
        if (workloads, models) != (experiment.workloads, experiment.models):
            print("this GPU has no bfloat16: measuring in float16 instead", file=sys.stderr)
    rows: list[Row] = []
    model_rows: list[ModelRow] = []
    everything: list[Workload | ModelWorkload] = [*workloads, *models]
    with tqdm(total=len(everything), unit="workload", disable=not progress, file=sys.stderr, ncols=80) as bar:
        for workload in everything:
            bar.set_postfix_str(str(workload)[:36])
            if isinstance(workload, ModelWorkload):
                model_rows += model_runs.run_workload(workload, experiment, instruments)
            else:
                # Lest torch.compile's backward eats what was saved for it, and so can run only once.
                with torch._functorch.config.patch(donated_buffer=workload.direction != "backward"):
                    rows += _run_workload(workload, experiment, instruments)
            gc.collect()
            if instruments.device.type == "cuda":
                torch.cuda.empty_cache()
            bar.update()
    found = tuple(instruments.trap(name, experiment.max_samples) for name in experiment.traps)
    return Record(
        schema=records.SCHEMA,
        experiment=experiment.name,
        config=json.loads(json.dumps(asdict(experiment))),
        method=" ".join([*([METHOD] if workloads else []), *([model_runs.METHOD] if models else [])]),
        environment=instruments.environment,
        ceilings=instruments.ceilings,
        rows=tuple(rows),
        models=tuple(model_rows),
        traps=found,
    )


class _Ready(NamedTuple):
    """A candidate that gave the right result."""

    row: Row
    call: Call
    implementation: Implementation | None  # None: a peer


def _run_workload(workload: Workload, experiment: Experiment, instruments: Instruments) -> list[Row]:
    torch._dynamo.reset()
    cost = registry.operator(workload.operator).cost(workload.shape, workload.torch_dtype, workload.direction)
    floor_us = instruments.ceilings.floor_us(cost)

    def blank(backend: str, rung: str, version: str | None = None) -> Row:
        return Row(
            workload.operator, backend, rung, version, workload.direction, workload.shape, workload.dtype,
            experiment.seed, cost.flops, cost.bytes, floor_us,
        )  # fmt: skip

    named = [
        implementation
        for choice in experiment.implementations
        for implementation in config.rungs(workload.operator, choice)
    ]
    implementations = list({str(each): each for each in named}.values())
    known = known_peers(workload.operator)
    peers = {name: known[name] for name in experiment.peers if name in known}
    everyone = [blank(each.backend, each.rung) for each in implementations] + [blank(PEER, name) for name in peers]
    try:
        inputs = Inputs(workload, instruments.device, experiment.seed)
        expected = Expected(inputs)
    except torch.cuda.OutOfMemoryError as error:
        return [replace(row, error=timing.first_line(error)) for row in everyone]

    finished: dict[str, Row] = {}
    ready: dict[str, _Ready] = {}
    canonical = inputs.op.canonical(*inputs.tensors)
    for implementation, row in zip(implementations, everyone, strict=False):  # the peers come after
        reason = implementation.unavailable(instruments.device) or implementation.refuses(*canonical)
        if reason:
            finished[row.label] = replace(row, error=f"cannot run: {reason}")
        else:
            build = partial(inputs.call_of, implementation)
            _prepare(row, build, expected, instruments, ready, finished, implementation)
    for name, peer in peers.items():
        try:
            fn, version = peer.load()
        except PeerAbsent as absent:
            finished[name] = replace(blank(PEER, name), error=f"absent: {absent}")
        else:
            row = blank(PEER, name, version)
            _prepare(row, partial(inputs.call_of_peer, fn), expected, instruments, ready, finished)

    try:
        times = timing.measure(
            {label: each.call for label, each in ready.items()},
            sample=instruments.sample,
            min_count=experiment.min_samples,
            max_count=experiment.max_samples,
            cap_s=instruments.cap_s,
        )
        short = {label: (each.call, timing.GRAPH_CALLS) for label, each in ready.items() if _in_a_graph(each.row)}
        graphs = instruments.graph_times(short) if short else {}
        finished |= {
            label: _finish(each, workload, times[label], graphs.get(label), instruments)
            for label, each in ready.items()
        }
    except torch.cuda.OutOfMemoryError as error:
        finished |= {label: replace(each.row, error=timing.first_line(error)) for label, each in ready.items()}
    return [finished[row.label] for row in everyone]


def _prepare(
    row: Row,
    build: Callable[[], Call],
    expected: Expected,
    instruments: Instruments,
    ready: dict[str, _Ready],
    failed: dict[str, Row],
    implementation: Implementation | None = None,
) -> None:
    """Call the candidate for the first time, and check what it returns: it goes into `ready` or into `failed`."""
    began = time.perf_counter()
    try:
        call = build()
        results = call()
        instruments.synchronize()
        compile_s = time.perf_counter() - began
        expected.check(results)
        del results
        memory = instruments.peak_memory(call)
    except Exception as error:  # whatever a kernel or a peer raises is this candidate's result
        instruments.synchronize()  # but a GPU that has broken down raises here, and ends the run
        failed[row.label] = replace(row, error=timing.first_line(error))
    else:
        ready[row.label] = _Ready(replace(row, compile_s=compile_s, peak_memory=memory), call, implementation)


def _in_a_graph(row: Row) -> bool:
    return row.floor_us < SHORT_US and row.direction == "forward"


def _finish(
    candidate: _Ready,
    workload: Workload,
    times: timing.Timing,
    graph: timing.GraphTime | None,
    instruments: Instruments,
) -> Row:
    row, rung = candidate.row, candidate.implementation
    try:
        timing.check_possible(times, row.floor_us)
    except timing.ImpossibleTiming as impossible:
        return replace(row, error=timing.first_line(impossible))
    notes, launch_us = [], None
    if row.floor_us >= SHORT_US:
        notes.append(f"graph and launch are not measured where the floor is above {SHORT_US:g} us")
    else:
        launch_us = instruments.launch_overhead(candidate.call)
        reason = graph.reason if graph else "autograd runs where the forward pass ran, outside of the capture"
        notes += [f"graph: {reason}"] if reason else []
    gpu = instruments.environment.launchers_gpu
    return replace(
        row,
        fingerprint=fingerprint(rung, workload, gpu) if rung else None,
        launches=described_launches(rung, workload, gpu) if rung else (),
        timing=times,
        graph_us=graph.us if graph else None,
        launch_us=launch_us,
        gbps=row.bytes / times.median_us / 1e3,
        tflops=row.flops / times.median_us / 1e6,
        fraction=row.floor_us / times.median_us,
        notes=tuple(notes),
    )


def fastest_backends(record: Record) -> dict[str, str]:
    """{operator: backend}: the backend whose best rung has the smallest geometric mean of times over the workloads. A
    best rung that failed on some workload is out; torch stands by its baseline row."""
    fastest = {}
    for op in record.operators():
        rows = record.select(op)
        workloads = {row.workload for row in rows}
        scores = {}
        for backend in registry.backends():
            rungs = [rung.rung for rung in registry.ladder(op, backend)]
            labels = [BASELINE] if backend == "torch" else [f"{backend}:{rung}" for rung in rungs]
            timed = [label for label in labels if any(row.label == label and row.timing for row in rows)]
            if not timed:
                continue
            times = {row.workload: row.timing.median_us for row in rows if row.label == timed[-1] and row.timing}
            if set(times) == workloads:
                scores[backend] = math.fsum(map(math.log, times.values())) / len(times)
        if scores:
            fastest[op] = min(scores, key=scores.__getitem__)
    return fastest


def publish(record: Record, output: Path | None = None) -> Path:
    """Write the record, env.txt (of every GPU that has a record there) and, out of its operators, the choice of `auto`
    for this GPU; return the record's path.
    Operators that were timed to explain models make no choice: their shapes are those of one model.

    output: a folder that takes results/<gpu>.json, env.txt and auto.json; None means their places in this checkout.
    """
    folder = output or records.experiments_folder() / record.experiment
    path = folder / "results" / f"{slug(record.environment.gpu)}.json"
    record.write(path)
    write_text(folder / "env.txt", records.environments(folder))
    if not record.models and (fastest := fastest_backends(record)):
        auto = AUTO if output is None else output / "auto.json"
        choices = json.loads(auto.read_text()) if auto.exists() else {}
        choices.setdefault(record.environment.gpu, {}).update(fastest)
        write_text(auto, json.dumps(choices, indent=2, sort_keys=True) + "\n")
        registry.preferences.cache_clear()
    return path


@dataclass(frozen=True)
class Drift:
    """One ratio that is not what was published. ratio: "fraction of ceiling" or "speedup over torch eager"."""

    row: AnyRow
    ratio: str
    published: float
    measured: float | None  # None: it could not be measured
    tolerance: float

    def __str__(self) -> str:
        what = f"{self.row}: {self.ratio} {self.published:.3f}"
        if self.measured is None:
            return f"{what}, now cannot be measured"
        change = self.measured / self.published - 1
        return f"{what}, now {self.measured:.3f} ({change:+.1%}, allowed {self.tolerance:.0%})"


def tolerance(row: AnyRow) -> float:
    """How far a ratio may be off: 3% for published times above 100 microseconds, 8% below."""
    assert row.timing is not None
    return 0.03 if row.timing.median_us > 100 else 0.08


def drifts(old: Record, new: Record) -> list[Drift]:
    """Where the ratios of `new` are off those of `old`, for every row of `old` that has a time."""
    found = []
    for row in old.all_rows:
        if row.timing is None:
            continue
        again = _match(new, row, row.label)
        for name, ratio in (("fraction of ceiling", _fraction), (f"speedup over {BASELINE}", speedup)):
            before = ratio(old, row)
            if before is None:
                continue
            now = None if again is None else ratio(new, again)
            if now is None or not abs(now / before - 1) <= tolerance(row):
                found.append(Drift(row, name, before, now, tolerance(row)))
    return found


def _match(record: Record, row: AnyRow, label: str) -> AnyRow | None:
    return next((r for r in record.all_rows if r.workload == row.workload and r.label == label), None)


def _fraction(record: Record, row: AnyRow) -> float | None:
    return row.fraction


def speedup(record: Record, row: AnyRow) -> float | None:
    """Time of torch eager over time of `row`, both in `record`; None where one was not timed, and for torch itself."""
    baseline = _match(record, row, BASELINE)
    if row.label == BASELINE or baseline is None or baseline.timing is None or row.timing is None:
        return None
    return baseline.timing.median_us / row.timing.median_us


def reproduce(name: str, instruments: Instruments | None = None, progress: bool = True) -> list[Drift]:
    """Measure experiment `name` again, and compare with the record that is published for this GPU.

    Raises FileNotFoundError if there is none for this GPU, ValueError for an experiment of traps alone, CannotTime
    without a GPU.
    """
    experiment = config.load(name)
    if not (experiment.workloads or experiment.models):
        raise ValueError(f"experiment {name!r} has traps alone, and no ratios that could be compared")
    if instruments is None:
        timing.require_gpu()
        records.published(name, torch.cuda.get_device_name())  # before minutes are spent
        instruments = gpu_instruments()
    old = records.published(name, instruments.environment.gpu)
    return drifts(old, run(experiment, instruments, progress))
