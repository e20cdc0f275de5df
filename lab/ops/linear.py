"""Linear: y = x weight^T + bias, where nearly all of a transformer's arithmetic is.

Backward, for the gradient dy of y:

    dx = dy weight,   dweight = dy^T x,   dbias = sum over rows of dy

What an implementation's passes take and return (x (m, k) and weight (n, k) with unit stride in one dimension,
whichever, and any in the other; bias (n,) or None; y (m, n), and dy (m, n) with unit stride in its second dimension):

    forward(x, weight, bias) -> (y,)
    backward(dy, x, weight, bias) -> (dx, dweight, dbias or None)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.ops.operator import Cost, Operator, require_floating, seeded


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x @ weight.T + bias: returns (..., n) in x's dtype.

    x: (..., k), float16, bfloat16, float32 or float64, any strides. weight: (n, k), bias: (n,) or None, both in x's
    dtype and on its device. backend: a choice string (`lab.backends.registry`); None means "auto". Differentiable
    (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device, BackendUnavailable for a backend that
    cannot run on these inputs.
    """
    return get_op("linear", backend or "auto")(x, weight, bias)


def matrix_of(x: Tensor) -> Tensor:
    """x (..., k) as (rows, k) with unit stride in one of the two dimensions, as a BLAS takes it: a view where there is
    one, so that a transpose is not copied."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if 1 in flat.stride() else flat.contiguous()


class Linear(Operator):
    name = "linear"
    tensors = ("x", "weight", "bias")
    outputs = ("y",)
    dims = ("m", "n", "k")
    shapes = {
        "llama3-8b-query": (8192, 4096, 4096),
        "llama3-8b-up": (8192, 14336, 4096),
        "llama3-8b-down": (8192, 4096, 14336),
        "llama3-8b-up-decode": (16, 14336, 4096),
    }
    tiny_shapes = ((2, 3, 4), (1, 1, 1))
    trial_shapes = (
        (1, 1, 1), (3, 5, 7), (16, 64, 48), (2, 33, 17), (33, 2, 129), (17, 129, 127), (65, 127, 129), (64, 128, 96),
    )  # fmt: skip

    def check(self, x, weight, bias):
        tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
        require_floating(self.name, **tensors)
        if x.dim() == 0:
            raise ValueError(f"{self.name}: x has no dimensions; expected at least one")
        if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
            raise ValueError(
                f"{self.name}: weight has shape {tuple(weight.shape)}; expected (n, {x.shape[-1]}), for x's columns"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{self.name}: bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},)")

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias; see `lab.ops.linear`."""
        y = x @ weight.mT
        return y if bias is None else y + bias

    def canonical(self, x, weight, bias):
        return matrix_of(x), matrix_of(weight), bias if bias is None else bias.contiguous()

    def restore(self, outputs, x, weight, bias):
        return (outputs[0].view(*x.shape[:-1], weight.shape[0]),)

    def like_forward(self, x, weight, bias):
        return (x.new_empty(x.shape[0], weight.shape[0]),)

    def saved(self, tensors, results):
        return tensors

    def like_backward(self, dy, x, weight, bias):
        dx, dweight = x.new_empty(x.shape), weight.new_empty(weight.shape)
        return dx, dweight, bias if bias is None else torch.empty_like(bias)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        (m, n, k), generator = shape, seeded(device, seed)
        return tuple(torch.randn(s, generator=generator, device=device, dtype=dtype) for s in ((m, k), (n, k), (n,)))

    def forward_cost(self, shape, dtype):
        (m, n, k), size = shape, dtype.itemsize
        return Cost(
            {"multiply and add": 2 * m * n * k, "+ bias": m * n},
            {"read x": m * k * size, "read w": n * k * size, "read bias": n * size, "write y": m * n * size},
        )

    def backward_cost(self, shape, dtype):
        (m, n, k), size = shape, dtype.itemsize
        return Cost(
            {"dx: multiply and add": 2 * m * n * k, "dw: multiply and add": 2 * m * n * k, "dbias: add": m * n},
            {
                "read dy": m * n * size,
                "read x": m * k * size,
                "read w": n * k * size,
                "write dx": m * k * size,
                "write dw": n * k * size,
                "write dbias": n * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        (x, weight, bias), (dy,) = args, grads
        y = x.abs() @ weight.abs().mT
        of_bias = None if bias is None else dy.abs().reshape(-1, dy.shape[-1]).sum(0)
        dweight = dy.abs().reshape(-1, dy.shape[-1]).mT @ x.abs().reshape(-1, x.shape[-1])
        return (y if bias is None else y + bias.abs(),), (dy.abs() @ weight.abs(), dweight, of_bias)


OPERATOR = Linear()
