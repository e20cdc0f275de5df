"""The shape of a model, by name or out of a Hugging Face config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.ops.operator import is_finite


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of RoPE to longer texts ("llama3" in a config.json): frequencies whose wavelength is
    longer than original_max_position_embeddings / low_freq_factor are divided by factor, those that are shorter than
    original_max_position_embeddings / high_freq_factor are left alone, those between are interpolated
    (as in https://github.com/meta-llama/llama-models, `apply_scaling`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require_positive(name, value)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor is {self.high_freq_factor}; expected more than low_freq_factor, "
                f"{self.low_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family; the names are those of a Hugging Face config.json.

    qkv_bias: whether the projections to q, k and v have a bias (Qwen2's have). tie_word_embeddings: whether the output
    head is the embedding. eos_token_ids: tokens that end a text.

    Raises ValueError, naming the field, for sizes that do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in SIZES:
            _require_size(name, getattr(self, name))
        for name in ("rms_norm_eps", "rope_theta"):
            _require_positive(name, getattr(self, name))
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"tie_word_embeddings is {self.tie_word_embeddings!r}; expected true or false")
        for token in self.eos_token_ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise ValueError(f"eos_token_id is {token!r}; expected a whole number, or a list of them")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; expected a divisor of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; expected an even number: RoPE turns pairs")

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        hidden, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * (self.num_attention_heads * self.head_dim + kv)
        if self.qkv_bias:
            attention += self.num_attention_heads * self.head_dim + 2 * kv
        layer = attention + 3 * hidden * self.intermediate_size + 2 * hidden
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + hidden

    def frequencies(self) -> Tensor:
        """The angles by which RoPE turns a head's pairs from one position to the next: (head_dim / 2,), float32.

        theta^(-2i / head_dim) for pair i, and scaled if rope_scaling is there."""
        pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu")
        plain = 1.0 / self.rope_theta ** (pairs / self.head_dim)
        if (scaling := self.rope_scaling) is None:
            return plain
        turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # in the texts trained on first
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return torch.lerp(plain / scaling.factor, plain, kept.clamp(0, 1))


def _require_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def _require_positive(name: str, value: object) -> None:
    if not is_finite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}; expected a number above 0")


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)

_LLAMA3 = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
    rope_theta=500000.0,
    eos_token_ids=(128001, 128009),
)

MODELS = {
    "llama3-8b": _LLAMA3,
    "llama3-8b-4-layers": replace(_LLAMA3, num_hidden_layers=4),
    "llama3.2-1b": replace(
        _LLAMA3,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        head_dim=64,
        max_position_embeddings=131072,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        tie_word_embeddings=True,
    ),
    "qwen2-0.5b": ModelConfig(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        qkv_bias=True,
        tie_word_embeddings=True,
        eos_token_ids=(151643,),
    ),
    "tiny": ModelConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    ),
}
"""Named shapes; "tiny" is for tests and for looking at."""


def from_hugging_face(raw: dict) -> ModelConfig:
    """The config that a config.json holds: model_type "llama" or "qwen2", RoPE in the older form (rope_theta and
    rope_scaling) or in that of transformers 5 (rope_parameters).

    Raises ValueError, naming the key, for what is missing or what this model does not have.
    """
    kind = _expect(raw, "model_type", ("llama", "qwen2"))
    for key, supported in (("hidden_act", "silu"), ("mlp_bias", False), ("use_sliding_window", False)):
        _expect(raw, key, (supported,), default=supported)
    if kind == "llama":  # where it would give the output projection a bias as well
        _expect(raw, "attention_bias", (False,), default=False)
    sizes = {name: raw[name] for name in SIZES if raw.get(name) is not None}
    if "num_attention_heads" in sizes:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
        if "hidden_size" in sizes:
            for name in ("num_attention_heads", "hidden_size"):  # before one is divided by the other
                _require_size(name, sizes[name])
            sizes.setdefault("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    if missing := [name for name in SIZES if name not in sizes]:
        raise ValueError(f"{missing[0]} is missing")
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key), (dict, type(None))):
            raise ValueError(f"{key} is {raw[key]!r}; expected an object or null")
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    rope = {key: value for key, value in rope.items() if value is not None}
    ends = raw.get("eos_token_id")
    return ModelConfig(
        **sizes,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope),
        qkv_bias=kind == "qwen2",
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        eos_token_ids=() if ends is None else tuple(ends) if isinstance(ends, list) else (ends,),
    )


def to_hugging_face(config: ModelConfig, dtype: torch.dtype) -> dict:
    """What `from_hugging_face` reads, for a config.json; RoPE in the older form, which every transformers reads."""
    scaling = config.rope_scaling
    raw = {name: getattr(config, name) for name in SIZES}
    return raw | {
        "model_type": "qwen2" if config.qkv_bias else "llama",
        "architectures": ["Qwen2ForCausalLM" if config.qkv_bias else "LlamaForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling and {"rope_type": "llama3", **vars(scaling)},
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": list(config.eos_token_ids) or None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _rope_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}; expected 'default' or 'llama3'")
    names = RopeScaling.__dataclass_fields__
    if missing := [name for name in names if name not in rope]:
        raise ValueError(f"{missing[0]} of RoPE's llama3 scaling is missing")
    return RopeScaling(**{name: rope[name] for name in names})


def _expect(raw: dict, key: str, supported: tuple, default=None):
    value = raw.get(key, default)
    if value not in supported:
        expected = " or ".join(map(repr, supported))
        raise ValueError(f"{key} is {value!r}; expected {expected}")
    return value
