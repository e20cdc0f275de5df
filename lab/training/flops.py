"""The arithmetic of a training step, by the operators' own contracts."""

from __future__ import annotations

import torch

from lab.backends import registry
from lab.core import ModelConfig


def operators_of(config: ModelConfig, sequences: int, length: int) -> list[tuple[str, tuple[int, ...], int]]:
    """What a model runs on `sequences` sequences of `length` tokens, with the loss: (operator, shape, how often)."""
    rows, hidden, layers = sequences * length, config.hidden_size, config.num_hidden_layers
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    inner = config.intermediate_size
    return [
        ("rmsnorm", (rows, hidden), 1),
        ("add_rmsnorm", (rows, hidden), 2 * layers),
        ("linear", (rows, heads * head_dim, hidden), layers),  # q
        ("linear", (rows, kv_heads * head_dim, hidden), 2 * layers),  # k, v
        ("rope", (1, rows, heads, kv_heads, head_dim), layers),
        ("attention", (sequences, heads, kv_heads, length, length, head_dim), layers),
        ("linear", (rows, hidden, heads * head_dim), layers),  # o
        ("linear", (rows, inner, hidden), 2 * layers),  # gate, up
        ("swiglu", (rows, inner), layers),
        ("linear", (rows, hidden, inner), layers),  # down
        ("linear", (rows, config.vocab_size, hidden), 1),
        ("cross_entropy", (rows, config.vocab_size), 1),
    ]


def flops_per_token(config: ModelConfig, length: int) -> float:
    """FLOPs of training on one token of a sequence of `length`, forward and backward: the sum of what the contracts
    count.

    Beyond the usual estimate, 6 FLOPs for each weight of a matrix product (Kaplan et al. 2020,
    https://arxiv.org/abs/2001.08361), it has attention, the causal half of it and the scores that its backward pass
    computes again, and all elementwise work, a few percent. The optimizer's and the embedding's are not counted.
    """
    flops = sum(
        count * registry.operator(op).cost(shape, torch.float32, "both").flops
        for op, shape, count in operators_of(config, 1, length)
    )
    return flops / length
