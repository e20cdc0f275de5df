"""Softmax over the last dimension: attention's weights, a router's choice of experts, the output's probabilities.

    m = max_j x_j
    y_i = e^(x_i - m) / sum_j e^(x_j - m)

The maximum changes nothing in the result, and keeps the exponential from overflowing. Read once, with the *online*
normalizer (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867): a running maximum and a sum that is scaled
whenever the maximum grows.

Backward, for the gradient dy of y:

    dx_i = y_i (dy_i - sum_j y_j dy_j)

What an implementation's passes take and return (all (rows, columns), unit stride in the last dimension):

    forward(x) -> (y,)
    backward(dy, y) -> (dx,)

Sums are accumulated in float32, of float64 in float64. As in PyTorch, a row that holds NaN or +inf, or -inf only, comes
out as NaN.
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, require_floating, rows_of, seeded


def softmax(x: Tensor, *, backend: str | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) over the last dimension: returns y, (..., n) in x's dtype.

    x: (..., n), float16, bfloat16, float32 or float64, any strides. backend: a choice string
    (`lab.backends.registry`); None means "auto". Differentiable (once).

    Raises TypeError for a wrong dtype, ValueError for one without dimensions, BackendUnavailable for a backend that
    cannot run on this input.
    """
    return get_op("softmax", backend or "auto")(x)


class Softmax(Operator):
    name = "softmax"
    tensors = ("x",)
    outputs = ("y",)
    dims = ("rows", "columns")
    shapes = {
        "llama3-8b-scores": (16384, 4096),  # of one head: queries by keys
        "scores-16k": (8192, 16384),
        "scores-64k": (4096, 65536),
        "scores-4k-train": (65536, 4096),
        "scores-16k-train": (32768, 16384),
        "scores-64k-train": (16384, 65536),
        "llama3-vocabulary": (4096, 128256),
        "router-8": (65536, 8),
        "window-128": (65536, 128),
    }

    def check(self, x):
        require_floating(self.name, x=x)
        if x.dim() == 0:
            raise ValueError(f"{self.name}: x has no dimensions; expected at least one")

    def reference(self, x: Tensor) -> Tensor:
        """Softmax over the last dimension; see `lab.ops.softmax`."""
        if x.shape[-1] == 0:
            return x * 1
        e = torch.exp(x - x.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)

    def canonical(self, x):
        return (rows_of(x),)

    def restore(self, outputs, x):
        return (outputs[0].view_as(x),)

    def like_forward(self, x):
        return (torch.empty_like(x, memory_format=torch.contiguous_format),)

    def saved(self, tensors, results):
        return (results[0],)

    def like_backward(self, dy, y):
        return (torch.empty_like(y),)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        return (torch.randn(shape, generator=seeded(device, seed), device=device, dtype=dtype),)

    def forward_cost(self, shape, dtype):
        rows, columns = shape
        elements, size = rows * columns, dtype.itemsize
        return Cost(
            {
                "maximum, per element": elements,
                "x - m, exponential, per element": 2 * elements,
                "sum, per element": elements,
                "1 / sum, per row": rows,
                "times it, per element": elements,
            },
            {"read x": elements * size, "write y": elements * size},
        )

    def backward_cost(self, shape, dtype):
        rows, columns = shape
        elements, size = rows * columns, dtype.itemsize
        return Cost(
            {"y dy and its sum, per element": 2 * elements, "dx = y (dy - sum), per element": 2 * elements},
            {"read y": elements * size, "read dy": elements * size, "write dx": elements * size},
        )

    def term_sums(self, args, grads, dtype):
        # x - m is rounded by u |x - m|, with the accumulation dtype's u: the exponential makes that a relative error.
        (x,), (dy,) = args, grads
        if x.shape[-1] == 0:
            return (x,), (x,)
        y = self.reference(x)
        unit = torch.finfo(accumulation_dtype(dtype)).eps / torch.finfo(dtype).eps
        spread = torch.where(y > 0, unit * (x - x.amax(-1, keepdim=True)).abs(), 0)
        size = y * (1 + spread)
        return (size,), (size * dy.abs() + y * (size * dy.abs()).sum(-1, keepdim=True),)


OPERATOR = Softmax()
