"""Attention by PyTorch's scaled_dot_product_attention: flash attention on a GPU, a fused kernel too on the CPU."""

import torch
import torch.nn.functional as F

from lab.backends.registry import Implementation


def aligned(x):
    """x, or a copy for PyTorch's fused GPU kernels, which fail on what they cannot load 16 bytes at a time. Inductor
    makes such copies itself."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return x
    steps = (x.storage_offset(), *x.stride()[:-1])
    if x.stride(-1) == 1 and all(step * x.element_size() % 16 == 0 for step in steps):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def function(q, k, v, causal, scale):
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if causal and queries != keys:  # PyTorch's own flag puts the first query at the first key
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    causal = causal and mask is None
    q, k, v = aligned(q), aligned(k), aligned(v)
    if q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)


LADDER = [Implementation(rung="eager", change="torch.nn.functional.scaled_dot_product_attention", function=function)]
