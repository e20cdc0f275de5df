"""Residual add and RMSNorm elsewhere. Every function takes (x, residual, weight, eps) and returns (y, x + residual)."""

from collections.abc import Callable

import torch.nn.functional as F

from lab.benchmark.peers import Peer, compiled


def eager(x, residual, weight, eps):
    s = x + residual
    return F.rms_norm(s, s.shape[-1:], weight, eps), s


def liger() -> Callable:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    # offset 0, Llama's rounding; not in place, because its backward would overwrite the gradient that it is given
    return lambda x, residual, weight, eps: LigerFusedAddRMSNormFunction.apply(
        x, residual, weight, eps, 0.0, "llama", False
    )


def quack() -> Callable:
    from quack.rmsnorm import rmsnorm

    return lambda x, residual, weight, eps: rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True)


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
    "liger": Peer("liger-kernel", liger),
    "quack": Peer("quack-kernels", quack),
}
