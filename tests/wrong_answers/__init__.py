"""Wrong answers to the exercises, a module a chapter: TORCH, TRITON, CUDA_COMPILED (caught with no GPU) and CUDA_RUN
(only on one), as far as it has any."""

from typing import NamedTuple


class Wrong(NamedTuple):
    """In the solution of `exercise`, the text `old`, which occurs there, is replaced by `new` everywhere. property: the
    one that must catch it."""

    exercise: str
    property: str
    mistake: str
    old: str
    new: str
