"""Attention by PyTorch's scaled_dot_product_attention: flash attention on a GPU, a fused kernel too on the CPU."""

import torch
import torch.nn.functional as F

from lab.backends.registry import Implementation


def function(q, k, v, causal, scale):
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if causal and queries != keys:  # PyTorch's own flag puts the first query at the first key
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    causal = causal and mask is None
    if q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)


LADDER = [Implementation(rung="eager", change="torch.nn.functional.scaled_dot_product_attention", function=function)]
