"""What the launchers of row-wise operators share, whichever language their kernels are in."""

from dataclasses import replace

import torch
from torch import Tensor

from lab.backends.implementation import Implementation


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything else is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unwritten y (rows, columns) and rstd (rows,) for x (rows, columns)."""
    rows, columns = x.shape
    return x.new_empty(rows, columns), x.new_empty(rows, dtype=accumulation_dtype(x.dtype))


def pointer(tensor: Tensor | None, stand_in: Tensor) -> tuple[Tensor, int]:
    """A tensor and its row stride for an argument that a kernel may not have: it never reads the stand-in."""
    tensor = stand_in if tensor is None else tensor
    return tensor, tensor.stride(0)


def fuse_add(rung: Implementation) -> Implementation:
    """The rung of add_rmsnorm that a rung of rmsnorm becomes when its passes are given the residual and ds: one more
    tensor to read and to write, and no launch more."""

    def forward(x, residual, weight, eps):
        return rung.forward(x, weight, eps, residual)

    def backward(dy, ds, s, weight, rstd, eps):
        return rung.backward(dy, s, weight, rstd, eps, ds)

    return replace(rung, forward=forward, backward=backward)
