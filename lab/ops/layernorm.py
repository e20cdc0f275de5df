"""Layer normalization (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450).

    y = x_hat w + b,   x_hat = (x - mean(x)) r,   r = 1 / sqrt(mean((x - mean(x))^2) + eps)

with means over the last dimension of n columns. Backward, for the gradient dy of y, with g = w dy:

    dx = r (g - mean(g) - x_hat mean(g x_hat))
    dw = sum over all rows of dy x_hat,   db = sum over all rows of dy

What an implementation's passes take and return (x, y, dy, dx: (rows, columns), unit stride in the last dimension and
any stride between rows; weight, bias, dw, db: (columns,); mean, and rstd, which is r: (rows,), float32, or float64 for
float64 inputs):

    forward(x, weight, bias, eps) -> (y, mean, rstd)
    backward(dy, x, weight, mean, rstd, eps) -> (dx, dw, db)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, require_floating, rows_of, seeded
from lab.ops.rmsnorm import check_norm


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension; var is the biased variance.

    x: (..., n), float16, bfloat16, float32 or float64, any strides. weight, bias: (n,), x's dtype and device.
    eps: added to the variance. backend: a choice string (`lab.backends.registry`); None means "auto".
    Returns (..., n) in x's dtype. Differentiable in x, weight and bias (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or eps, BackendUnavailable for a backend
    that cannot run on these inputs.
    """
    return get_op("layernorm", backend or "auto")(x, weight, bias, eps)


class LayerNorm(Operator):
    name = "layernorm"
    tensors = ("x", "weight", "bias")
    outputs = ("y",)
    residuals = ("mean", "rstd")
    dims = ("rows", "columns")
    shapes = {"gpt3-175b": (4096, 12288), "bert-large": (16384, 1024)}

    def check(self, x, weight, bias, eps):
        require_floating(self.name, x=x, weight=weight, bias=bias)
        check_norm(self.name, x, weight, eps)
        if bias.shape != weight.shape:
            raise ValueError(
                f"{self.name}: bias has shape {tuple(bias.shape)}; expected weight's shape {tuple(weight.shape)}"
            )

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        """Layer normalization over the last dimension; see `lab.ops.layernorm`."""
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias

    def canonical(self, x, weight, bias):
        return rows_of(x), weight.contiguous(), bias.contiguous()

    def restore(self, outputs, x, weight, bias):
        return (outputs[0].view_as(x),)

    def like_forward(self, x, weight, bias, eps):
        statistics = (x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype)) for _ in range(2))
        return torch.empty_like(x, memory_format=torch.contiguous_format), *statistics

    def saved(self, tensors, results):
        (x, weight, _), (_, mean, rstd) = tensors, results
        return x, weight, mean, rstd

    def like_backward(self, dy, x, weight, mean, rstd, eps):
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        return dx, torch.empty_like(weight), torch.empty_like(weight)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        generator = seeded(device, seed)
        sizes = shape, shape[-1:], shape[-1:]
        return tuple(torch.randn(size, generator=generator, device=device, dtype=dtype) for size in sizes)

    def forward_cost(self, shape, dtype):
        (rows, columns), size = shape, dtype.itemsize
        elements = rows * columns
        return Cost(
            {
                "sum for the mean, per element": elements,
                "x - mean, its square and sum, per element": 3 * elements,
                "two means, + eps, square root, divide, per row": 5 * rows,
                "times r, times w, plus b, per element": 3 * elements,
            },
            {"read x": elements * size, "read w, b": 2 * columns * size, "write y": elements * size},
        )

    def backward_cost(self, shape, dtype):
        (rows, columns), size = shape, dtype.itemsize
        elements = rows * columns
        return Cost(
            {
                "x_hat and g, per element": 3 * elements,
                "sums of g and of g x_hat, per element": 3 * elements,
                "their means, per row": 2 * rows,
                "dx, per element": 4 * elements,
                "dw and db, per element": 3 * elements,
            },
            {
                "read x": elements * size,
                "read dy": elements * size,
                "read w": columns * size,
                "write dx": elements * size,
                "write dw, db": 2 * columns * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        (x, weight, bias, eps), (dy,) = args, grads

        def mean(values):
            return values.mean(-1, keepdim=True)

        rstd = torch.rsqrt(mean((x - mean(x)).square()) + eps)
        x_hat = (x.abs() + mean(x.abs())) * rstd  # the sum x - mean(x), term by term
        g = (weight * dy).abs()
        dx = rstd * (g + mean(g) + x_hat * mean(g * x_hat))
        dw, db = (terms.reshape(-1, x.shape[-1]).sum(0) for terms in (dy.abs() * x_hat, dy.abs()))
        return (x_hat * weight.abs() + bias.abs(),), (dx, dw, db)


OPERATOR = LayerNorm()
