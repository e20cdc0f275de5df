"""The bytes that cross device memory, counted by Nsight Compute (`ncu`), beside those that the contracts ask for."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lab.benchmark.tables import NOTHING, Table
from lab.benchmark.timing import CannotTime
from lab.core.cost import OperatorCall
from lab.profiling.profiler import ELSEWHERE, MODULE, OPERATOR

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
# A cold L2 for every kernel (`--cache-control all`) is what the contracts count from: every input comes from memory.
OPTIONS = (
    "--csv --nvtx --config-file off --print-units base "
    "--clock-control none --cache-control all --profile-from-start off"
)
PROBE = "import torch; torch.cuda.profiler.start(); torch.ones(1, device='cuda').add(1).cpu()"


class Kernel(NamedTuple):
    """One launch. module: path of the innermost one that it ran in; operator: of the pass that launched it; "" where
    there is none. read, written: bytes of device memory."""

    name: str
    module: str
    operator: str
    read: int
    written: int


class Traffic(NamedTuple):
    """What the calls of an operator in a module ("layers.*.mlp": that of every layer) move in a step.

    least: bytes, by the contracts; 0 where they say nothing. kernels: launches. read, written: bytes, counted.
    """

    module: str
    operator: str
    calls: int
    kernels: int
    least: int
    read: int
    written: int


def count(arguments: Sequence[str]) -> list[Kernel]:
    """The kernels that `python ARGUMENTS` launches between cudaProfilerStart and cudaProfilerStop, in order.

    Raises CannotTime, before that is run, where `ncu` is not installed, finds no GPU or may not read its counters; and
    where it has counted nothing, with what it said. ValueError for what `read` cannot read.
    """
    if shutil.which("ncu") is None:
        raise CannotTime("ncu is not on the PATH; expected Nsight Compute, which the CUDA toolkit has")
    _ncu(["-c", PROBE])
    return _ncu(arguments)


def _ncu(arguments: Sequence[str]) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = ["ncu", *OPTIONS.split(), "--metrics", f"{READ},{WRITTEN}", "--log-file", str(log)]
        environment = os.environ | {"LC_ALL": "C"}  # a comma then groups digits, and is no decimal point
        ran = subprocess.run([*command, sys.executable, *arguments], env=environment, capture_output=True, text=True)
        text = log.read_text() if log.exists() else ""
    said = [line.strip() for part in (text, ran.stdout, ran.stderr) for line in part.splitlines() if line.strip()]
    if any("ERR_NVGPUCTRPERM" in line for line in said):
        raise CannotTime(
            "ncu may not read the GPU's counters (ERR_NVGPUCTRPERM); expected root, or a driver that lets everybody: "
            "https://developer.nvidia.com/ERR_NVGPUCTRPERM"
        )
    kernels = read(text)
    if ran.returncode or not kernels:
        errors = [line for line in said if line.startswith("==ERROR==")]
        last = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
        raise CannotTime(f"ncu has counted nothing: {'; '.join([*errors, *last]) or 'no kernel was launched'}")
    return kernels


def read(text: str) -> list[Kernel]:
    """The kernels in what `ncu --csv --nvtx` prints: a row for each metric of each kernel, among lines of its own that
    begin with ==. Raises ValueError for a metric without a value in bytes, or a kernel without both."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    metrics: dict[str, dict[str, int]] = {}
    rows: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        name, value = row["Metric Name"], row["Metric Value"].replace(",", "")
        if row["Metric Unit"] != "byte" or not value.isdigit():
            unit = row["Metric Unit"]
            raise ValueError(f"ncu: {name} of {row['Kernel Name']} is {value!r} {unit}; expected a number of bytes")
        metrics.setdefault(row["ID"], {})[name] = int(value)
        rows[row["ID"]] = row
    for index, found in metrics.items():
        if missing := {READ, WRITTEN} - set(found):
            raise ValueError(f"ncu: {rows[index]['Kernel Name']} has no {', '.join(sorted(missing))}")
    return [
        Kernel(row["Kernel Name"], *_ranges(row), metrics[index][READ], metrics[index][WRITTEN])
        for index, row in rows.items()
    ]


def _ranges(row: dict[str, str]) -> tuple[str, str]:
    """(module, operator) of a kernel. Each range is a text such as "<default domain>:module: norm:none:none"."""
    text = " ".join(value for column, value in row.items() if "Push/Pop_Range" in column)
    modules = re.findall(f'{MODULE}([^:"]+)', text)
    operators = re.findall(f'{OPERATOR}([^ :"]+)', text)
    return max(modules, key=len, default=""), next(iter(operators), "")  # of nested modules, the longest path


def beside_contracts(
    kernels: Iterable[Kernel], calls: Iterable[OperatorCall], dtype: torch.dtype
) -> tuple[Traffic, ...]:
    """What was counted in a forward pass beside what the contracts say of its calls, the largest first."""
    least: Counter[tuple[str, str]] = Counter()
    called: Counter[tuple[str, str]] = Counter()
    for call in calls:
        key = call.module, call.operator
        least[key] += call.count * call.cost(dtype).bytes
        called[key] += call.count
    launched: Counter[tuple[str, str]] = Counter()
    read: Counter[tuple[str, str]] = Counter()
    written: Counter[tuple[str, str]] = Counter()
    for kernel in kernels:
        module = re.sub(r"^layers\.\d+\.", "layers.*.", kernel.module)
        key = (module, kernel.operator) if kernel.operator else ("", ELSEWHERE)
        launched[key] += 1
        read[key] += kernel.read
        written[key] += kernel.written
    rows = [
        Traffic(*key, called[key], launched[key], least[key], read[key], written[key])
        for key in dict.fromkeys([*least, *launched])
    ]
    return tuple(sorted(rows, key=lambda row: -max(row.least, row.read + row.written)))


def table(rows: Iterable[Traffic]) -> Table:
    """In MB, with a line for all."""
    rows = list(rows)
    total = Traffic("", "all", *(sum(column) for column in zip(*(row[2:] for row in rows), strict=True)))

    def cells(row: Traffic) -> list[str]:
        moved = row.read + row.written
        least = [f"{row.least / 1e6:.2f}", f"{moved / row.least:.2f}"] if row.least else [NOTHING] * 2
        counted = [f"{row.read / 1e6:.2f}", f"{row.written / 1e6:.2f}"]
        return [row.operator, row.module, f"{row.calls}", f"{row.kernels}", *counted, *least]

    header = ["operator", "in", "calls", "kernels", "read MB", "written MB", "contract MB", "times"]
    return Table(header, [cells(row) for row in (*rows, total)])
