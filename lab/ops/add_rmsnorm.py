"""Residual add fused into RMSNorm: what every block of a Llama-style model does between its sublayers.

    s = x + residual
    y = rmsnorm(s, w)            (`lab.ops.rmsnorm`)

Backward, for gradients dy of y and ds of s: both addends get ds + (the gradient that rmsnorm's backward gives for s).

What an implementation's passes take and return (all (rows, columns) as in `lab.ops.rmsnorm`; s is rounded to the
inputs' dtype, and that rounded s is what is normalized, so that s and y agree):

    forward(x, residual, weight, eps) -> (y, s, rstd)
    backward(dy, ds, s, weight, rstd, eps) -> (dx, dw)       dx is the gradient of x and of residual alike
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, require_floating, rows_of, seeded
from lab.ops.rmsnorm import OPERATOR as RMSNORM
from lab.ops.rmsnorm import check_norm, norm_backward_term_sums


def add_rmsnorm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of x and residual, and its RMSNorm: returns (y, s) with s = x + residual and y = rmsnorm(s, weight).

    x, residual: (..., n), one shape, float16, bfloat16, float32 or float64, any strides. weight: (n,), x's dtype and
    device. eps: added to the mean square. backend: a choice string (`lab.backends.registry`); None means "auto".
    Both results are (..., n) in x's dtype. Differentiable in x, residual and weight (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or eps, BackendUnavailable for a backend
    that cannot run on these inputs.
    """
    return get_op("add_rmsnorm", backend or "auto")(x, residual, weight, eps)


class AddRMSNorm(Operator):
    name = "add_rmsnorm"
    tensors = ("x", "residual", "weight")
    outputs = ("y", "s")
    residuals = ("rstd",)
    dims = ("rows", "columns")
    shapes = RMSNORM.shapes

    def check(self, x, residual, weight, eps):
        require_floating(self.name, x=x, residual=residual, weight=weight)
        if residual.shape != x.shape:
            raise ValueError(
                f"{self.name}: residual has shape {tuple(residual.shape)}; expected x's shape {tuple(x.shape)}"
            )
        check_norm(self.name, x, weight, eps)

    def reference(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
        """(rmsnorm(x + residual), x + residual); see `lab.ops.add_rmsnorm`."""
        s = x + residual
        return RMSNORM.reference(s, weight, eps), s

    def canonical(self, x, residual, weight):
        return rows_of(x), rows_of(residual), weight.contiguous()

    def restore(self, outputs, x, residual, weight):
        return tuple(output.view_as(x) for output in outputs)

    def like_forward(self, x, residual, weight, eps):
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        return y, torch.empty_like(y), x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype))

    def saved(self, tensors, results):
        return results[1], tensors[2], results[2]

    def like_backward(self, dy, ds, s, weight, rstd, eps):
        return torch.empty_like(s), torch.empty_like(weight)

    def gradients(self, dx, dw):
        return dx, dx, dw

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        x, weight = RMSNORM.make_inputs(shape, dtype, device, seed)
        generator = seeded(device, seed + 1)
        return x, torch.randn(shape, generator=generator, device=device, dtype=dtype), weight

    def forward_cost(self, shape, dtype):
        norm, elements, size = RMSNORM.forward_cost(shape, dtype), shape[0] * shape[1], dtype.itemsize
        return Cost(
            {"s = x + residual, per element": elements, **norm.flop_terms},
            {"read residual": elements * size, "write s": elements * size, **norm.byte_terms},
        )

    def backward_cost(self, shape, dtype):
        norm, elements, size = RMSNORM.backward_cost(shape, dtype), shape[0] * shape[1], dtype.itemsize
        reads = {"read s" if term == "read x" else term: count for term, count in norm.byte_terms.items()}
        return Cost({"+ ds, per element": elements, **norm.flop_terms}, {"read ds": elements * size, **reads})

    def term_sums(self, args, grads, dtype):
        x, residual, weight, eps = args
        s, (dy, ds) = x + residual, grads
        dx, dw = norm_backward_term_sums(s, weight, dy, eps)
        # The terms of s are x and residual: where they cancel, what is left carries their rounding on into y.
        size = x.abs() + residual.abs()
        rstd = torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
        dx = dx + ds.abs() + (size - s.abs()) * rstd**3 * (weight * dy * s).abs().mean(-1, keepdim=True)
        dw = dw + ((size - s.abs()) * rstd * dy.abs()).reshape(-1, s.shape[-1]).sum(0)
        return (size * rstd * weight.abs(), size), (dx, dx, dw)


OPERATOR = AddRMSNorm()
