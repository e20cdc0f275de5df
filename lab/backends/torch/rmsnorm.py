"""RMSNorm by PyTorch's own fused kernel on a GPU (torch 2.9 and later), and by its elementwise operators elsewhere."""

import torch
import torch.nn.functional as F

from lab.backends.registry import Implementation
from lab.backends.rows import accumulation_dtype


def function(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def forward(x, weight, eps):
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm"):
        y, rstd = torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight, eps)
        return y, rstd.view(-1)
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    rstd = torch.rsqrt(x.to(accumulation_dtype(x.dtype)).square().mean(-1) + eps)
    return y, rstd


def backward(dy, x, weight, rstd, eps):
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        return torch.ops.aten._fused_rms_norm_backward(dy, x, x.shape[-1:], rstd[:, None], weight, [True, True])
    wide = rstd.dtype
    x_hat = x.to(wide) * rstd[:, None]
    g = dy.to(wide) * weight.to(wide)
    dx = rstd[:, None] * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))
    dw = (dy.to(wide) * x_hat).sum(0)
    return dx.to(x.dtype), dw.to(weight.dtype)


LADDER = [Implementation(forward, backward, rung="eager", change="torch.nn.functional.rms_norm", function=function)]
