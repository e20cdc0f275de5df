"""A text as token ids: tokenized once, then mapped into memory, split, and cut into windows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lab.datasets.text import DataError, pydoc_topics, texts
from lab.datasets.tokenizer import byte_level, read_tokenizer
from lab.files import replacing

BATCH = 1024  # texts that are tokenized at once, in parallel


@dataclass(frozen=True)
class Dataset:
    """train, validation: token ids, (n,), of the smallest unsigned integer type, mapped from a file: the text's
    beginning and its end. digest: sha256, in hexadecimal, of the text and the tokenizer."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    digest: str

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id that the tokenizer can give."""
        return _vocab_size(self.tokenizer)


def load(files: Sequence[Path] | None, tokenizer: Path | None, validation: float) -> Dataset:
    """The texts of `files`, one after the other; None means Python's own reference (`text.pydoc_topics`).

    Between texts is what the tokenizer puts around one, such as Llama's beginning-of-text token, and nothing else.
    tokenizer: a tokenizer.json; None means bytes. validation: the fraction of the tokens, at the end, to validate on.
    Tokens are kept in a cache folder ($XDG_CACHE_HOME/llm-kernel-lab/tokens) under their digest. Raises DataError.
    """
    encoder = byte_level() if tokenizer is None else read_tokenizer(tokenizer)
    dtype = np.min_scalar_type(_vocab_size(encoder) - 1)
    digest = hashlib.sha256(encoder.to_str().encode())
    if files is None:
        digest.update(pydoc_topics().encode())
    for path in files or ():
        with path.open("rb") as content:
            digest.update(path.suffix.encode() + hashlib.file_digest(content, "sha256").digest())
    stored = _cache() / f"{digest.hexdigest()}.{dtype}"
    if not stored.exists():
        source = [pydoc_topics()] if files is None else (text for path in files for text in texts(path))
        _tokenize(source, encoder, dtype, stored)
    tokens = np.memmap(stored, dtype, mode="r")
    end = len(tokens) - round(validation * len(tokens))
    return Dataset(tokens[:end], tokens[end:], encoder, digest.hexdigest())


def random_windows(tokens: np.ndarray, length: int, count: int, seed: int, step: int) -> Tensor:
    """(count, length) int64: pieces of `tokens` that begin anywhere, the same ones for the same seed and step."""
    starts = np.random.default_rng((seed, step)).integers(len(tokens) - length + 1, size=count)
    return _windows(tokens, starts, length)


def spaced_windows(tokens: np.ndarray, length: int, most: int) -> Tensor:
    """(count, length) int64: pieces of `tokens` that do not overlap, evenly spaced; as many as there are, or `most`."""
    count = min(most, len(tokens) // length)
    return _windows(tokens, np.linspace(0, len(tokens) - length, count).astype(int), length)


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def _vocab_size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1  # ids may have gaps


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-kernel-lab" / "tokens"


def _tokenize(source: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype, path: Path) -> None:
    remaining: Iterator[str] = iter(source)
    with replacing(path) as temporary, temporary.open("wb") as file:
        while batch := list(islice(remaining, BATCH)):
            for encoding in tokenizer.encode_batch(batch):
                np.array(encoding.ids, dtype).tofile(file)
        if file.tell() == 0:
            raise DataError("files: hold no text; expected at least one token")
