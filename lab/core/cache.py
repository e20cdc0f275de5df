"""Keys and values of the tokens that a model has seen, so that each is computed once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lab.core.config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's part of a cache, for a call with T new tokens of each of B sequences.

    k, v: (B, kv_heads, capacity, head_dim), the cache's own. positions: (B, T), where the new tokens go. end: one
    past the last position of the longest sequence.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    end: int

    @property
    def lengths(self) -> Tensor:
        """(B,): tokens of each sequence, the new ones included."""
        return self.positions[:, -1] + 1

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store the new tokens' keys and values, (B, kv_heads, T, head_dim)."""
        sequences = torch.arange(len(self.positions), device=self.positions.device)[:, None]
        self.k[sequences, :, self.positions] = k.transpose(1, 2)
        self.v[sequences, :, self.positions] = v.transpose(1, 2)


class KVCache:
    """Room for `capacity` tokens of each of `batch` sequences, allocated at once.

    k, v: for each layer (batch, kv_heads, capacity, head_dim), zeros at first. A tensor of its own each, because a
    compiler that takes writing in place apart would copy all layers of a common one for what one layer writes. lengths:
    (batch,), int64, the tokens stored of each sequence; they may differ. longest: the most that any of them can be,
    known without asking the GPU.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = batch, config.num_key_value_heads, capacity, config.head_dim
        self.k, self.v = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)] for _ in range(2)
        )
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.batch, self.capacity = batch, capacity
        self.longest, self.ragged = 0, False

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.k, *self.v))

    def positions(self, batch: int, new: int) -> Tensor:
        """(batch, new): where the next `new` tokens of each sequence go. Raises ValueError if they have no room."""
        if batch != self.batch:
            raise ValueError(f"cache: holds {self.batch} sequences; expected {batch}, as input_ids has")
        if self.longest + new > self.capacity:
            raise ValueError(
                f"cache: {new} more tokens after {self.longest} need a capacity of {self.longest + new}; "
                f"this one's is {self.capacity}"
            )
        if self.ragged and new > 1:
            raise ValueError(
                f"cache: input_ids has {new} tokens a sequence; expected 1, because the sequences' lengths differ"
            )
        return self.lengths[:, None] + torch.arange(new, device=self.lengths.device)

    def layer(self, index: int, positions: Tensor) -> LayerCache:
        return LayerCache(self.k[index], self.v[index], positions, self.longest + positions.shape[1])

    def advance(self, new: int) -> None:
        """Count `new` tokens of each sequence as stored."""
        self.lengths += new
        self.longest += new

    def trim(self, lengths: list[int]) -> None:
        """Forget what lies past each sequence's length, such as the padding at the end of shorter prompts.

        Raises ValueError for a length that is not from 1 to what is stored of that sequence.
        """
        stored = self.lengths.tolist()
        if len(lengths) != self.batch or not all(1 <= length <= most for length, most in zip(lengths, stored)):
            raise ValueError(f"lengths is {lengths}; expected numbers from 1 to {stored}")
        self.lengths.copy_(torch.tensor(lengths))
        self.longest, self.ragged = max(lengths), len(set(lengths)) > 1
