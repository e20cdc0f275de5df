"""Rotary position embedding elsewhere. Every function takes (q, k, cos, sin)."""

from collections.abc import Callable

import torch

from lab.benchmark.peers import Peer, compiled


def eager(q, k, cos, sin):
    cos, sin = (torch.cat([table, table], dim=-1)[:, None, :] for table in (cos, sin))

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    return turned(q), turned(k)


def liger() -> Callable:
    from liger_kernel.ops.rope import LigerRopeFunction

    def function(q, k, cos, sin):
        # heads before the sequence, as Hugging Face's models have them; no position_ids
        turned = LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin, None, 1, q.shape[-1])
        return tuple(x.transpose(1, 2) for x in turned)

    return function


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
}
IN_PLACE = {"liger": Peer("liger-kernel", liger)}  # both passes turn their inputs themselves
