"""The transpose elsewhere. Every function takes (x)."""

from lab.benchmark.peers import Peer, compiled


def eager(x):
    return x.T.contiguous()


PEERS = {
    "torch eager": Peer("torch", lambda: eager),
    "torch.compile": Peer("torch", lambda: compiled(eager)),
}
