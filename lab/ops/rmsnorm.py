"""RMSNorm (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467).

    y = x * r * w,   r = 1 / sqrt(mean(x^2) + eps),   the mean over the last dimension of n columns

Backward, for the gradient dy of y, with g = w * dy:

    dx = r * g - x * r^3 * mean(g * x)
    dw = sum over all rows of dy * x * r

What an implementation's passes take and return (x, y, dy, dx: (rows, columns), unit stride in the last dimension and
any stride between rows; weight, dw: (columns,); rstd is r: (rows,), float32, or float64 for float64 inputs):

    forward(x, weight, eps) -> (y, rstd)
    backward(dy, x, weight, rstd, eps) -> (dx, dw)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, is_finite, require_floating, rows_of, seeded


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str | None = None) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x^2) + eps) * weight.

    x: (..., n), float16, bfloat16, float32 or float64, any strides. weight: (n,), x's dtype and device.
    eps: added to the mean square. backend: a choice string (`lab.backends.registry`); None means "auto".
    Returns (..., n) in x's dtype. Differentiable in x and weight (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or eps, BackendUnavailable for a backend
    that cannot run on these inputs.
    """
    return get_op("rmsnorm", backend or "auto")(x, weight, eps)


def check_norm(op: str, x: Tensor, weight: Tensor, eps: float) -> None:
    """x (..., n), weight (n,), eps a finite number of at least 0."""
    if x.dim() < 1:
        raise ValueError(f"{op}: x has no dimensions; expected (..., n)")
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; expected ({x.shape[-1]},) to match x's last dimension"
        )
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps is a {type(eps).__name__}; expected a float")
    if not is_finite(eps) or eps < 0:
        raise ValueError(f"{op}: eps is {eps}; expected a finite number of at least 0")


def norm_backward_term_sums(x: Tensor, weight: Tensor, dy: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sums of absolute terms of dx and dw; float64."""
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    g = (weight * dy).abs()
    dx = rstd * g + x.abs() * rstd**3 * (g * x.abs()).mean(-1, keepdim=True)
    dw = (dy * x * rstd).abs().reshape(-1, x.shape[-1]).sum(0)
    return dx, dw


class RMSNorm(Operator):
    name = "rmsnorm"
    tensors = ("x", "weight")
    outputs = ("y",)
    residuals = ("rstd",)
    dims = ("rows", "columns")
    shapes = {
        "llama3-8b": (16384, 4096),
        "llama3-70b": (16384, 8192),
        "llama3-405b": (4096, 16384),
        "llama3-8b-train": (65536, 4096),
        "llama3-70b-train": (65536, 8192),
        "llama3-405b-train": (16384, 16384),
        "llama3-8b-decode": (64, 4096),
    }

    def check(self, x, weight, eps):
        require_floating(self.name, x=x, weight=weight)
        check_norm(self.name, x, weight, eps)

    def reference(self, x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
        """RMSNorm over the last dimension; see `lab.ops.rmsnorm`."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def canonical(self, x, weight):
        return rows_of(x), weight.contiguous()

    def restore(self, outputs, x, weight):
        return (outputs[0].view_as(x),)

    def like_forward(self, x, weight, eps):
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
            x.shape[0], dtype=accumulation_dtype(x.dtype)
        )

    def saved(self, tensors, results):
        return *tensors, results[1]

    def like_backward(self, dy, x, weight, rstd, eps):
        return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(weight)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        generator = seeded(device, seed)
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        weight = torch.randn(shape[-1:], generator=generator, device=device, dtype=dtype)
        return x, weight

    def forward_cost(self, shape, dtype):
        rows, columns = shape
        elements, row, size = rows * columns, columns, dtype.itemsize
        return Cost(
            {
                "square and add, per element": 2 * elements,
                "mean, + eps, square root, divide, per row": 4 * rows,
                "times r, times w, per element": 2 * elements,
            },
            {"read x": elements * size, "read w": row * size, "write y": elements * size},
        )

    def backward_cost(self, shape, dtype):
        rows, columns = shape
        elements, row, size = rows * columns, columns, dtype.itemsize
        return Cost(
            {
                "g = w dy; g x and its sum, per element": 3 * elements,
                "the row's coefficient, per row": 4 * rows,
                "dx = r g - c x, per element": 3 * elements,
                "dw: x r, times dy, add, per element": 3 * elements,
            },
            {
                "read x": elements * size,
                "read dy": elements * size,
                "read w": row * size,
                "write dx": elements * size,
                "write dw": row * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        x, weight, eps = args
        return (self.reference(x, weight, eps).abs(),), norm_backward_term_sums(x, weight, grads[0], eps)


OPERATOR = RMSNorm()
