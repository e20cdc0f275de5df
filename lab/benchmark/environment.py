"""The machine and the software that a record was measured with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

import lab
from lab.backends.hardware import GPU, gpu_of

PACKAGES = ("torch", "triton", "cuda-core", "nvidia-cuda-nvrtc", "liger-kernel", "quack-kernels", "nvidia-cutlass-dsl")


@dataclass(frozen=True)
class Environment:
    """gpu: the name that torch reports. capability, multiprocessors, shared_memory: as in `lab.backends.hardware.GPU`.
    power_limit_w, sm_clock_mhz, memory_clock_mhz (the highest clocks) and driver as nvidia-smi tells them, None without
    it. packages: installed versions. commit: of this repository, else LAB_COMMIT. dirty: whether files differed from
    that commit; None if unknown. date: UTC, ISO 8601."""

    gpu: str
    capability: tuple[int, ...]
    multiprocessors: int
    shared_memory: int
    power_limit_w: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    driver: str | None
    cuda: str | None
    python: str
    platform: str
    lab: str
    packages: dict[str, str]
    commit: str | None
    dirty: bool | None
    date: str

    @property
    def launchers_gpu(self) -> GPU:
        """The GPU as launchers see it."""
        return GPU(self.gpu, self.capability, self.multiprocessors, self.shared_memory)  # type: ignore[arg-type]

    def text(self) -> str:
        """One `key: value` a line."""
        fields = asdict(self)
        packages = fields.pop("packages")
        return "".join(f"{key}: {value}\n" for key, value in {**fields, **packages}.items())


def slug(gpu: str) -> str:
    """The name of a GPU's files: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def environment() -> Environment:
    """This process's environment; the current GPU's, which must be there."""
    gpu = gpu_of(torch.device("cuda"))
    driver, power, sm_clock, memory_clock = nvidia_smi(
        "driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory"
    )
    commit, dirty = _commit()
    return Environment(
        gpu=gpu.name,
        capability=gpu.capability,
        multiprocessors=gpu.multiprocessors,
        shared_memory=gpu.shared_memory,
        power_limit_w=number(power),
        sm_clock_mhz=number(sm_clock),
        memory_clock_mhz=number(memory_clock),
        driver=driver,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        platform=platform.platform(),
        lab=lab.__version__,
        packages=_versions(),
        commit=commit,
        dirty=dirty,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def nvidia_smi(*fields: str) -> list[str | None]:
    """What nvidia-smi tells of the current GPU, field by field; None for all where it is missing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if uuid := getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None):
        command.append(f"--id=GPU-{uuid}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [None] * len(fields)
    values = [value.strip() for value in answer.strip().split("\n")[0].split(",")]
    return [*values, *[None] * len(fields)][: len(fields)]


def number(text: str | None) -> float | None:
    """As nvidia-smi writes it; None for what it does not know."""
    try:
        return float(text) if text is not None else None
    except ValueError:  # "[N/A]"
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> tuple[str | None, bool | None]:
    root = Path(lab.__file__).parents[1]
    if not (root / ".git").exists():
        return os.environ.get("LAB_COMMIT"), None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("LAB_COMMIT"), None
