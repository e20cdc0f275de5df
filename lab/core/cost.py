"""The work of a forward pass and of a training step, told from a model's shape: the operators that it calls, their
FLOPs, and the bytes that must cross device memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from lab.backends.registry import operator
from lab.core.config import ModelConfig
from lab.ops.operator import Cost

WEIGHTS = ("weight", "bias")  # operators' names for tensors that are a model's weights
LAYERS = ("self_attn", "post_attention_layernorm", "mlp")  # of a block; the norm before attention is as that after it


@dataclass(frozen=True)
class OperatorCall:
    """Calls of one operator that are alike.

    module: the path of the module that calls, "" for the outermost; "layers.*.mlp" for that of every layer. shape: of
    the operator's contract. count: how many calls. absent: the operator's tensors that are None.
    """

    module: str
    operator: str
    shape: tuple[int, ...]
    count: int = 1
    absent: tuple[str, ...] = ()

    def cost(self, dtype: torch.dtype, direction: str = "forward") -> Cost:
        """Of one call, or of its backward pass, or of both ("both"): the contract's, without the terms that name an
        absent tensor or its gradient."""
        cost = operator(self.operator).cost(self.shape, dtype, direction)
        absent = {*self.absent, *(f"d{name}" for name in self.absent)}

        def there(terms: dict[str, int]) -> dict[str, int]:
            return {term: count for term, count in terms.items() if not absent & set(term.replace(":", "").split())}

        return Cost(there(cost.flop_terms), there(cost.byte_terms))

    @property
    def weights(self) -> int:
        """How many weights one call reads."""
        contract = operator(self.operator)
        wanted = {name for name in WEIGHTS if name in contract.tensors} - set(self.absent)
        tensors = contract.make_inputs(self.shape, torch.float32, "meta") if wanted else ()
        return sum(tensor.numel() for name, tensor in zip(contract.tensors, tensors) if name in wanted)


def block_calls(
    config: ModelConfig, batch: int, new: int, context: int = 0, first: bool = False
) -> Iterator[OperatorCall]:
    """What a block calls for `new` tokens of each of `batch` sequences after `context` tokens in its cache, in order.

    One new token is a step of decoding, and so calls decode_attention. first: the block is a model's first, which has
    no residual to add yet.
    """
    tokens, hidden, middle, head_dim = batch * new, config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads, keys = config.num_attention_heads, config.num_key_value_heads, context + new

    def linear(module: str, outputs: int, inputs: int, bias: bool = False) -> OperatorCall:
        return OperatorCall(module, "linear", (tokens, outputs, inputs), absent=() if bias else ("bias",))

    yield OperatorCall("input_layernorm", "rmsnorm" if first else "add_rmsnorm", (tokens, hidden))
    yield linear("self_attn.q_proj", heads * head_dim, hidden, config.qkv_bias)
    yield linear("self_attn.k_proj", kv_heads * head_dim, hidden, config.qkv_bias)
    yield linear("self_attn.v_proj", kv_heads * head_dim, hidden, config.qkv_bias)
    yield OperatorCall("self_attn", "rope", (1, tokens, heads, kv_heads, head_dim))
    if new > 1:
        yield OperatorCall("self_attn", "attention", (batch, heads, kv_heads, new, keys, head_dim))
    else:
        yield OperatorCall("self_attn", "decode_attention", (batch, heads, kv_heads, keys, head_dim))
    yield linear("self_attn.o_proj", hidden, heads * head_dim)
    yield OperatorCall("post_attention_layernorm", "add_rmsnorm", (tokens, hidden))
    yield linear("mlp.gate_proj", middle, hidden)
    yield linear("mlp.up_proj", middle, hidden)
    yield OperatorCall("mlp", "swiglu", (tokens, middle))
    yield linear("mlp.down_proj", hidden, middle)


def layer_calls(config: ModelConfig, layer: str, batch: int, new: int, context: int = 0) -> Iterator[OperatorCall]:
    """As `block_calls`, of one module of a block: a name of `LAYERS`."""
    for call in block_calls(config, batch, new, context):
        name, _, inside = call.module.partition(".")
        if name == layer:
            yield replace(call, module=inside)


def operator_calls(
    config: ModelConfig, batch: int, new: int, context: int = 0, last_only: bool = False
) -> list[OperatorCall]:
    """What a model calls for `new` tokens of each of `batch` sequences after `context` tokens in its cache.

    last_only: the output head sees the last token of each sequence, and not all of them, as when text is generated.
    """
    layers: Counter[OperatorCall] = Counter()
    for index in range(config.num_hidden_layers):
        for call in block_calls(config, batch, new, context, first=index == 0):
            layers[replace(call, module=f"layers.*.{call.module}")] += 1
    rows = batch if last_only else batch * new
    return [
        *(replace(call, count=count) for call, count in layers.items()),
        OperatorCall("norm", "add_rmsnorm", (batch * new, config.hidden_size)),
        OperatorCall("lm_head", "linear", (rows, config.vocab_size, config.hidden_size), absent=("bias",)),
    ]


def training_calls(config: ModelConfig, batch: int, tokens: int) -> list[OperatorCall]:
    """What a model and its loss call to train on `tokens` tokens, at least two, of each of `batch` sequences. Every
    call has a backward pass."""
    loss = OperatorCall("", "cross_entropy", (batch * tokens, config.vocab_size))
    return [*operator_calls(config, batch, tokens), loss]


def flop_terms(calls: Iterable[OperatorCall], dtype: torch.dtype, direction: str = "forward") -> dict[str, int]:
    """FLOPs by operator, in one direction or "both"."""
    terms: Counter[str] = Counter()
    for call in calls:
        terms[call.operator] += call.count * call.cost(dtype, direction).flops
    return dict(terms)


def forward_cost(config: ModelConfig, part: str, batch: int, new: int, dtype: torch.dtype, context: int = 0) -> Cost:
    """Work of a forward pass that generates text: of the "model" with its head on the last tokens, of a "block" that is
    not the first, or of one of `LAYERS`.

    The bytes are those of the whole seen as one operator, every input read once and every output written once: what
    its operators hand to one another need not leave the chip. Their own bytes add up to more.
    """
    hidden, head_dim, size = config.hidden_size, config.head_dim, dtype.itemsize
    tokens, stream = batch * new, batch * new * hidden * size
    positions = tokens * head_dim * size  # a cosine and a sine for each pair of numbers
    token_cache = 2 * config.num_key_value_heads * head_dim * size  # of one token in one layer
    if part == "model":
        calls = operator_calls(config, batch, new, context, last_only=True)
        layers, inputs, outputs = config.num_hidden_layers, 8 * tokens, batch * config.vocab_size * size
    elif part == "block":
        calls = list(block_calls(config, batch, new, context))
        layers, inputs, outputs = 1, 2 * stream + positions, 2 * stream
    elif part in LAYERS:
        calls = list(layer_calls(config, part, batch, new, context))
        layers, inputs, outputs = 0, stream, stream
        if part == "self_attn":
            layers, inputs = 1, stream + positions
        if part == "post_attention_layernorm":
            inputs, outputs = 2 * stream, 2 * stream
    else:
        raise ValueError(f"part is {part!r}; expected model, block or one of {', '.join(LAYERS)}")
    byte_terms = {
        "read weights": sum(call.count * call.weights for call in calls) * size,
        "read what comes in": inputs,
        "read keys and values of the context": layers * batch * context * token_cache,
        "write keys and values of the new tokens": layers * tokens * token_cache,
        "write what comes out": outputs,
    }
    if part == "model" and not config.tie_word_embeddings:  # a tied head reads all embeddings anyway
        byte_terms["read the tokens' embeddings"] = stream
    return Cost(flop_terms(calls, dtype), byte_terms)


def training_cost(config: ModelConfig, batch: int, tokens: int, dtype: torch.dtype) -> Cost:
    """Work of a training step of the model in `dtype`, its AdamW in float32, on `tokens` tokens of each of `batch`
    sequences.

    The FLOPs are those of the contracts of all operators, forward and backward. Beyond the usual estimate, 6 FLOPs for
    each weight of a matrix product and each token (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361), that is
    attention, the causal half of it, with the scores that its backward pass computes again, and elementwise work. The
    embedding's and the optimizer's are not counted.

    The bytes are those of the step seen as one operator: weights and moments are read once and written once, and
    neither activations nor gradients need leave the chip.
    """
    copies = 0 if dtype == torch.float32 else dtype.itemsize  # the model's own, of the optimizer's weights
    numbers = config.parameters
    return Cost(
        flop_terms(training_calls(config, batch, tokens), dtype, "both"),
        {
            "read the model's weights": numbers * copies,
            "write the model's weights": numbers * copies,
            "read the optimizer's weights and moments": 3 * 4 * numbers,
            "write the optimizer's weights and moments": 3 * 4 * numbers,
            "read the tokens and their targets": 2 * 8 * batch * tokens,
        },
    )
