"""What this GPU can do at best, measured in the same run as what is held against it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lab.backends.hardware import half_dtype
from lab.ops.operator import Cost

SAMPLES = 20
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """copy_gbps: GB/s (1e9 bytes, read plus written) of a device copy of `copy_bytes` bytes.
    matmul_tflops: TFLOP/s of a product of two square random matrices of `matmul_size` in `matmul_dtype`."""

    copy_gbps: float
    copy_bytes: int
    matmul_tflops: float
    matmul_dtype: str
    matmul_size: int

    def memory_us(self, cost: Cost) -> float:
        """Microseconds that the minimal bytes of `cost` take at the copy's bandwidth."""
        return cost.bytes / (self.copy_gbps * 1e3)

    def compute_us(self, cost: Cost) -> float:
        """Microseconds that the FLOPs of `cost` take at the matrix product's rate."""
        return cost.flops / (self.matmul_tflops * 1e6)

    def floor_us(self, cost: Cost) -> float:
        """No kernel can be faster than this (but see `timing.FLOOR_TOLERANCE`)."""
        return max(self.memory_us(cost), self.compute_us(cost))


def measure_ceilings(sample: Callable[[Callable[[], object]], float]) -> Ceilings:
    """Both ceilings of the current GPU. sample: times one call in microseconds (`timing.ColdSampler`)."""
    copy_gbps, copy_bytes = _copy(sample)
    torch.cuda.empty_cache()
    dtype = half_dtype(torch.device("cuda"))
    tflops = _matmul(sample, dtype)
    torch.cuda.empty_cache()
    return Ceilings(copy_gbps, copy_bytes, tflops, str(dtype).removeprefix("torch."), MATMUL_SIZE)


def _copy(sample: Callable[[Callable[[], object]], float]) -> tuple[float, int]:
    """GB/s, and the bytes copied: 4 GiB, or what memory permits."""
    free, _ = torch.cuda.mem_get_info()
    size = min(4 << 30, free // 4) // 1024 * 1024
    source = torch.empty(size // 4, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / _median(sample, lambda: target.copy_(source)) / 1e3, size


def _matmul(sample: Callable[[Callable[[], object]], float], dtype: torch.dtype) -> float:
    """TFLOP/s."""
    n = MATMUL_SIZE
    a, b = (torch.randn(n, n, dtype=dtype, device="cuda") for _ in range(2))
    product = torch.empty_like(a)
    return 2 * n**3 / _median(sample, lambda: torch.matmul(a, b, out=product)) / 1e6


def _median(sample: Callable[[Callable[[], object]], float], fn: Callable[[], object]) -> float:
    for _ in range(5):
        sample(fn)
    return statistics.median(sample(fn) for _ in range(SAMPLES))
