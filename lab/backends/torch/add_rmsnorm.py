"""The residual add and RMSNorm as a model written in plain PyTorch runs them: two kernels forward, two backward."""

from lab.backends.registry import Implementation
from lab.backends.torch import rmsnorm


def function(x, residual, weight, eps):
    s = x + residual
    return rmsnorm.function(s, weight, eps), s


def forward(x, residual, weight, eps):
    s = x + residual
    y, rstd = rmsnorm.forward(s, weight, eps)
    return y, s, rstd


def backward(dy, ds, s, weight, rstd, eps):
    dx, dw = rmsnorm.backward(dy, s, weight, rstd, eps)
    return dx + ds, dw


LADDER = [
    Implementation(
        forward, backward, rung="eager", change="x + residual, then torch.nn.functional.rms_norm", function=function
    )
]
