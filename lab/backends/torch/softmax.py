"""Softmax by PyTorch's own fused kernels."""

import torch

from lab.backends.registry import Implementation


def forward(x):
    return (torch.softmax(x, -1),)


def backward(dy, y):
    return (torch._softmax_backward_data(dy, y, -1, y.dtype),)


LADDER = [Implementation(forward, backward, rung="eager", change="torch.softmax")]
