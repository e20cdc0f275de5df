"""The transpose of a matrix, made in memory: no arithmetic at all, so that nothing but the order of reads and writes
tells one kernel from another.

    y_ji = x_ij

Backward is the transpose of the gradient: dx_ij = dy_ji.

What an implementation's passes take and return (x, dx (rows, columns), y, dy (columns, rows), unit stride in the last
dimension):

    forward(x) -> (y,)
    backward(dy) -> (dx,)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.ops.operator import Cost, Operator, require_floating, seeded


def transpose(x: Tensor, *, backend: str | None = None) -> Tensor:
    """The transpose of a matrix as a contiguous tensor: `x.T.contiguous()`.

    x: (rows, columns), float16, bfloat16, float32 or float64, any strides. backend: a choice string
    (`lab.backends.registry`); None means "auto". Returns (columns, rows) in x's dtype. Differentiable (once).

    Raises TypeError for a wrong dtype, ValueError for another number of dimensions, BackendUnavailable for a backend
    that cannot run on this input.
    """
    return get_op("transpose", backend or "auto")(x)


class Transpose(Operator):
    name = "transpose"
    tensors = ("x",)
    outputs = ("y",)
    dims = ("m", "n")
    shapes = {"8k": (8192, 8192), "1k": (1024, 1024), "wide": (128, 1 << 19)}
    tiny_shapes = ((2, 3), (1, 1))
    trial_shapes = ((1, 1), (1, 129), (2, 7), (33, 31), (64, 64), (127, 130), (1000, 17))

    def check(self, x):
        require_floating(self.name, x=x)
        if x.dim() != 2:
            raise ValueError(f"{self.name}: x has shape {tuple(x.shape)}; expected (rows, columns)")

    def reference(self, x: Tensor) -> Tensor:
        """The transpose of a matrix as a contiguous tensor; see `lab.ops.transpose`."""
        return x.T.contiguous()

    def canonical(self, x):
        return (x if x.stride(1) == 1 else x.contiguous(),)

    def restore(self, outputs, x):
        return outputs

    def like_forward(self, x):
        return (x.new_empty(x.shape[1], x.shape[0]),)

    def saved(self, tensors, results):
        return ()

    def like_backward(self, dy):
        return (dy.new_empty(dy.shape[1], dy.shape[0]),)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        return (torch.randn(shape, generator=seeded(device, seed), device=device, dtype=dtype),)

    def forward_cost(self, shape, dtype):
        moved = shape[0] * shape[1] * dtype.itemsize
        return Cost({}, {"read x": moved, "write y": moved})

    def backward_cost(self, shape, dtype):
        moved = shape[0] * shape[1] * dtype.itemsize
        return Cost({}, {"read dy": moved, "write dx": moved})

    def term_sums(self, args, grads, dtype):
        (x,), (dy,) = args, grads
        return (x.T.abs(),), (dy.T.abs(),)


OPERATOR = Transpose()
