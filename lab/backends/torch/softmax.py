"""Softmax by PyTorch's own fused kernels."""

import torch

from lab.backends.registry import Implementation


def function(x):
    return torch.softmax(x, -1)


def forward(x):
    return (function(x),)


def backward(dy, y):
    return (torch._softmax_backward_data(dy, y, -1, y.dtype),)


LADDER = [Implementation(forward, backward, rung="eager", change="torch.softmax", function=function)]
