"""Rotary position embedding as a model written in plain PyTorch runs it: a kernel for every product, sum and copy."""

import torch

from lab.backends.registry import Implementation


def turned(x, cos, sin):
    """x (batch, seq, heads, d) with cos and sin (seq, 1, d): every number times cos, and its partner times sin."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def function(q, k, cos, sin):
    cos, sin = (torch.cat([table, table], dim=-1)[:, None, :] for table in (cos, sin))
    return turned(q, cos, sin), turned(k, cos, sin)


def backward(dq, dk, cos, sin):
    return function(dq, dk, cos, -sin)


LADDER = [Implementation(function, backward, rung="eager", change="x cos + rotate_half(x) sin", function=function)]
