"""SwiGLU elsewhere. Every function takes (gate, up)."""

from collections.abc import Callable

import torch.nn.functional as F

from lab.benchmark.peers import Peer, compiled


def eager(gate, up):
    return F.silu(gate) * up


def liger() -> Callable:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
}
IN_PLACE = {"liger": Peer("liger-kernel", liger)}  # backward writes the gradients over gate and up
