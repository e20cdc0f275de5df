"""The work of a forward pass and of a training step, against what a model really calls and reads."""

import re
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from lab.backends import registry
from lab.core import LLM, MODELS, KVCache
from lab.core import cost as costs
from lab.core.model import Block, Module, Rotary

TINY = MODELS["tiny"]
CONFIGS = {
    "untied": replace(TINY, num_hidden_layers=3),
    "tied": replace(TINY, tie_word_embeddings=True),
    "bias": replace(TINY, qkv_bias=True, num_hidden_layers=1),
    "grouped otherwise": replace(TINY, num_attention_heads=6, num_key_value_heads=6, head_dim=8, num_hidden_layers=2),
}
PHASES = {"prefill": (3, 5, 0), "decode": (3, 1, 7), "one sequence": (1, 4, 0), "after a context": (2, 4, 6)}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
phases = pytest.mark.parametrize("batch, new, context", PHASES.values(), ids=PHASES)


def contract_shape(op: str, tensors) -> tuple[int, ...]:
    """The shape, in the contract's terms, of a call with these tensors."""
    first = tensors[0]
    if op in ("rmsnorm", "add_rmsnorm", "swiglu", "cross_entropy"):
        return first.numel() // first.shape[-1], first.shape[-1]
    if op == "linear":
        return first.numel() // first.shape[-1], *tensors[1].shape
    if op == "rope":
        return *first.shape[:3], tensors[1].shape[2], first.shape[3]
    if op == "attention":
        return *first.shape[:2], tensors[1].shape[1], first.shape[2], tensors[1].shape[2], first.shape[3]
    assert op == "decode_attention" and (tensors[3] == tensors[1].shape[2]).all()
    return *first.shape[:2], *tensors[1].shape[1:]


def void(_) -> None:
    """A hook that returned something would replace the module's output."""


class Spy:
    """Notes every call of an operator: the module that calls, operator, shape, and the tensors that are None."""

    def __init__(self, module: Module, monkeypatch) -> None:
        self.calls, self.read, inside = Counter(), [], []
        for name, each in module.named_modules():
            path = re.sub(r"layers\.\d+", "layers.*", name)
            each.register_forward_pre_hook(lambda *_, path=path: inside.append(path))
            each.register_forward_hook(lambda *_: void(inside.pop()))
            if isinstance(each, nn.Embedding):
                each.register_forward_hook(lambda module, _, rows: self.read.append(rows))
        bind = registry.get_op

        def get_op(op, backend="auto"):
            fn, contract = bind(op, backend), registry.operator(op)

            def call(*args):
                tensors = args[: len(contract.tensors)]
                absent = tuple(name for name, tensor in zip(contract.tensors, tensors) if tensor is None)
                self.calls[inside[-1] if inside else "", op, contract_shape(op, tensors), absent] += 1
                self.read += [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
                return fn(*args)

            return call

        for op in registry.operators():
            monkeypatch.setattr(sys.modules[f"lab.ops.{op}"], "get_op", get_op)

    @property
    def bytes_of_weights(self) -> int:
        """What was read of weights, each once."""
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in self.read}.values())


def told(calls) -> Counter:
    return Counter({(call.module, call.operator, call.shape, call.absent): call.count for call in calls})


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@configs
@phases
@pytest.mark.parametrize("last_only", [False, True])
@torch.no_grad()
def test_a_model_calls_what_is_told(config, batch, new, context, last_only, monkeypatch):
    model = LLM(config).use("torch")
    cache = KVCache(config, batch, context + new, device="cpu", dtype=torch.float32)
    ids = torch.randint(config.vocab_size, (batch, context + new))
    if context:
        model(ids[:, :context], cache)
    spy = Spy(model, monkeypatch)
    if last_only:
        logits = model.lm_head(model.hidden(ids[:, context:], cache)[:, -1])
    else:
        model(ids[:, context:], cache)
    assert spy.calls == told(costs.operator_calls(config, batch, new, context, last_only))
    if last_only:
        expected = costs.forward_cost(config, "model", batch, new, torch.float32, context)
        layers = [*cache.k, *cache.v]
        stored, written = (
            nbytes(*(each[..., part, :] for each in layers)) for part in (slice(context), slice(context, None))
        )
        weights = spy.bytes_of_weights
        if config.tie_word_embeddings:
            weights -= spy.read[0].nbytes  # the tokens' rows, of a table that the head reads in full
        assert expected.bytes == weights + nbytes(ids[:, context:], logits) + stored + written


@configs
def test_without_a_cache_a_model_calls_the_same(config, monkeypatch):
    model = LLM(config).use("torch")
    spy = Spy(model, monkeypatch)
    model(torch.randint(config.vocab_size, (2, 9)))
    assert spy.calls == told(costs.operator_calls(config, 2, 9))


@configs
@phases
@pytest.mark.parametrize("part", ["block", *costs.LAYERS])
@torch.no_grad()
def test_a_block_and_its_layers_call_what_is_told(config, batch, new, context, part, monkeypatch):
    block = Block(config)
    module = (block if part == "block" else getattr(block, part)).use("torch")
    cache = KVCache(replace(config, num_hidden_layers=1), batch, context + new, device="cpu", dtype=torch.float32)
    cache.lengths += context
    cache.longest = context
    x, residual = torch.randn(2, batch, new, config.hidden_size)
    positions = cache.positions(batch, new)
    cos, sin = Rotary(config)(positions, torch.float32)
    inputs = {"block": (x, residual, cos, sin), "self_attn": (x, cos, sin), "mlp": (x,)}.get(part, (x, residual))
    spy = Spy(module, monkeypatch)
    outputs = module(*inputs, *([cache.layer(0, positions)] if part in ("block", "self_attn") else []))
    calls = costs.block_calls if part == "block" else lambda config, *sizes: costs.layer_calls(config, part, *sizes)
    assert spy.calls == told(calls(config, batch, new, context))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = spy.bytes_of_weights + nbytes(*inputs, *outputs)
    if part in ("block", "self_attn"):
        expected += cache.nbytes
    assert costs.forward_cost(config, part, batch, new, torch.float32, context).bytes == expected


def test_the_first_block_has_no_residual(monkeypatch):
    block = Block(TINY, first=True).use("torch")
    spy = Spy(block, monkeypatch)
    block(torch.randn(2, 4, TINY.hidden_size), None, *Rotary(TINY)(torch.arange(4).expand(2, 4), torch.float32))
    assert spy.calls == told(costs.block_calls(TINY, 2, 4, first=True))


def test_the_weights_that_are_read_are_those_of_the_model():
    for config in [*CONFIGS.values(), *MODELS.values()]:
        read = sum(call.count * call.weights for call in costs.operator_calls(config, 1, 2))
        embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        assert read == config.parameters - embedding


def test_flops_written_out():
    """Of a model small enough to count by hand."""
    config = replace(
        TINY, vocab_size=11, hidden_size=6, intermediate_size=5, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    batch, new, context = 2, 3, 4
    tokens, pairs = 6, 2 * 2 * (5 + 6 + 7)  # a query sees the context, itself and what is before it
    norm = tokens * (4 * 6 + 4)
    layer = {
        "linear": 2 * tokens * (6 * 8 + 6 * 4 + 6 * 4 + 8 * 6 + 3 * 6 * 5),
        "rope": 3 * tokens * (2 + 1) * 4,
        "attention": pairs * (4 * 4 + 5),
        "swiglu": 4 * tokens * 5,
    }
    expected = {op: 2 * flops for op, flops in layer.items()}
    expected["linear"] += 2 * batch * 11 * 6
    expected |= {"rmsnorm": norm, "add_rmsnorm": 4 * (norm + tokens * 6)}
    assert costs.forward_cost(config, "model", batch, new, torch.bfloat16, context).flop_terms == expected


@configs
def test_training_calls_what_is_told(config, monkeypatch):
    model = LLM(config).use("torch")
    spy = Spy(model, monkeypatch)
    ids = torch.randint(config.vocab_size, (2, 9))
    model.loss(ids, ids)
    assert spy.calls == told(costs.training_calls(config, 2, 9))


def test_training_flops_written_out():
    """The tiny shape in words of its own: vocabulary 256, width 64, 2 layers of 4 heads and 2 key-value heads of 16, an
    MLP of 160; 8 tokens of 3 sequences."""
    layer = 6 * 64 * (64 + 32 + 32 + 64 + 3 * 160)  # forward, and twice that backward
    layer += 4 * (8 * 9 // 2) / 8 * (4 * 16 + 5 + 10 * 16 + 6) + 2 * 4 * 16  # a pair of tokens in a head; dO times O
    layer += 2 * 3 * (64 + 32)  # RoPE
    layer += (4 + 11) * 160  # SwiGLU
    layer += 2 * ((4 + 9 + 2) * 64 + 8)  # both norms, with their additions
    head = 6 * 64 * 256 + (4 + 3) * 256 + 5
    token = 2 * layer + (4 + 9) * 64 + 8 + head
    # The first layer's first norm adds nothing: that makes one plain norm, and four with an addition, the last one too.
    assert costs.training_cost(TINY, 3, 8, torch.float32).flops == 3 * 8 * token


@pytest.mark.parametrize("dtype, copies", [(torch.float32, 0), (torch.bfloat16, 2)])
def test_training_bytes_are_those_of_what_a_step_must_keep(dtype, copies):
    """Float32 weights and AdamW's two moments, read and written; the model's copies of the weights if they are not
    float32; and the tokens."""
    model = LLM(TINY)
    kept = sum(weight.numel() for weight in model.parameters()) * (3 * 4 + copies)
    assert costs.training_cost(TINY, 3, 8, dtype).bytes == 2 * kept + 2 * 8 * 3 * 8


@pytest.mark.parametrize("direction, flops, numbers", [("forward", 3 * 5, 5), ("backward", 3 * 5, 5), ("both", 30, 10)])
def test_an_absent_tensor_costs_nothing(direction, flops, numbers):
    with_bias = costs.OperatorCall("", "linear", (3, 5, 7))
    without = replace(with_bias, absent=("bias",))
    cost, less = with_bias.cost(torch.float16, direction), without.cost(torch.float16, direction)
    assert (cost.flops - less.flops, cost.bytes - less.bytes) == (flops, 2 * numbers)
    assert (with_bias.weights, without.weights) == (5 * 7 + 5, 5 * 7)


def test_the_operators_own_bytes_add_up_to_more():
    for part, calls in (("model", costs.operator_calls), ("block", costs.block_calls)):
        own = sum(call.count * call.cost(torch.bfloat16).bytes for call in calls(TINY, 2, 8))
        assert own > costs.forward_cost(TINY, part, 2, 8, torch.bfloat16).bytes


def test_an_unknown_part():
    with pytest.raises(ValueError, match="part is 'head'; expected model, block or one of self_attn"):
        costs.forward_cost(TINY, "head", 1, 2, torch.float32)
