"""Tokenizers: of bytes, and out of a tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lab.datasets.text import DataError


def byte_level() -> Tokenizer:
    """Tokens that are the bytes of a text in UTF-8: 256 of them, each byte's id its value.

    It is byte-level BPE (Radford et al. 2019, GPT-2) without merges, so that a tokenizer.json can hold it. That form
    writes a byte as a character that can be seen: most as themselves, the others, in order, as those from U+0100 on.
    """
    characters = set(pre_tokenizers.ByteLevel.alphabet())
    others = iter(sorted(characters - {chr(byte) for byte in range(256)}))
    vocabulary = {chr(byte) if chr(byte) in characters else next(others): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, without the truncation and padding that it may have been saved with. Raises
    DataError."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise DataError(f"{path}: is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
