"""SwiGLU: the gate of a Llama-style MLP (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    silu(g) = g sigma(g),   sigma(g) = 1 / (1 + e^-g)
    y = silu(gate) up

Backward, for the gradient dy of y:

    dgate = dy up sigma(gate) (1 + gate (1 - sigma(gate)))
    dup   = dy silu(gate)

What an implementation's passes take and return (all (rows, columns), unit stride in the last dimension):

    forward(gate, up) -> (y,)
    backward(dy, gate, up) -> (dgate, dup)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, require_floating, rows_of, seeded


def swiglu(gate: Tensor, up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up: returns y, (..., n) in gate's dtype.

    gate, up: (..., n), one shape, float16, bfloat16, float32 or float64, any strides. backend: a choice string
    (`lab.backends.registry`); None means "auto". Differentiable (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device, BackendUnavailable for a backend that
    cannot run on these inputs.
    """
    return get_op("swiglu", backend or "auto")(gate, up)


class SwiGLU(Operator):
    name = "swiglu"
    tensors = ("gate", "up")
    outputs = ("y",)
    dims = ("rows", "columns")
    shapes = {
        "llama3-8b": (16384, 14336),
        "llama3-70b": (16384, 28672),
        "llama3-8b-decode": (64, 14336),
    }

    def check(self, gate, up):
        require_floating(self.name, gate=gate, up=up)
        if gate.dim() == 0:
            raise ValueError(f"{self.name}: gate has no dimensions; expected at least one")
        if up.shape != gate.shape:
            raise ValueError(f"{self.name}: up has shape {tuple(up.shape)}; expected gate's shape {tuple(gate.shape)}")

    def reference(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up; see `lab.ops.swiglu`."""
        return gate * torch.sigmoid(gate) * up

    def canonical(self, gate, up):
        return rows_of(gate), rows_of(up)

    def restore(self, outputs, gate, up):
        return (outputs[0].view_as(gate),)

    def like_forward(self, gate, up):
        return (torch.empty_like(gate, memory_format=torch.contiguous_format),)

    def saved(self, tensors, results):
        return tensors

    def like_backward(self, dy, gate, up):
        like = torch.empty_like(gate, memory_format=torch.contiguous_format)
        return like, torch.empty_like(like)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        generator = seeded(device, seed)
        return tuple(torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in self.tensors)

    def forward_cost(self, shape, dtype):
        elements, size = shape[0] * shape[1], dtype.itemsize
        return Cost(
            {"exponential, + 1, divide, per element": 3 * elements, "times up, per element": elements},
            {"read gate": elements * size, "read up": elements * size, "write y": elements * size},
        )

    def backward_cost(self, shape, dtype):
        elements, size = shape[0] * shape[1], dtype.itemsize
        return Cost(
            {
                "sigma(gate), per element": 3 * elements,
                "dup = dy gate sigma, per element": 2 * elements,
                "dgate = dy up sigma (1 + gate (1 - sigma)), per element": 6 * elements,
            },
            {
                "read gate": elements * size,
                "read up": elements * size,
                "read dy": elements * size,
                "write dgate": elements * size,
                "write dup": elements * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        # e^-gate takes the rounding of its argument, u |gate| with the accumulation dtype's u, as a relative error.
        (gate, up), (dy,) = args, grads
        sigma = torch.sigmoid(gate)
        unit = torch.finfo(accumulation_dtype(dtype)).eps / torch.finfo(dtype).eps
        spread = 1 + unit * gate.abs()
        silu = (gate * sigma).abs() * spread
        slope = sigma * spread * (1 + gate.abs() * (1 - sigma))
        return (silu * up.abs(),), ((dy * up).abs() * slope, dy.abs() * silu)


OPERATOR = SwiGLU()
