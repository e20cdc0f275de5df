"""A decoder of the Llama family (Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Llama 3:
https://arxiv.org/abs/2407.21783), built on the registry's operators alone.

Modules and weights are named as in a Hugging Face checkpoint. Shapes in the comments: B sequences, T new tokens of
each, C hidden_size, H heads, K key-value heads, D head_dim, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lab.backends import registry
from lab.backends.hardware import default_device
from lab.core import checkpoint
from lab.core.cache import KVCache, LayerCache
from lab.core.config import ModelConfig
from lab.ops.add_rmsnorm import add_rmsnorm
from lab.ops.attention import attention
from lab.ops.cross_entropy import cross_entropy
from lab.ops.decode_attention import decode_attention
from lab.ops.linear import linear
from lab.ops.rmsnorm import rmsnorm
from lab.ops.rope import rope
from lab.ops.swiglu import swiglu


class Module(nn.Module):
    """A module whose operators run on `backend`, a choice string (`lab.backends.registry`).

    operators: those that the module itself calls, its submodules' aside.
    """

    operators: tuple[str, ...] = ()
    backend: str = "auto"

    def use(self, backend: str) -> Self:
        """Run this module's operators, and those of the modules inside, on `backend`.

        Raises ValueError for an unknown operator, backend or rung, BackendUnavailable for one that cannot run here;
        nothing has changed then.
        """
        registry.parse_choice(backend)
        modules = [module for module in self.modules() if isinstance(module, Module)]
        for op in sorted({op for module in modules for op in module.operators}):
            registry.resolve(op, backend)
        for module in modules:
            module.backend = backend
        return self

    def placements(self) -> Iterator[tuple[str, str, registry.Resolved]]:
        """What runs where: (module, operator, what its choice comes to here) for every operator that this module and
        those inside call."""
        for name, module in self.named_modules():
            for op in module.operators if isinstance(module, Module) else ():
                yield name, op, registry.resolve(op, module.backend)


class Norm(Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.hidden_size)), config.rms_norm_eps


class RMSNorm(Norm):
    operators = ("rmsnorm",)

    def forward(self, x: Tensor) -> Tensor:
        return rmsnorm(x, self.weight, self.eps, backend=self.backend)


class AddRMSNorm(Norm):
    operators = ("add_rmsnorm",)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual itself, which goes on past the next sublayer."""
        return add_rmsnorm(x, residual, self.weight, self.eps, backend=self.backend)


class Linear(Module):
    operators = ("linear",)

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, backend=self.backend)


class Attention(Module):
    operators = ("rope", "attention", "decode_attention")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(hidden, heads * self.head_dim, config.qkv_bias)
        self.k_proj = Linear(hidden, kv_heads * self.head_dim, config.qkv_bias)
        self.v_proj = Linear(hidden, kv_heads * self.head_dim, config.qkv_bias)
        self.o_proj = Linear(heads * self.head_dim, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None) -> Tensor:
        batch, new, _ = x.shape
        heads = batch, new, -1, self.head_dim
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H D), (B, T, K D) twice
        # All tokens in one row, because each sequence of a batch may be at a position of its own.
        q, k = (y.view(1, batch * new, -1, self.head_dim) for y in (q, k))
        q, k = rope(q, k, cos, sin, backend=self.backend)
        q, k, v = (y.view(heads).transpose(1, 2) for y in (q, k, v))  # (B, H, T, D), (B, K, T, D) twice
        if cache is not None:
            cache.append(k, v)
            k, v = cache.k[:, :, : cache.end], cache.v[:, :, : cache.end]
        if cache is None or new > 1:
            y = attention(q, k, v, backend=self.backend)
        else:
            y = decode_attention(q[:, :, 0], cache.k, cache.v, cache.lengths, backend=self.backend)[:, :, None]
        return self.o_proj(y.transpose(1, 2).reshape(batch, new, -1))  # (B, T, H D) to (B, T, C)


class MLP(Module):
    operators = ("swiglu",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), backend=self.backend))


class Block(Module):
    """A layer: attention, then the MLP, each on a norm of the stream and added to it.

    The addition is left to the norm that comes next: x and residual, (B, T, C), are what the layer before adds, and
    what it adds to. The first layer has no residual yet."""

    def __init__(self, config: ModelConfig, first: bool = False) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config) if first else AddRMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = AddRMSNorm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(self.self_attn(x, cos, sin, cache), residual)
        return self.mlp(x), residual


class Rotary(nn.Module):
    """RoPE's cosines and sines of positions."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device  # no weights: they are in no checkpoint
        self.register_buffer("frequencies", config.frequencies().to(device), persistent=False)

    def _apply(self, fn, recurse=True):
        # float32 in a bfloat16 model too: of a rounded frequency, the angle at position 1000 would be anything.
        exact = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions.reshape(-1, 1) * self.frequencies  # (B T, D / 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class LLM(Module):
    """A language model. `tokenizer` is that of the folder that it was loaded from, if it had one."""

    operators = ("cross_entropy", "softmax")  # softmax: to draw the next token

    def __init__(self, config: ModelConfig) -> None:
        """Random weights, on torch's default device and in its default dtype."""
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Block(config, index == 0) for index in range(config.num_hidden_layers))
        self.norm = AddRMSNorm(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._tie()

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of input_ids (B, T), int64.

        cache: what came before, and where these tokens' keys and values are kept; only without gradients. Raises
        ValueError for a wrong shape, for more tokens than the model has positions or the cache has room for.
        """
        return self.lm_head(self.hidden(input_ids, cache))

    def hidden(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the output head takes, (B, T, C); arguments and errors as of the model."""
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, tokens), at least one")
        batch, new = input_ids.shape
        if (end := new + (cache.longest if cache else 0)) > self.config.max_position_embeddings:
            most = self.config.max_position_embeddings
            raise ValueError(f"input_ids reaches position {end}; expected at most max_position_embeddings, {most}")
        if cache is None:
            positions = torch.arange(new, device=input_ids.device).expand(batch, new)
        else:
            positions = cache.positions(batch, new)
        x, residual = self.embed_tokens(input_ids), None  # (B, T, C)
        cos, sin = self.rotary(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x, residual = layer(x, residual, cos, sin, cache and cache.layer(index, positions))
        if cache is not None:
            cache.advance(new)
        x, _ = self.norm(x, residual)
        return x

    def loss(self, input_ids: Tensor, target: Tensor) -> Tensor:
        """Mean cross entropy, in nats, of predicting target (B, T) from input_ids (B, T); a target of -100 does not
        count."""
        return cross_entropy(self(input_ids), target, backend=self.backend)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> Self:
        """The model in a Hugging Face folder: config.json (Llama or Qwen2), *.safetensors, and tokenizer.json if there.

        dtype: None means that of the embedding in the file. device: None means the GPU if there is one.
        Raises CheckpointError, naming the file and what is wrong in it; ValueError or BackendUnavailable for `backend`.
        """
        folder = Path(folder)
        with torch.device("meta"):
            model = cls(checkpoint.read_config(folder)).use(backend)
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        device = default_device() if device is None else torch.device(device)
        model.load_state_dict(checkpoint.read_weights(folder, shapes, dtype, device), strict=False, assign=True)
        model._tie()
        model.tokenizer = checkpoint.read_tokenizer(folder)
        return model.to(device)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json, model.safetensors and, if there is a tokenizer, tokenizer.json into `folder`, which is
        made if need be; each file appears when it is complete. Raises CheckpointError if a model in several files is
        there."""
        checkpoint.write(Path(folder), self.config, dict(self.named_parameters()), self.tokenizer)
