"""Linear elsewhere. Every function takes (x, weight, bias)."""

import torch.nn.functional as F

from lab.benchmark.peers import Peer, compiled

PEERS = {
    "torch eager": Peer("torch", lambda: F.linear),  # cuBLAS
    "torch.compile": Peer("torch", lambda: compiled(F.linear)),
}
