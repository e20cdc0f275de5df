"""SwiGLU as a model written in plain PyTorch runs it: two kernels forward."""

import torch
import torch.nn.functional as F

from lab.backends.registry import Implementation


def function(gate, up):
    return F.silu(gate) * up


def forward(gate, up):
    return (function(gate, up),)


def backward(dy, gate, up):
    return torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)


LADDER = [
    Implementation(forward, backward, rung="eager", change="torch.nn.functional.silu, times up", function=function)
]
