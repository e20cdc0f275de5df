"""The loss of a bigram model, which a language model must beat: it knows nothing but the token before."""

from __future__ import annotations

import numpy as np
from torch import Tensor

CHUNK = 1 << 22  # tokens that are counted at once


def bigram_loss(train: np.ndarray, windows: Tensor, vocab_size: int) -> float:
    """Mean cross entropy, in nats a token, of a bigram model of `train` on `windows` (count, length), each token but a
    window's first predicted from the one before.

    Counts are smoothed as by Witten and Bell (Chen and Goodman 1996, https://aclanthology.org/P96-1041): with c(a)
    tokens seen after a, t(a) different ones,

        p(b | a) = (c(a, b) + t(a) p(b)) / (c(a) + t(a))

    train: token ids, (n,), below vocab_size. Needs vocab_size^2 counts: meant for bytes.
    """
    counts = np.zeros((vocab_size, vocab_size), np.int64)
    for start in range(0, len(train) - 1, CHUNK):
        piece = train[start : start + CHUNK + 1].astype(np.int64)
        counts += np.bincount(piece[:-1] * vocab_size + piece[1:], minlength=vocab_size**2).reshape(counts.shape)
    single = (counts.sum(0) + 1) / (counts.sum() + vocab_size)
    different = np.maximum((counts > 0).sum(1, keepdims=True), 1)
    p = (counts + different * single) / (counts.sum(1, keepdims=True) + different)
    before, after = windows[:, :-1].numpy(), windows[:, 1:].numpy()
    return float(-np.log(p[before, after]).mean())
