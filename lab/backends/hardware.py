"""What the launchers need to know of the GPU: its compute capability, multiprocessors and shared memory."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class GPU:
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one thread block may use

    @property
    def arch(self) -> str:
        """`sm_90` for compute capability 9.0."""
        return "sm_{}{}".format(*self.capability)


# Published figures of one GPU per architecture (CUDA C++ programming guide, appendix "Compute capabilities"): what a
# launcher sees when kernels are compiled on a machine that has no GPU.
ARCHITECTURES = {
    "sm_75": GPU("T4", (7, 5), 40, 64 * 1024),
    "sm_80": GPU("A100", (8, 0), 108, 163 * 1024),
    "sm_86": GPU("A10", (8, 6), 72, 99 * 1024),
    "sm_89": GPU("L4", (8, 9), 58, 99 * 1024),
    "sm_90": GPU("H100", (9, 0), 132, 227 * 1024),
    "sm_100": GPU("B200", (10, 0), 148, 227 * 1024),
    "sm_120": GPU("RTX PRO 6000", (12, 0), 188, 99 * 1024),
}

_assumed: GPU | None = None


@contextmanager
def assume(gpu: GPU):
    """Launchers see `gpu` instead of the one in the machine: for compiling without it."""
    global _assumed
    before, _assumed = _assumed, gpu
    try:
        yield gpu
    finally:
        _assumed = before


@lru_cache
def _query(index: int) -> GPU:
    properties = torch.cuda.get_device_properties(index)
    return GPU(
        properties.name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )


def gpu_of(device: torch.device) -> GPU:
    """The GPU that `device` is. For a CPU device (Triton's interpreter) a small made-up one, so that persistent kernels
    still run through more than one program."""
    if _assumed is not None:
        return _assumed
    if device.type == "cuda":
        return _query(torch.cuda.current_device() if device.index is None else device.index)
    return GPU("interpreter", (9, 0), 2, 227 * 1024)


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit dtype that models run in there: bfloat16, or float16 on a GPU that lacks it (before Ampere)."""
    return torch.float16 if gpu_of(device).capability < (8, 0) else torch.bfloat16


def default_device() -> torch.device:
    """Where things run unless told otherwise: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
