"""Text out of a model: a prompt goes through it at once (prefill), then token after token (decode)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from lab.core.cache import KVCache
from lab.core.config import ModelConfig
from lab.core.model import LLM
from lab.ops.operator import is_finite
from lab.ops.softmax import softmax


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: what logits are divided by; 0 takes the most probable token. top_k: only from the k most probable.
    top_p: only from the fewest whose probabilities reach p together (nucleus sampling, Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751). seed: of the random numbers.

    Raises ValueError, naming the field, for a value out of range, and for a choice to draw from where nothing is drawn.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_finite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number above 0, up to 1")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected a whole number of 64 bits")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ValueError("temperature is 0, which draws nothing; expected one above 0 with top_k or top_p")

    def pick(self, logits: Tensor, generator: torch.Generator, backend: str) -> Tensor:
        """One token for each sequence, (B,), out of logits (B, V); softmax runs on `backend`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        ordered, tokens = logits.float().sort(dim=-1, descending=True)
        ordered, tokens = ordered[:, : self.top_k], tokens[:, : self.top_k]
        p = softmax((ordered - ordered[:, :1]) / self.temperature, backend=backend)  # of which none can overflow
        p = p.where(p.cumsum(-1) - p < self.top_p, 0)  # a token stays if those before it do not reach top_p
        return tokens.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0]


GREEDY = Sampling()


@torch.no_grad()
def generate(
    model: LLM, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = GREEDY
) -> Iterator[list[int | None]]:
    """The continuations of the prompts, a step at a time: the next token of each, None for a text that has ended. A
    text ends with one of the config's eos_token_ids, which is given out, or after max_new_tokens.

    prompts: token ids, of any lengths. Raises ValueError, when the first step is asked for, for no prompt, an empty
    one, an unknown token, or a text that would outgrow the model's positions.
    """
    _check(model.config, prompts, max_new_tokens)
    weight = model.embed_tokens.weight
    generator = torch.Generator(weight.device).manual_seed(sampling.seed)
    lengths = [len(prompt) for prompt in prompts]
    capacity = max(lengths) + max_new_tokens
    cache = KVCache(model.config, len(prompts), capacity, device=weight.device, dtype=weight.dtype)
    # Shorter prompts are padded at their end: under the causal mask no real token sees what comes after it.
    padded = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
    hidden = model.hidden(torch.tensor(padded, device=weight.device), cache)  # (B, T, C)
    cache.trim(lengths)
    hidden = torch.stack([row[length - 1] for row, length in zip(hidden, lengths)])  # (B, C)
    ended = [False] * len(prompts)
    for left in reversed(range(max_new_tokens)):
        tokens = sampling.pick(model.lm_head(hidden), generator, model.backend)
        step = [None if end else token for end, token in zip(ended, tokens.tolist())]
        yield step
        ended = [end or token in model.config.eos_token_ids for end, token in zip(ended, step)]
        if all(ended) or not left:
            return
        hidden = model.hidden(tokens[:, None], cache)[:, 0]


def _check(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if not prompts or not all(prompts):
        raise ValueError("prompts: expected at least one, of at least one token each")
    if not all(0 <= token < config.vocab_size for prompt in prompts for token in prompt):
        raise ValueError(f"prompts: expected tokens from 0 to {config.vocab_size - 1}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    longest, positions = max(map(len, prompts)), config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}; expected at most {positions - longest} after {longest} tokens: the "
            f"model has {positions} positions"
        )


def generate_text(model: LLM, prompt: str, max_new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[str]:
    """The continuation of one text, in pieces as they come. Raises ValueError as `generate` does, and for a model
    without a tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("model has no tokenizer: its folder had no tokenizer.json")
    steps = generate(model, [tokenizer.encode(prompt).ids], max_new_tokens, sampling)
    stream = DecodeStream(skip_special_tokens=True)
    return (piece for (token,) in steps if token is not None and (piece := stream.step(tokenizer, token)))
