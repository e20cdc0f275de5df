"""Registers, spills and shared memory of every kernel for every architecture, told by the compilers: no GPU is needed.

Triton's interpreter and its compiler cannot share a process, so each architecture is compiled for in a process of its
own (`python -m lab.profiling.resources`).

From Hopper on, the system keeps 1 KiB of shared memory a block for itself; it is counted here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES, GPU, assume
from lab.backends.launches import Binary
from lab.backends.registry import implementations, operator, operators
from lab.benchmark import config
from lab.benchmark.records import experiments_folder
from lab.benchmark.tables import Table
from lab.files import write_text

COMPILERS = ("triton", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes. implementation: such as "triton:naive". registers: of a thread. spilled: bytes of a thread
    in local memory, where registers go that do not fit. shared: bytes of a block. arch: such as "sm_90"."""

    operator: str
    implementation: str
    direction: str
    shape: tuple[int, ...]
    dtype: str
    kernel: str
    arch: str
    threads: int
    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Published:
    """What `book/experiments/<name>/resources.json` holds: the compilers' versions, and the resources of the kernels of
    the experiment's operators."""

    compilers: dict[str, str]
    rows: tuple[Resources, ...]


class ResourceError(RuntimeError):
    """A kernel did not compile; the message says which, for what, and why."""


def measure(
    names: Sequence[str] = (),
    shape: tuple[int, ...] | None = None,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    progress: bool = True,
) -> Published:
    """Compile every kernel of every rung of the operators `names` (default: all that `shape` fits), both passes, at
    `shape` (default: the first that the operator names), in bfloat16 (float16 where the architecture lacks it).

    Raises ValueError for unknown names or a shape of the wrong length, ResourceError if a kernel does not compile.
    """
    for name in names:
        if shape is not None and len(shape) != len(dims := operator(name).dims):
            raise ValueError(f"shape is {'x'.join(map(str, shape))}; {name} has {len(dims)} sizes: {', '.join(dims)}")
    fitting = [name for name, op in operators().items() if shape is None or len(shape) == len(op.dims)]
    names = [operator(name).name for name in names] or fitting
    if not names:
        raise ValueError(f"shape is {'x'.join(map(str, shape or ()))}; no operator has so many sizes")
    if unknown := set(architectures) - set(ARCHITECTURES):
        raise ValueError(f"unknown architecture {min(unknown)!r}; expected one of {', '.join(ARCHITECTURES)}")
    bar = tqdm(total=len(architectures), unit="arch", disable=not progress, file=sys.stderr, ncols=80)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = []
        for rows in pool.map(lambda arch: _in_own_process(arch, names, shape), architectures):
            found += rows
            bar.update()
    return Published({name: metadata.version(name) for name in COMPILERS}, tuple(found))


def _in_own_process(arch: str, names: Sequence[str], shape: tuple[int, ...] | None) -> list[Resources]:
    command = [sys.executable, "-m", "lab.profiling.resources", arch, *names]
    command += [f"--shape={'x'.join(map(str, shape))}"] if shape else []
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": paths}
    )
    if ran.returncode:
        raise ResourceError(f"{arch}: {ran.stderr.strip()[-2000:]}")
    return [Resources(**row | {"shape": tuple(row["shape"])}) for row in json.loads(ran.stdout)]


def compiled_here(name: str, gpu: GPU, shape: tuple[int, ...] | None = None) -> Iterator[Resources]:
    """The resources of one operator's kernels on `gpu`, compiled in this process."""
    op = operator(name)
    shape = shape or next(iter(op.shapes.values()))
    dtype = torch.bfloat16 if gpu.capability >= (8, 0) else torch.float16
    tensors = op.canonical(*op.make_inputs(shape, dtype, "meta"))
    for implementation in implementations(name):
        if implementation.function:  # PyTorch's kernels, not ours
            continue
        with assume(gpu):
            reason = implementation.unavailable(torch.device("cuda"))
            if reason and "compute capability" not in reason:
                raise ResourceError(f"{name} on {implementation} cannot be compiled: {reason}")
            if reason or implementation.refuses(*tensors):
                continue
        for direction in ("forward", "backward"):
            for launch in launches_of(implementation, shape, dtype, direction, gpu):
                binary = launch.compile()
                registers, spilled, shared = resource_usage(binary)
                yield Resources(
                    name, str(implementation), direction, shape, str(dtype).removeprefix("torch."), launch.kernel,
                    gpu.arch, binary.threads, registers, spilled, shared,
                )  # fmt: skip


def resource_usage(binary: Binary) -> tuple[int, int, int]:
    """Registers of a thread, bytes of a thread in local memory and bytes of shared memory of a block, in the binary of
    one kernel. Raises ResourceError for a binary of several."""
    usages = resource_usages(binary)
    if len(usages) != 1:
        raise ResourceError(f"expected the usage of one kernel, cuobjdump found {len(usages)}")
    return usages[0]


def resource_usages(binary: Binary) -> list[tuple[int, int, int]]:
    """The same for every kernel of a binary, as cuobjdump reads it. It lists spills as stack."""
    text = _cuobjdump("-res-usage", binary)
    usages = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if not usages:
        raise ResourceError(f"expected the usage of a kernel, cuobjdump printed: {text.strip()}")
    return [
        (int(registers), int(stack), int(static_shared) + binary.dynamic_shared)
        for registers, stack, static_shared in usages
    ]


def instructions(binary: Binary) -> int:
    """Machine instructions in the binary of one kernel: as many as a thread runs where all loops are unrolled."""
    listed = re.findall(
        r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", _cuobjdump("-sass", binary), re.MULTILINE
    )
    return sum(name != "NOP" for name in listed)


def _cuobjdump(option: str, binary: Binary) -> str:
    """What cuobjdump, which comes with Triton, prints of a binary."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.cubin)
        file.flush()
        return subprocess.run([cuobjdump, option, file.name], capture_output=True, text=True, check=True).stdout


def publish(experiment: str, output: Path | None = None) -> Path:
    """Compile the kernels of an experiment's operators and write resources.json, into folder `output` if given, else
    into the experiment's. Returns its path. Raises ValueError for an experiment that has none."""
    operators = config.load(experiment).operators
    if not operators:
        raise ValueError(f"experiment {experiment!r} has no operators whose kernels could be compiled")
    measured = measure(operators)
    path = (output or experiments_folder() / experiment) / "resources.json"
    rows = ",\n  ".join(json.dumps(asdict(row)) for row in measured.rows)
    write_text(path, f'{{\n "compilers": {json.dumps(measured.compilers)},\n "rows": [\n  {rows}\n ]\n}}\n')
    return path


def published(experiment: str) -> Published:
    """What an experiment has published. Raises FileNotFoundError if there is nothing."""
    raw = json.loads((experiments_folder() / experiment / "resources.json").read_text())
    return Published(raw["compilers"], tuple(Resources(**row | {"shape": tuple(row["shape"])}) for row in raw["rows"]))


def table(rows: Sequence[Resources]) -> Table:
    """A line a kernel, a column an architecture: registers, then, where there are any, + bytes spilled, then KiB of
    shared memory."""
    architectures = list(dict.fromkeys(row.arch for row in rows))
    kernels: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row.registers}{f' +{row.spilled}' if row.spilled else ''} / {row.shared / 1024:.1f}"
        key = (row.implementation, row.direction, row.kernel.partition("<")[0])
        kernels.setdefault(key, {})[row.arch] = cell
    lines = [
        [implementation, direction, kernel, *(cells.get(arch, "-") for arch in architectures)]
        for (implementation, direction, kernel), cells in kernels.items()
    ]
    return Table(["rung", "pass", "kernel", *architectures], lines)


def main() -> None:
    """Compile for one architecture and print JSON: what `measure` runs."""
    parser = argparse.ArgumentParser(prog="python -m lab.profiling.resources", description=main.__doc__)
    parser.add_argument("arch", choices=ARCHITECTURES)
    parser.add_argument("operators", nargs="+")
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split("x"))))
    arguments = parser.parse_args()
    gpu = ARCHITECTURES[arguments.arch]
    rows = [asdict(row) for name in arguments.operators for row in compiled_here(name, gpu, arguments.shape)]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
