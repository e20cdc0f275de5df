"""RMSNorm elsewhere. Every function takes (x, weight, eps)."""

from collections.abc import Callable

import torch.nn.functional as F

from lab.benchmark.peers import Peer, compiled


def eager(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def liger() -> Callable:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # offset 0, Llama's rounding; not in place, because its backward would overwrite the gradient that it is given
    return lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def quack() -> Callable:
    from quack.rmsnorm import rmsnorm

    return lambda x, weight, eps: rmsnorm(x, weight, eps=eps)


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
    "liger": Peer("liger-kernel", liger),
    "quack": Peer("quack-kernels", quack),
}
