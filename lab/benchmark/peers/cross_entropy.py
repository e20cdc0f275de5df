"""Cross entropy elsewhere. Every function takes (logits, target, ignore_index, reduction)."""

from collections.abc import Callable

import torch.nn.functional as F

from lab.benchmark.peers import Peer, compiled


def eager(logits, target, ignore_index, reduction):
    rows = logits.reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(rows, target.reshape(-1), ignore_index=ignore_index, reduction=reduction)
    return loss.view(target.shape) if reduction == "none" else loss


def liger() -> Callable:
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    def function(logits, target, ignore_index, reduction):
        rows = logits.reshape(-1, logits.shape[-1])
        # no weights of classes, no z loss, no smoothing
        loss = LigerCrossEntropyFunction.apply(rows, target.reshape(-1), None, ignore_index, 0.0, 0.0, reduction)[0]
        return loss.view(target.shape) if reduction == "none" else loss

    return function


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
}
IN_PLACE = {"liger": Peer("liger-kernel", liger)}  # forward writes the gradient over the logits
