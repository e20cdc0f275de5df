"""Attention over a cache by PyTorch's scaled_dot_product_attention. The heads that share keys go in as so many queries
of one head: keys and values are then read once for all of them, and not once for each."""

import torch
import torch.nn.functional as F

from lab.backends.registry import Implementation
from lab.backends.torch.attention import aligned


def function(q, k, v, lengths, scale):
    counts = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
    grouped = q.unflatten(1, (k.shape[1], -1))  # (batch, kv_heads, heads / kv_heads, head_dim)
    grouped, k, v = aligned(grouped), aligned(k), aligned(v)
    return F.scaled_dot_product_attention(grouped, k, v, counts[:, None, None], scale=scale).flatten(1, 2)


LADDER = [Implementation(rung="eager", change="torch.nn.functional.scaled_dot_product_attention", function=function)]
