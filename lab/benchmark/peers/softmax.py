"""Softmax elsewhere. Every function takes (x)."""

from collections.abc import Callable

import torch

from lab.benchmark.peers import Peer, compiled


def eager(x):
    return torch.softmax(x, -1)


def liger() -> Callable:
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    return LigerSoftmaxFunction.apply


def quack() -> Callable:
    from quack.softmax import softmax

    return softmax


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
    "liger": Peer("liger-kernel", liger),
    "quack": Peer("quack-kernels", quack),
}
